"""A phone as a device of the suite: it pushes by hash, and removes what it has pushed."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from mtu_export.bench import work
from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.adb import probe
from mtu_export.bench.devices.adb.client import Adb, printable
from mtu_export.bench.devices.adb.files import KEPT, RETURN, Session, name_of
from mtu_export.bench.devices.host import event_line
from mtu_export.bench.job import (
    LARGEST_RESULT,
    RESULT,
    TENSORS,
    Job,
    Result,
    failed,
    mismatch,
    parse,
)
from mtu_export.bench.record import DeviceState
from mtu_export.bundle import MANIFEST, Bundle, files_of, read_manifest
from mtu_export.spec import DeviceError

GRACE = 10.0
"""Seconds of silence beyond a job's own deadline after which its runner hangs."""


class PhoneDevice:
    """What a phone does whatever runs its jobs; see :class:`mtu_export.bench.devices.Device`."""

    def __init__(
        self,
        adb: Adb,
        *,
        keep: bool = False,
        cool_limit: float = probe.COOL_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.adb = adb
        self.phone = probe.look(adb)
        self.keep = keep
        self.cool_limit = cool_limit
        self.grace = GRACE
        self.return_limit = RETURN
        self._clock, self._sleep = clock, sleep
        self._session: Session | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------- what runs the jobs

    def _ready(self) -> None:
        """Put on the phone what runs jobs."""

    def _execute(self, session: Session, job: Job) -> Result:
        """Run the job that lies in the session's folder."""
        raise NotImplementedError

    def _new_session(self) -> Session:
        return Session(self.adb, keep=self.keep)

    @property
    def _needed(self) -> set[str]:
        """Contents that stay where there is little space."""
        return set()

    # ----------------------------------------------------------------------------------- what it is

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
        self._ready()
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
            self._session = self._new_session()
            self._session.open()
        return self._session

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
        self._opened().place(key, files, {*self._needed, *wanted})
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
        self._ready()
        root = self._place(job.folder, [part.path for part in job.parts.values()], job.identity)
        session = self._opened()
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as name:
            path = job.write(Path(name), root)
            session.send(path.with_name(TENSORS), path)
        return self._execute(session, job)

    def _show(self, line: str) -> None:
        """Pass an event of the runner on."""
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") in ("loaded", "sample"):
                self.adb.progress(printable(event_line(event) or ""))

    def _read_result(self, folder: str, job: Job) -> Result | None:
        """The result that lies in a folder; None where there is none."""
        text = self.adb.shell(
            f"cat {folder}/{RESULT}", what="reading the result", limit=LARGEST_RESULT, seconds=120
        )
        if text.stopped is not None:
            return failed(f"the runner's result: {text.stopped}")
        if text.code != 0:
            return None
        result = parse(_cleaned(text.out))
        reason = mismatch(job, result)
        return failed(reason) if reason else result


def killed(result: Result, free: int | None) -> Result:
    """The result of what the system has killed."""
    reason = f"killed, most likely out of memory ({megabytes(free)} MB were free before)"
    return result.model_copy(update={"status": "failed", "reason": reason})


def megabytes(free: int | None) -> str:
    """Free memory for people."""
    return "unknown" if free is None else f"{free / 1e6:,.0f}"


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
