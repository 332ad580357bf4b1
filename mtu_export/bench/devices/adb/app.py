"""A phone whose jobs an installed app takes: the sample of ``runtime/android``.

The protocol is normative in ``runtime/android/runner/README.md`` ("As an app"). The app measures
with the libraries that apps embed, in a process of Android's own making for each job.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mtu_export.bench.devices.adb import client, exits, probe
from mtu_export.bench.devices.adb.client import Adb, printable
from mtu_export.bench.devices.adb.files import BASE, Session
from mtu_export.bench.devices.adb.phone import PhoneDevice, killed, megabytes
from mtu_export.bench.job import JOB, RESULT, Job, Result, failed
from mtu_export.bench.record import DeviceRecord
from mtu_export.spec import DeviceError

PACKAGE = "io.mtuexport.sample"
ACTIVITY = f"{PACKAGE}/.BenchActivity"
OUTPUT = f"/sdcard/Android/media/{PACKAGE}/bench"
PROGRESS = "progress.jsonl"
_START = 60.0
"""Seconds that Android may take to bring the app to the screen."""
_LONGEST_RUN = 7 * 86_400.0
_LONGEST_OUTPUT = 64_000_000
"""Bytes of the app's events."""
_LONGEST_PIECE = 100_000
_POLL = 0.5
_TELL = 3.0
"""Seconds in which Android notes why an app ended."""
_END = 10.0
"""Seconds that an app has to end after its result."""
_REFUSED = re.compile(r"(?m)^\s*((?:Error:|java\.lang\.\w+|Exception\b).*)$")
_STARTED = re.compile(r'"event": ?"started".*"pid": ?([0-9]{1,9})\b')
_MARK = "@mtu-export"


@dataclass(kw_only=True)
class _Progress:
    """What a run has told so far: ``read`` bytes of events, the time of the last one, and the
    process, which the first event names."""

    read: int = 0
    rest: str = ""
    moved: float = 0.0
    pid: int | None = None


