"""The device that runs jobs in the bench app of an iPhone.

Each request starts the app anew, so each round is a process of its own. The app makes the folders
of a session itself: what devicectl makes belongs to another user, and the app could not remove it.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mtu_export.bench import work
from mtu_export.bench.devices import DeviceLost, Progress
from mtu_export.bench.devices.adb.client import printable
from mtu_export.bench.devices.adb.files import name_of
from mtu_export.bench.devices.host import event_line
from mtu_export.bench.devices.ios import answers, tool
from mtu_export.bench.devices.ios.answers import FOLDER, Answer, Request, Verb
from mtu_export.bench.devices.ios.tool import Ended, Phone, Tool
from mtu_export.bench.job import JOB, LARGEST_RESULT, RESULT, TENSORS, Job, Result, failed, mismatch
from mtu_export.bench.job import parse as parse_result
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.bundle import Bundle, files_of, sha256
from mtu_export.spec import DeviceError

TARGET = "coreml"
EVENTS = "progress.jsonl"
GRACE = 30.0
"""Seconds of silence beyond a job's own deadline after which the app hangs."""
PATIENCE = 120.0
"""Seconds of silence of a request that runs no job."""
COOL_LIMIT = 300.0
RETURN = 10.0
"""Seconds that a run waits for a phone that went away."""
MARGIN = 200_000_000
"""Bytes that stay free on the phone."""
_COPIES = 2
"""A model lies there twice: as it was pushed, and compiled."""
_HASHES_A_SECOND = 50e6
_KILL = 9
_SYSTEMS = {"iOS16": 16, "iOS17": 17, "iOS18": 18, "macOS13": 16, "macOS14": 17, "macOS15": 18}
_FUNCTIONS = 18
"""The oldest iOS that chooses one of several functions."""
_PULLS = 3


def connect(udid: str | None = None, *, progress: Progress = lambda _: None) -> IosDevice:
    """The phone of a UDID, or the only one that is connected, with its bench app.

    Raises ``DeviceError`` or ``RuntimeUnavailable`` in one line.
    """
    reach = tool.find()
    phone = tool.choose(reach.phones(), udid)
    app = tool.choose_app(reach.apps(phone), phone)
    return IosDevice(reach, phone, app, progress=progress)


