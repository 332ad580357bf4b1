"""What a command costs: time, processor, memory, stage by stage."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_DONE = re.compile(r"✓ (.+?)(?: (\d+) s)?")
"""A stage that a command of this package has passed, as its log says it."""
_INTERVAL_S = 0.2
END = "end"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process that has ended.

    ``peak_rss`` counts mapped files, which the kernel may drop; ``anonymous`` is the largest
    anonymous memory within each stage, read every 0.2 s, bytes; ``stages`` are whole seconds, of
    those above two. ``error`` is the command's own line.
    """

    exit: int
    wall_s: float
    cpu_s: float
    peak_rss: int
    anonymous: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None


def measure(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Run a command to its end, its standard error in ``log``; output is dropped."""
    start, ended = time.monotonic(), threading.Event()
    peaks: dict[int, int] = {}
    with log.open("w", encoding="utf-8") as stream:
        child = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env={**os.environ, **(env or {})},
        )
        watcher = threading.Thread(target=_watch, args=(child.pid, log, peaks, ended))
        watcher.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        finally:
            ended.set()
            watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text("utf-8", "replace").splitlines()
    passed = [match for line in lines if (match := _DONE.fullmatch(line))]
    names = [match[1] for match in passed]
    return Process(
        exit=child.returncode,
        wall_s=time.monotonic() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        anonymous={names[n] if n < len(names) else END: size for n, size in peaks.items()},
        stages={match[1]: int(match[2]) for match in passed if match[2]},
        error=next((line for line in lines if line.startswith("error: ")), None),
    )


def _watch(pid: int, log: Path, peaks: dict[int, int], ended: threading.Event) -> None:
    """Keep the largest anonymous memory by the number of stages that the log has passed."""
    while not ended.wait(_INTERVAL_S):
        size = _anonymous(pid)
        if size is None:
            return
        lines = log.read_text("utf-8", "replace").splitlines()
        passed = sum(_DONE.fullmatch(line) is not None for line in lines)
        peaks[passed] = max(peaks.get(passed, 0), size)


def _anonymous(pid: int) -> int | None:
    """RssAnon of a process, bytes; None where it is gone or the system has no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon")), None)