class AppDevice(PhoneDevice):
    """A phone with the app; see :class:`mtu_export.bench.devices.Device`."""

    def __init__(self, adb: Adb, **settings: Any) -> None:
        super().__init__(adb, **settings)
        self.version = self._installed()

    def _installed(self) -> str:
        """The app's version; raises ``DeviceError`` where it is not installed."""
        text = self.adb.look(
            f"pm path {PACKAGE}; dumpsys package {PACKAGE} | grep -m 1 versionName=",
            what="looking for the app",
        )
        if "package:/" not in text:
            raise DeviceError(
                f"{self.adb.serial} has no app {PACKAGE}: build runtime/android/sample with "
                "Android Studio and install it (adb install sample.apk)"
            )
        match = re.search(r"versionName=(\S+)", text)
        return printable(match[1], 60) if match else "unknown"

    @property
    def name(self) -> str:
        """``adb:SERIAL``, and which app."""
        return f"adb:{self.adb.serial} {PACKAGE} {self.version}"

    def describe(self) -> DeviceRecord:
        """What the phone is; its C library is Android's own."""
        return self.phone.record.model_copy(update={"libc": "bionic"})

    def _new_session(self) -> Session:
        return Session(self.adb, keep=self.keep, ending=_ending)

    def _execute(self, session: Session, job: Job) -> Result:
        name = session.folder.rpartition("/")[2]
        output = f"{OUTPUT}/{name}"
        self.adb.look(
            f"chmod a+rx {BASE}; chmod -R a+rX {session.folder}/. {BASE}/kept 2>/dev/null; "
            f"rm -rf {output}",
            what="making room for a result",
        )
        free = probe.free_memory(self.adb)
        told = _Progress()
        try:
            reason = self._start(session.folder, name) or self._wait(output, job, told)
            result = self._read_result(output, job) if reason is None else failed(reason)
            if result is None:
                return self._ended(told.pid, free)
        finally:
            with suppress(DeviceError):  # the end of the session does it too
                self.adb.look(f"am force-stop {PACKAGE}; rm -rf {output}", what="ending the app")
        ended = re.search(r"\bsignal 9\b|out of memory", result.reason or "") is not None
        return killed(result, free) if ended else result

    def _start(self, folder: str, name: str) -> str | None:
        """Start the app; why it does not, in one line."""
        answer = self.adb.shell(
            f"am start -W -S -n {ACTIVITY} --es job {folder}/{JOB} --es id {name} 2>&1",
            what="starting the app",
            seconds=_START,
        )
        if answer.stopped is not None:
            return f"the app does not start: {answer.stopped}"
        refused = _REFUSED.search(answer.out)
        if refused is None and answer.code == 0:
            return None
        line = refused[1] if refused else answer.last_line or f"exit code {answer.code}"
        return f"the app does not start: {printable(line)}"

    def _wait(self, output: str, job: Job, told: _Progress) -> str | None:
        """Wait for the result; why there will be none, in one line. None also where the app has
        ended without one."""
        told.moved = time.monotonic()
        patience = job.deadline_s + job.cooldown_ms / 1000 + self.grace
        deadline = time.monotonic() + _LONGEST_RUN
        while True:
            is_running, is_done = self._look(output, told)
            if is_done or not is_running:
                limit = time.monotonic() + (_END if is_done else 0)
                while self._look(output, told)[0] and time.monotonic() < limit:
                    time.sleep(_POLL)
                return None
            now = time.monotonic()
            if told.read > _LONGEST_OUTPUT:
                return f"the app writes without end: more than {_LONGEST_OUTPUT:,} bytes"
            if now - told.moved > patience or now > deadline:
                return f"the app hangs: nothing for {patience:g} s; it was ended"
            time.sleep(_POLL)

    def _look(self, output: str, told: _Progress) -> tuple[bool, bool]:
        """Whether the app runs, and whether its result is there; new events are passed on.

        The process is asked for before the result, so that one that ends meanwhile is seen whole.
        """
        text = self.adb.look(
            f"pidof {PACKAGE}; echo {_MARK}; test -e {output}/{RESULT} && echo done; echo {_MARK}; "
            f"tail -c +{told.read + 1} {output}/{PROGRESS} 2>/dev/null | head -c {_LONGEST_PIECE}",
            what="waiting for the app",
        )
        running, result, events = [*text.split(f"{_MARK}\n", 2), "", ""][:3]
        if events:
            told.moved = time.monotonic()
            told.read += len(events.encode("utf-8", "replace"))
            *lines, told.rest = (told.rest + events)[-2 * _LONGEST_PIECE :].split("\n")
            for line in lines:
                started = _STARTED.search(line) if told.pid is None else None
                told.pid = int(started[1]) if started else told.pid
                self._show(line)
        return bool(running.strip()), "done" in result

    def _ended(self, pid: int | None, free: int | None) -> Result:
        """The result of an app that left none, as far as Android tells why it ended."""
        deadline = time.monotonic() + _TELL
        record = exits.last(self.adb, PACKAGE, pid)
        while record is None and time.monotonic() < deadline:
            time.sleep(_POLL)
            record = exits.last(self.adb, PACKAGE, pid)
        if record is None:
            return failed(
                "the app left no result: it was killed, for instance for want of memory, or has "
                f"crashed ({megabytes(free)} MB were free before); Android does not tell which"
            )
        if record.is_for_memory:
            return killed(failed("the app left no result"), free)
        return failed(f"the app left no result: {record.words}")


def _ending(folder: str) -> str:
    """The shell commands that end the app and remove what it has written for a session."""
    return f"am force-stop {PACKAGE}; rm -rf {OUTPUT}/{folder.rpartition('/')[2]}; "


def connect(serial: str | None = None, **settings: Any) -> AppDevice:
    """The phone of a serial, or the only one that is connected, with the app.

    Raises ``DeviceError`` or ``RuntimeUnavailable`` in one line.
    """
    adb = client.program()
    phone = client.choose(client.listed(adb), serial)
    progress = settings.pop("progress", None)
    return AppDevice(Adb(adb, phone.serial, progress), **settings)
