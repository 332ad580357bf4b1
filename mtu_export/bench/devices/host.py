"""This host: the C++ runner where it is built, else the runner in Python."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from mtu_export.bench import builds, machine, work
from mtu_export.bench.devices import Progress
from mtu_export.bench.job import LARGEST_RESULT, RESULT, Job, Result, failed, mismatch, parse
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.bundle import Bundle
from mtu_export.spec import ToolchainError

RUNNERS = ("c++", "python")
BUNDLE = "bundle"
"""The link to the bundle beside a job."""
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_GRACE_S = 30.0


class Host:
    """Runs each job as a process of this machine; ``runner`` is one of ``RUNNERS``, or the best."""

    def __init__(self, runner: str | None = None, progress: Progress = lambda _: None) -> None:
        self.folder = None if runner == "python" else builds.find_runner(platform.machine())
        if runner == "c++" and self.folder is None:
            raise ToolchainError("the C++ runner is not built here; build it with: make runner")
        self.name = f"host, {'python' if self.folder is None else 'c++'} runner"
        self.progress = progress

    def describe(self) -> DeviceRecord:
        """Processor, cores, memory and instruction sets, as Linux tells them."""
        fields = _cpuinfo()
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
        return DeviceRecord(
            kind="host",
            model=fields.get("model name") or platform.processor() or platform.machine(),
            os=f"{platform.system()} {platform.release()}",
            arch=platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            memory=_memory("MemTotal"),
            page_size=os.sysconf("SC_PAGE_SIZE"),
            governor=machine.governor(),
            instructions=tuple(name for name in _EXTENSIONS if name in flags),
            libc=" ".join(platform.libc_ver()) or None,
        )

    def refuses(self, bundle: Bundle) -> str | None:
        """Core ML needs a Mac, and its evaluator here is no measure of speed."""
        target = bundle.manifest.target
        if target in work.ENGINES:
            return None
        if target == "coreml":
            return "Core ML runs on Apple's systems; the evaluator on Linux is no measure of speed"
        return f"no runner opens {target} bundles"

    def prepare(self, bundles: Sequence[Bundle]) -> None:
        """Nothing to do: jobs link to the bundles."""

    def run(self, job: Job) -> Result:
        """Run a job; its process is killed ``deadline_s`` after it began, with some grace."""
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as name:
            folder = Path(name)
            (folder / BUNDLE).symlink_to(job.folder.resolve(), target_is_directory=True)
            path, output = job.write(folder, BUNDLE), folder / RESULT
            command = [str(path), "-o", str(output), "--progress"]
            if self.folder is not None:
                command = ["/bin/sh", str(self.folder / builds.START), *command]
            else:
                command = [sys.executable, "-m", "mtu_export.bench.python_runner", *command]
            result = _result(command, output, job.deadline_s + _GRACE_S, self.progress)
            reason = mismatch(job, result)
            return failed(reason) if reason else result

    def state(self, *, wait: bool = False) -> DeviceState:
        """Free memory and clocks; a host has no limit of heat to wait for."""
        return DeviceState(free_memory=_memory("MemAvailable"), clocks=machine.clocks())

    def close(self) -> None:
        """Nothing is left: each job's folder is temporary."""


def _result(command: list[str], output: Path, deadline_s: float, progress: Progress) -> Result:
    """The result of a runner's process; one that leaves none is a failed result."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(  # noqa: S603
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_follow, args=(process, lines, progress), daemon=True)
    reader.start()
    try:
        code = process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        return failed(f"no result in {deadline_s:g} s")
    except BaseException:
        _kill(process)
        raise
    finally:
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()
    if output.is_file() and output.stat().st_size <= LARGEST_RESULT:
        return parse(output.read_bytes())
    reason = lines[-1].removeprefix("error: ") if lines else "without a word"
    return failed(f"the runner ended with exit code {code}: {reason}")


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a runner and its child."""
    import signal

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _follow(process: subprocess.Popen[str], lines: list[str], progress: Progress) -> None:
    """Keep the last lines that are no events, and pass events on."""
    assert process.stderr is not None
    for line in process.stderr:
        text = line.strip()[:1000]
        try:
            event = json.loads(text)
        except ValueError:
            lines[:] = [*lines[-20:], text] if text else lines
            continue
        if isinstance(event, dict) and (text := event_line(event)) is not None:
            progress(text)


def event_line(event: dict[str, object]) -> str | None:
    """A runner's event in a few words; None for one that nobody waits for."""
    seconds = event.get("seconds")
    took = f" {seconds:.2f} s" if isinstance(seconds, float) else ""
    if event.get("event") == "loaded":
        return f"loaded {str(event.get('part'))[:64]}{took}"
    if event.get("event") == "sample":
        return f"sample {event.get('number')} of {event.get('of')}{took}"
    return None


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    text = machine.text(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":")[::2] for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def _memory(name: str) -> int | None:
    """A line of /proc/meminfo, bytes."""
    for line in (machine.text(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
