"""The device that runs jobs on a phone: it pushes by hash, runs, reads the result, and removes."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

from mtu_export.bench import builds, work
from mtu_export.bench.devices import DeviceLost, Progress
from mtu_export.bench.devices.adb import client, probe
from mtu_export.bench.devices.adb.client import Adb, Answer, printable
from mtu_export.bench.devices.adb.files import KEPT, RETURN, Session, ending, name_of
from mtu_export.bench.devices.host import event_line
from mtu_export.bench.job import (
    JOB,
    LARGEST_RESULT,
    RESULT,
    TENSORS,
    Job,
    Result,
    failed,
    mismatch,
    parse,
)
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.bundle import MANIFEST, Bundle, files_of, read_manifest, sha256
from mtu_export.spec import DeviceError

RUNNER = "mtu-bench"
GRACE = 10.0
"""Seconds of silence beyond a job's own deadline after which its runner hangs."""
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


class AdbDevice:
    """A phone; see :class:`mtu_export.bench.devices.Device`."""

    def __init__(
        self,
        adb: Adb,
        *,
        runner: FindRunner,
        keep: bool = False,
        cool_limit: float = probe.COOL_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.adb = adb
        self.phone = probe.look(adb)
        self.runner = runner(self.phone.arch)
        self._runner_key = f"runner-{name_of(sha256(self.runner))}"
        self.keep = keep
        self.cool_limit = cool_limit
        self.grace = GRACE
        self.return_limit = RETURN
        self._clock, self._sleep = clock, sleep
        self._session: Session | None = None

    @property
    def name(self) -> str:
        """``adb:SERIAL``."""
        return f"adb:{self.adb.serial}"

    def __enter__(self) -> AdbDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------- what it is

    def describe(self) -> DeviceRecord:
        """What the phone is."""
        loader = _loader(self.runner)
        libc = f"{_libc(self.runner)} (own loader)" if loader else None
        return self.phone.record.model_copy(update={"libc": libc})

    def refuses(self, bundle: Bundle) -> str | None:
        """Core ML bundles run on Apple's systems alone."""
        target = bundle.manifest.target
        if target in work.ENGINES:
            return None
        return f"{target} bundles do not run on Android; it runs: {', '.join(work.ENGINES)}"

    def state(self, *, wait: bool = False) -> DeviceState:
        """Heat, battery and clocks; ``wait``: after thermal status 0, or the limit."""
        if not wait:
            return probe.state(self.adb)
        return probe.cool(
            self.adb,
            limit=self.cool_limit,
            clock=self._clock,
            sleep=self._sleep,
            progress=self.adb.progress,
        )

    # ----------------------------------------------------------------------------------- files

    def prepare(self, bundles: Sequence[Bundle]) -> None:
        """Push the runner and the parts of bundles that this phone runs, as many as fit."""
        self._place_runner()
        runnable = [bundle for bundle in bundles if self.refuses(bundle) is None]
        identities = [work.identity(bundle) for bundle in runnable]
        wanted = [_key(identity) for identity in identities]
        for bundle, identity in zip(runnable, identities, strict=True):
            paths = [part.record.path for part in bundle.parts]
            try:
                self._place(bundle.folder, paths, identity, wanted)
            except DeviceLost:
                raise
            except DeviceError as error:  # its runs try again, and may push others out
                self.adb.progress(str(error))

    def _opened(self) -> Session:
        """The session; a new one where the connection was cut, as its folder went with it."""
        if self._session is not None and not self._session.is_open:
            self._end()
        if self._session is None:
            self._session = Session(self.adb, keep=self.keep)
            self._session.open()
        return self._session

    def _place_runner(self) -> str:
        files = {f.relative_to(self.runner).as_posix(): f for f in files_of(self.runner)}
        return self._opened().place(self._runner_key, files)

    def _place(
        self, folder: Path, paths: Sequence[str], identity: str, wanted: Collection[str] = ()
    ) -> str:
        """Push artefacts, with the files beside them that hold their weights; the folder's name."""
        files = {
            f"{path}{file.as_posix().removeprefix((folder / path).as_posix())}": file
            for part in paths
            for path in (part, *_beside(folder, part))
            for file in files_of(folder / path)
        }
        key = _key(identity)
        self._opened().place(key, files, {self._runner_key, *wanted})
        return key

    def close(self) -> None:
        """End what runs on the phone and remove what was pushed; says what may be left or stays."""
        if self._session is not None:
            self._end()
            if self.keep:
                self.adb.progress(
                    f"kept on {self.adb.serial}: {KEPT}; remove it with: "
                    + self.adb.by_hand(f"rm -rf {KEPT}")
                )

    def _end(self) -> None:
        session, self._session = self._session, None
        left = session.close() if session is not None else None
        if left is not None:
            self.adb.progress(left)

    # ------------------------------------------------------------------------------------- run

    def run(self, job: Job) -> Result:
        """Run a job; see :meth:`mtu_export.bench.devices.Device.run`."""
        try:
            return self._run(job)
        except DeviceLost as error:
            if not self.adb.returns(self.return_limit):
                raise
            return failed(f"{error}; the phone is there again")
        except DeviceError as error:
            return failed(str(error))

    def _run(self, job: Job) -> Result:
        runner = self._place_runner()
        root = self._place(job.folder, [part.path for part in job.parts.values()], job.identity)
        session = self._opened()
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as name:
            path = job.write(Path(name), root)
            session.send(path.with_name(TENSORS), path)
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

    def _show(self, line: str) -> None:
        """Pass an event of the runner on."""
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") in ("loaded", "sample"):
                self.adb.progress(printable(event_line(event)))

    def _result(self, folder: str, job: Job, answer: Answer, free: int | None) -> Result:
        text = self.adb.shell(
            f"cat {folder}/{RESULT}", what="reading the result", limit=LARGEST_RESULT, seconds=120
        )
        if text.stopped is not None:
            return failed(f"the runner's result: {text.stopped}")
        killed = answer.code == _KILLED
        if text.code != 0:
            reason = _EXITS.get(answer.code, "it left no result")
            last = f": {answer.last_line}" if answer.last_line else ""
            result = failed(f"the runner ended with exit code {answer.code}: {reason}{last}")
        else:
            result = parse(_cleaned(text.out))
            reason = mismatch(job, result)
            result = failed(reason) if reason else result
            killed |= re.search(r"\bsignal 9\b|out of memory", result.reason or "") is not None
        if killed:
            before = "unknown" if free is None else f"{free / 1e6:,.0f}"
            reason = f"killed, most likely out of memory ({before} MB were free before)"
            return result.model_copy(update={"status": "failed", "reason": reason})
        return result


def _key(identity: str) -> str:
    """The name of a bundle's folder."""
    return f"b-{name_of(identity)}"


def _beside(folder: Path, part: str) -> list[str]:
    """The files that the manifest of a part's bundle names as its weights, outside the part.

    ``folder`` is the bundle's, or one of links to bundles.
    """
    levels = PurePosixPath(part).parents
    for level in levels:
        if (folder / level / MANIFEST).is_file():
            records = read_manifest(folder / level).parts
            path = PurePosixPath(part).relative_to(level).as_posix()
            return [
                (level / name).as_posix()
                for record in records
                if record.path == path
                for name in record.data
            ]
    return []


def _libc(runner: Path) -> str:
    with suppress(OSError, ValueError):
        description = json.loads((runner / builds.DESCRIPTION).read_text("utf-8"))
        if isinstance(description, dict) and isinstance(description.get("libc"), str):
            return description["libc"]
    return "glibc"


def _loader(runner: Path) -> str | None:
    """The program loader that a runner's folder brings, None where the system's loads it."""
    return next((path.name for path in sorted(runner.glob("ld-linux-*.so.*"))), None)


def _cleaned(text: str) -> str:
    """A JSON text whose strings are short and printable; as it is where it is no JSON."""
    try:
        return json.dumps(_clean(json.loads(text)))
    except (ValueError, RecursionError):
        return text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, 300)
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return value
