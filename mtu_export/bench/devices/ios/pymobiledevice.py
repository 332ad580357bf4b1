"""The program pymobiledevice3, where there is no Xcode. It is run, never imported (GPL)."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export.bench.devices.adb.client import printable
from mtu_export.bench.devices.ios import faults, tool
from mtu_export.bench.devices.ios.tool import Ended, Phone
from mtu_export.spec import DeviceError

POLL = 2.0
"""Seconds between two looks at a running app."""
_ABSENT = re.compile(r"OBJECT_NOT_FOUND|does not exist|No such file", re.IGNORECASE)
_PID = re.compile(r"launched with pid (\d{1,10})")
_GONE = 3
"""Looks in a row that must find no process."""


class Pymobiledevice:
    """``pymobiledevice3`` of PATH; ``$PYMOBILEDEVICE3`` names another."""

    name = "pymobiledevice3"

    def __init__(self, program: str) -> None:
        self.program = program
        self.poll = POLL

    @classmethod
    def find(cls) -> Pymobiledevice | None:
        """The program, where it is installed."""
        path = tool.program("PYMOBILEDEVICE3", "pymobiledevice3")
        return None if path is None else cls(path)

    def phones(self) -> Sequence[Phone]:
        """iPhones and iPads that usbmuxd sees."""
        devices = self._json("usbmux", "list", what="listing devices", phone=None)
        if not isinstance(devices, list):
            raise DeviceError("pymobiledevice3 wrote no list of devices")
        phones = {}
        for device in devices:
            udid = device.get("UniqueDeviceID") or device.get("Identifier")
            if device.get("DeviceClass") not in ("iPhone", "iPad", "iPod") or not udid:
                continue
            phones[udid] = Phone(  # one of USB and one of the network may be the same
                udid=printable(str(udid), 64),
                name=printable(str(device.get("DeviceName") or "no name"), 60),
                model=printable(str(device.get("ProductType") or "model unknown"), 60),
                os=printable(str(device.get("ProductVersion") or "unknown"), 20),
            )
        return list(phones.values())

    def apps(self, phone: Phone) -> Sequence[str]:
        """Bundle identifiers with the bench app's ending."""
        words = ("apps", "list", "--udid", phone.udid, "--type", "User")
        apps = self._json(*words, what="listing its apps", phone=phone)
        names = list(apps) if isinstance(apps, dict) else []
        return [name for name in names if name.endswith(faults.APP_SUFFIX)]

    def push(self, phone: Phone, app: str, file: Path, target: str) -> None:
        """``apps push``."""
        words = ("apps", "push", "--udid", phone.udid, "--documents", app, str(file), f"/{target}")
        what = f"the copy of {printable(file.name)}"
        self._ask(
            *words,
            what=what,
            phone=phone,
            seconds=tool.SECONDS + file.stat().st_size / tool.SLOWEST,
        )

    def pull(self, phone: Phone, app: str, source: str, file: Path) -> bool:
        """``apps pull``."""
        file.unlink(missing_ok=True)
        words = ("apps", "pull", "--udid", phone.udid, "--documents", app, f"/{source}", str(file))
        output = tool.run([self.program, "--no-color", *words])
        if output.code == 0 and file.is_file():
            return True
        file.unlink(missing_ok=True)
        message = tool.text(output)
        if output.code == 0 or _ABSENT.search(message):
            return False
        raise faults.classified(str(phone), f"reading {Path(source).name}", message)

    def start(
        self,
        phone: Phone,
        app: str,
        environment: Mapping[str, str],
        *,
        events: str,
        patience: float,
        on_line: Callable[[str], None],
    ) -> Ended:
        """``developer dvt launch``, then looks at the app's events and at its process.

        The signal that ended the app is not told here: an app that left no answer was ended.
        """
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        words = ("developer", "dvt", "launch", "--udid", phone.udid, *variables, app)
        answer = self._ask(*words, what="starting the bench app", phone=phone)
        match = _PID.search(answer)
        if match is None:
            raise DeviceError(f"{phone}: pymobiledevice3 did not say which process it started")
        return self._follow(phone, app, match[1], events, patience, on_line)

    def _follow(
        self,
        phone: Phone,
        app: str,
        pid: str,
        events: str,
        patience: float,
        on_line: Callable[[str], None],
    ) -> Ended:
        told, gone, moved = 0, 0, time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as folder:
            file = Path(folder) / "events"
            while gone < _GONE:
                time.sleep(self.poll)
                gone = gone + 1 if not self._runs(phone, pid) else 0
                lines = _lines(file, pid) if self.pull(phone, app, events, file) else []
                for line in lines[told:]:
                    on_line(line)
                    moved = time.monotonic()
                told = max(told, len(lines))
                if any(_event(line).get("event") == "ended" for line in lines):
                    return Ended()
                if time.monotonic() - moved > patience:
                    words = ("developer", "dvt", "kill", "--udid", phone.udid, pid)
                    tool.run([self.program, "--no-color", *words])
                    return Ended(stopped=f"nothing for {patience:g} s")
        return Ended(signal=9)

    def _runs(self, phone: Phone, pid: str) -> bool:
        words = ("developer", "dvt", "is-running-pid", "--udid", phone.udid, pid)
        return self._ask(*words, what="looking at the app", phone=phone).strip() == "true"

    def _json(self, *words: str, what: str, phone: Phone | None) -> Any:
        answer = self._ask(*words, what=what, phone=phone)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            name = "pymobiledevice3" if phone is None else str(phone)
            raise DeviceError(f"{name}: {what}: pymobiledevice3 wrote no JSON") from None

    def _ask(
        self, *words: str, what: str, phone: Phone | None, seconds: float = tool.SECONDS
    ) -> str:
        """What a command writes; raises ``DeviceError`` where it failed."""
        output = tool.run([self.program, "--no-color", *words], seconds=seconds)
        name = "pymobiledevice3" if phone is None else str(phone)
        if output.stopped is not None:
            raise faults.DeviceLost(f"{name} does not answer: {what}: {output.stopped}")
        if output.code != 0:
            raise faults.classified(name, what, tool.text(output))
        return output.out.decode("utf-8", "replace")


def _lines(file: Path, pid: str) -> list[str]:
    """The whole lines that a process has written; none where they are an earlier one's."""
    *lines, _ = file.read_bytes().decode("utf-8", "replace").split("\n")
    return lines if lines and str(_event(lines[0]).get("pid")) == pid else []


def _event(line: str) -> dict[str, Any]:
    """A line of JSON; {} where it is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}
