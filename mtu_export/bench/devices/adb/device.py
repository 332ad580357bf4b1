"""A phone whose jobs the C++ runner takes, which is pushed with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from mtu_export.bench import builds
from mtu_export.bench.devices import Progress
from mtu_export.bench.devices.adb import client, probe
from mtu_export.bench.devices.adb.client import Adb, Answer
from mtu_export.bench.devices.adb.files import Session, ending, name_of
from mtu_export.bench.devices.adb.phone import PhoneDevice, killed
from mtu_export.bench.job import JOB, RESULT, Job, Result, failed
from mtu_export.bench.record import DeviceRecord
from mtu_export.bundle import files_of, sha256

RUNNER = "mtu-bench"
_LONGEST_RUN = 7 * 86_400.0
_LONGEST_OUTPUT = 64_000_000
"""Bytes of a runner's events."""
_KILLED = 137
_EXITS = {
    2: "it refused the job",
    3: "it refused the artefact or its tensors",
    4: "it has no such engine, or one that is too old",
    5: "the part failed",
    126: "the phone may not execute it",
    127: "the phone does not find it or its loader",
    134: "it aborted",
    139: "it crashed with a segmentation fault",
}

FindRunner = Callable[[str], Path]
"""Architecture -> folder of the runner."""


def connect(
    serial: str | None = None,
    *,
    runner: FindRunner,
    keep: bool = False,
    progress: Progress | None = None,
) -> AdbDevice:
    """The phone of a serial, or the only one that is connected.

    ``keep`` leaves runner and bundles on the phone for the next run. Raises ``DeviceError`` or
    ``RuntimeUnavailable`` in one line.
    """
    adb = client.program()
    phone = client.choose(client.listed(adb), serial)
    return AdbDevice(Adb(adb, phone.serial, progress), runner=runner, keep=keep)


class AdbDevice(PhoneDevice):
    """A phone with the runner; see :class:`mtu_export.bench.devices.Device`."""

    def __init__(self, adb: Adb, *, runner: FindRunner, **settings: Any) -> None:
        super().__init__(adb, **settings)
        self.runner = runner(self.phone.arch)
        self._runner_key = f"runner-{name_of(sha256(self.runner))}"

    @property
    def name(self) -> str:
        """``adb:SERIAL``."""
        return f"adb:{self.adb.serial}"

    def describe(self) -> DeviceRecord:
        """What the phone is."""
        loader = _loader(self.runner)
        libc = f"{_libc(self.runner)} (own loader)" if loader else None
        return self.phone.record.model_copy(update={"libc": libc})

    @property
    def _needed(self) -> set[str]:
        return {self._runner_key}

    def _ready(self) -> None:
        self._place_runner()

    def _place_runner(self) -> str:
        files = {f.relative_to(self.runner).as_posix(): f for f in files_of(self.runner)}
        return self._opened().place(self._runner_key, files)

    def _execute(self, session: Session, job: Job) -> Result:
        runner = self._place_runner()
        self.adb.look(f"rm -f {session.folder}/{RESULT}", what="removing an old result")
        free = probe.free_memory(self.adb)
        answer = self._start(session.folder, runner, job)
        if answer.stopped is not None:
            self.adb.look(ending(session.folder), what="ending the runner")
            fault = "writes without end" if "bytes" in answer.stopped else "hangs"
            return failed(f"the runner {fault}: {answer.stopped}; it was killed")
        return self._result(session.folder, job, answer, free)

    def _start(self, folder: str, runner: str, job: Job) -> Answer:
        loader = _loader(self.runner)
        program = f"{runner}/{RUNNER}"
        words = ["sh", f"{runner}/{builds.START}"]
        if loader is not None:
            words = [f"{runner}/{loader}", "--library-path", runner, program]
        words += [JOB, "-o", RESULT, "--progress"]
        executable = f"chmod 755 {program} {words[0] if loader else ''}"
        return self.adb.shell(
            f"{executable}; cd {folder} && ORT_DISABLE_TELEMETRY=1 {' '.join(map(quote, words))}",
            what="a run",
            seconds=_LONGEST_RUN,
            limit=_LONGEST_OUTPUT,
            patience=job.deadline_s + job.cooldown_ms / 1000 + self.grace,
            on_line=self._show,
        )

    def _result(self, folder: str, job: Job, answer: Answer, free: int | None) -> Result:
        result = self._read_result(folder, job)
        if result is None:
            reason = _EXITS.get(answer.code, "it left no result")
            last = f": {answer.last_line}" if answer.last_line else ""
            result = failed(f"the runner ended with exit code {answer.code}: {reason}{last}")
        ended = re.search(r"\bsignal 9\b|out of memory", result.reason or "") is not None
        return killed(result, free) if ended or answer.code == _KILLED else result


def _libc(runner: Path) -> str:
    with suppress(OSError, ValueError):
        description = json.loads((runner / builds.DESCRIPTION).read_text("utf-8"))
        if isinstance(description, dict) and isinstance(description.get("libc"), str):
            return description["libc"]
    return "glibc"


def _loader(runner: Path) -> str | None:
    """The program loader that a runner's folder brings, None where the system's loads it."""
    return next((path.name for path in sorted(runner.glob("ld-linux-*.so.*"))), None)