class IosDevice:
    """A phone with the bench app; see :class:`mtu_export.bench.devices.Device`."""

    def __init__(
        self, reach: Tool, phone: Phone, app: str, *, progress: Progress = lambda _: None
    ) -> None:
        self.tool, self.phone, self.app, self.progress = reach, phone, app, progress
        self.session = secrets.token_hex(6)
        self.patience = PATIENCE
        self.grace = GRACE
        self.return_limit = RETURN
        self.cool_limit = COOL_LIMIT
        self._placed: dict[str, set[str]] = {}
        self._folders: set[str] = set()
        self._last: Answer | None = None
        self._used = False

    @property
    def name(self) -> str:
        """``ios:UDID``."""
        return f"ios:{self.phone.udid}"

    def __enter__(self) -> IosDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- what it is

    def describe(self) -> DeviceRecord:
        """What the phone is, by its app."""
        answer = self._ask("describe")
        self.progress(f"{self.phone}: bench app {answer.app.version} by {self.tool.name}")
        return answer.device.record()

    def refuses(self, bundle: Bundle) -> str | None:
        """Other targets than Core ML, and files for a newer system than the phone's."""
        manifest = bundle.manifest
        if manifest.target != TARGET:
            return f"{manifest.target} bundles do not run in the iOS app; it runs: {TARGET}"
        several = any(len({*part.record.entries.values()}) > 1 for part in bundle.parts)
        return newer(str(manifest.options.get("deployment_target")), several, self.phone.os)

    def state(self, *, wait: bool = False) -> DeviceState:
        """Heat, battery and memory as the app told them last; ``wait``: first until it is cool.

        What a phone that does not answer is like is unknown: its next run says why.
        """
        if wait or self._last is None:
            try:
                self._ask("describe", cool_s=self.cool_limit if wait else 0)
            except DeviceError as error:
                self.progress(str(error))
                return DeviceState()
        return DeviceState() if self._last is None else self._last.state

    # ------------------------------------------------------------------------------------ files

    def prepare(self, bundles: Sequence[Bundle]) -> None:
        """Push the parts of bundles that this phone runs, as many as fit."""
        for bundle in bundles:
            if self.refuses(bundle) is not None:
                continue
            paths = [part.record.path for part in bundle.parts]
            try:
                self._place(bundle.folder, paths, work.identity(bundle))
            except DeviceLost:
                raise
            except DeviceError as error:  # its runs try again
                self.progress(str(error))

    def _place(self, folder: Path, paths: Sequence[str], identity: str) -> str:
        """Push artefacts into a folder of the session that is named by their content."""
        key = f"b-{name_of(identity)}"
        there = self._placed.setdefault(key, set())
        files = {
            f"{key}/{file.relative_to(folder).as_posix()}": file
            for path in paths
            for file in files_of(folder / path)
        }
        missing = {name: file for name, file in files.items() if name not in there}
        if missing:
            self._push(missing)
            there |= set(missing)
        return key

    def _push(self, files: Mapping[str, Path]) -> None:
        """Bring files below the session's folder, and have the app compare their hashes."""
        parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
        if parents - self._folders:
            self._make(parents, _COPIES * sum(file.stat().st_size for file in files.values()))
        for name, file in files.items():
            size = file.stat().st_size
            if size > 10_000_000:
                self.progress(f"pushing {printable(name)} ({size / 1e6:,.0f} MB)")
            self.tool.push(self.phone, self.app, file, f"{FOLDER}/{self.session}/{name}")
        hashes = {name: sha256(file) for name, file in files.items()}
        seconds = sum(file.stat().st_size for file in files.values()) / _HASHES_A_SECOND
        wrong = self._ask("verify", files=hashes, patience=self.patience + seconds).wrong
        if wrong:
            raise DeviceError(f"{self.phone}: {printable(wrong[0])} differs there after the copy")

    def _make(self, folders: Collection[str], needed: int) -> None:
        """Have the app make folders of the session, where it has room for what they will hold."""
        answer = self._ask("prepare", folders=sorted(set(folders) - {"."}))
        if answer.free_bytes is not None and answer.free_bytes < needed + MARGIN:
            raise DeviceError(
                f"{self.phone} is full: {answer.free_bytes / 1e6:,.0f} MB free; "
                f"{needed / 1e6:,.1f} MB are needed and {MARGIN / 1e6:,.0f} MB stay free"
            )
        self._folders |= set(folders)

    def close(self) -> None:
        """Remove what was pushed; says what may be left."""
        if not self._used:
            return
        self._used = False
        self._placed.clear()
        self._folders.clear()
        try:
            self._ask("remove")
        except DeviceError as error:
            self.progress(
                f"{self.phone}: {FOLDER}/{self.session} may be left in the bench app: remove it in "
                f"Files, On My iPhone, or delete the app ({error})"
            )
        finally:
            self._used = False

    # --------------------------------------------------------------------------------- requests

    def _ask(
        self,
        verb: Verb,
        *,
        folders: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        cool_s: float = 0,
        patience: float | None = None,
    ) -> Answer:
        """The app's answer; raises ``DeviceError`` where it hung, ended or refused."""
        token = secrets.token_hex(8)
        request = Request(
            token=token,
            verb=verb,
            session=self.session,
            folders=folders,
            files=files or {},
            cool_s=cool_s,
        )
        ended = self._start(request, (patience or self.patience) + cool_s)
        if ended.stopped is not None:
            raise DeviceError(f"{self.phone}: the bench app hangs ({verb}): {ended.stopped}")
        answer = self._answer(token)
        if answer is None:
            how = f"signal {ended.signal}" if ended.signal else "no answer"
            raise DeviceError(f"{self.phone}: the bench app ended without an answer: {how}")
        if answer.status == "failed":
            raise DeviceError(f"{self.phone}: the bench app: {printable(answer.reason or '')}")
        return answer

    def _start(self, request: Request, patience: float) -> Ended:
        self._used |= request.verb in ("prepare", "run")
        return self.tool.start(
            self.phone,
            self.app,
            {answers.VARIABLE: request.text()},
            events=f"{FOLDER}/{EVENTS}",
            patience=patience,
            on_line=self._show,
        )

    def _show(self, line: str) -> None:
        """Pass an event of the app on."""
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") in ("loaded", "sample"):
                self.progress(printable(event_line(event) or ""))
            elif isinstance(event, dict) and event.get("event") == "hot":
                self.progress(
                    f"{self.phone} is hot ({printable(str(event.get('state')))}): waiting"
                )

    def _answer(self, token: str) -> Answer | None:
        """The answer to a request, which is remembered; None where the app left none."""
        data = self._pull(answers.ANSWER)
        answer = None if data is None else answers.parse(data, token)
        self._last = answer or self._last
        return answer

    def _pull(self, source: str) -> bytes | None:
        """A file of the app that is JSON; one that arrives in part is pulled again."""
        data = None
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as folder:
            for attempt in range(_PULLS):
                file = Path(folder) / f"pulled{attempt}"
                if not self.tool.pull(self.phone, self.app, source, file):
                    return data
                if file.stat().st_size > LARGEST_RESULT:
                    raise DeviceError(f"{self.phone}: {source} is larger than {LARGEST_RESULT:,}")
                data = file.read_bytes()
                if re.search(rb"\}\s*$", data):
                    return data
        return data

    # -------------------------------------------------------------------------------------- run

    def run(self, job: Job) -> Result:
        """Run a job; see :meth:`mtu_export.bench.devices.Device.run`."""
        try:
            return self._run(job)
        except DeviceLost as error:
            if not self._returns():
                raise
            return failed(f"{error}; the phone is there again")
        except DeviceError as error:
            return failed(str(error))

    def _returns(self) -> bool:
        """Whether a phone that went away is back within a time."""
        deadline = time.monotonic() + self.return_limit
        while True:
            with suppress(DeviceError):
                if any(each.udid == self.phone.udid for each in self.tool.phones()):
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)

    def _run(self, job: Job) -> Result:
        root = self._place(job.folder, [part.path for part in job.parts.values()], job.identity)
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as name:
            path = job.write(Path(name), root)
            self._push({TENSORS: path.with_name(TENSORS), JOB: path})
        free = None if self._last is None else self._last.state.free_memory
        token = secrets.token_hex(8)
        request = Request(token=token, verb="run", session=self.session)
        ended = self._start(request, job.deadline_s + job.cooldown_ms / 1000 + self.grace)
        result = self._result()
        if ended.stopped is not None:
            return _cut(result, f"the bench app hangs: {ended.stopped}; it was ended")
        answer = self._answer(token)
        if answer is None:
            return _cut(result, _death(ended, free))
        if result is None:
            return failed(f"the bench app left no result: {answer.reason or 'without a word'}")
        reason = mismatch(job, result)
        return failed(reason) if reason else result

    def _result(self) -> Result | None:
        """The result that the app has written until now."""
        data = self._pull(f"{FOLDER}/{self.session}/{RESULT}")
        return None if data is None else parse_result(data)


def newer(deployment_target: str, several: bool, system: str) -> str | None:
    """Why a phone's system is too old for a file, in one line; None where it is not.

    ``several``: a file has functions of several tasks.
    """
    wanted = _SYSTEMS.get(deployment_target, 0)
    why = "its deployment target needs"
    if several and wanted <= _FUNCTIONS:
        wanted, why = _FUNCTIONS, "functions of several tasks need"
    digits = system.partition(".")[0]
    if digits.isdecimal() and int(digits) < wanted:
        return f"{why} iOS {wanted}; this phone has iOS {system}"
    return None


def _cut(result: Result | None, reason: str) -> Result:
    """What was measured until the app ended, as a failed result."""
    if result is None or (result.status == "failed" and not result.samples_s):
        return failed(reason)
    return result.model_copy(update={"status": "failed", "reason": reason})


def _death(ended: Ended, free: int | None) -> str:
    if ended.signal == _KILL:
        before = "unknown" if free is None else f"{free / 1e6:,.0f}"
        return f"killed, most likely out of memory ({before} MB were free before)"
    if ended.signal is not None:
        return f"the bench app crashed: signal {ended.signal}"
    return "the bench app ended without an answer"
