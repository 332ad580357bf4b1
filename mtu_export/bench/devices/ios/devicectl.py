"""Apple's ``xcrun devicectl`` (Xcode 15 and later): its JSON alone is read, but for errors."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export.bench.devices.adb import process
from mtu_export.bench.devices.adb.client import printable
from mtu_export.bench.devices.ios import faults, tool
from mtu_export.bench.devices.ios.tool import Ended, Phone
from mtu_export.spec import DeviceError, RuntimeUnavailable

_OLDEST = 17
"""The oldest iOS that devicectl reaches."""
_SIGNAL = re.compile(r"App terminated due to signal (\d{1,3})")
_ABSENT = re.compile(
    r"doesn.t exist|No such file|does not exist|not found|NSCocoaErrorDomain error (4|260)\b",
    re.IGNORECASE,
)


class Devicectl:
    """devicectl of the selected Xcode; ``$XCRUN`` names another xcrun than that of PATH."""

    name = "devicectl"

    def __init__(self, xcrun: str) -> None:
        self.xcrun = xcrun

    @classmethod
    def find(cls) -> Devicectl | None:
        """devicectl, where there is an xcrun that has it."""
        xcrun = tool.program("XCRUN", "xcrun")
        if xcrun is None:
            return None
        try:
            output = tool.run([xcrun, "--find", "devicectl"])
        except RuntimeUnavailable:
            return None
        return cls(xcrun) if output.code == 0 and output.stopped is None else None

    def phones(self) -> Sequence[Phone]:
        """iPhones and iPads that are connected; those it only remembers are left out."""
        result = self._ask("list", "devices", what="listing devices", phone=None)
        devices = result.get("devices")
        phones = [_phone(each) for each in devices if isinstance(each, dict)] if devices else []
        return [phone for phone in phones if phone is not None]

    def apps(self, phone: Phone) -> Sequence[str]:
        """Bundle identifiers with the bench app's ending."""
        words = ("device", "info", "apps", "--device", phone.udid)
        apps = self._ask(*words, what="listing its apps", phone=phone).get("apps")
        names = [str(_at(each, "bundleIdentifier")) for each in apps or []]
        return [name for name in names if name.endswith(faults.APP_SUFFIX)]

    def push(self, phone: Phone, app: str, file: Path, target: str) -> None:
        """``device copy to``, a file at a time, as it names a folder in more ways than one."""
        self._ask(
            *("device", "copy", "to", *self._container(phone, app)),
            *("--source", str(file), "--destination", target),
            what=f"the copy of {printable(file.name)}",
            phone=phone,
            seconds=tool.SECONDS + file.stat().st_size / tool.SLOWEST,
        )

    def pull(self, phone: Phone, app: str, source: str, file: Path) -> bool:
        """``device copy from``."""
        file.unlink(missing_ok=True)
        words = ("device", "copy", "from", *self._container(phone, app))
        output, document = self._run(
            *words, "--source", source, "--destination", str(file), seconds=tool.SECONDS
        )
        if output.code == 0 and file.is_file():
            return True
        message = _message(output, document)
        error = faults.classified(str(phone), f"reading {Path(source).name}", message)
        # a phone or an app that is gone is "not found" too
        is_gone = isinstance(error, faults.DeviceLost | faults.AppMissing)
        if output.code == 0 or (not is_gone and _ABSENT.search(message)):
            return False
        raise error

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
        """``device process launch --console``: its end is that of the app."""
        pids: list[int] = []

        def line(text: str) -> None:
            pid = _pid(text)
            pids.extend([] if pid is None else [pid])
            on_line(text)

        words = ("device", "process", "launch", "--device", phone.udid, "--terminate-existing")
        output, document = self._run(
            *(*words, "--console", "--environment-variables", json.dumps(dict(environment)), app),
            seconds=7 * 86_400.0,
            patience=patience,
            on_line=line,
        )
        if output.stopped is not None:
            if pids:
                self._run(
                    *("device", "process", "terminate", "--device", phone.udid),
                    *("--pid", str(pids[-1]), "--kill"),
                    seconds=tool.SECONDS,
                )
            return Ended(stopped=output.stopped)
        message = _message(output, document)
        signal = _SIGNAL.search(message)
        if signal is not None:
            return Ended(signal=int(signal[1]))
        if output.code != 0 and not pids:
            raise faults.classified(str(phone), "starting the bench app", message)
        if output.code != 0:
            error = faults.classified(str(phone), "waiting for the bench app", message)
            if isinstance(error, faults.DeviceLost):
                raise error
        return Ended()

    def _container(self, phone: Phone, app: str) -> tuple[str, ...]:
        domain = ("--domain-type", "appDataContainer", "--domain-identifier", app)
        return ("--device", phone.udid, *domain)

    def _ask(
        self, *words: str, what: str, phone: Phone | None, seconds: float = tool.SECONDS
    ) -> dict[str, Any]:
        """The ``result`` of a command; raises ``DeviceError`` where it failed."""
        output, document = self._run(*words, seconds=seconds)
        name = "devicectl" if phone is None else str(phone)
        if output.stopped is not None:
            raise faults.DeviceLost(f"{name} does not answer: {what}: {output.stopped}")
        result = document.get("result")
        if output.code != 0 or not isinstance(result, dict):
            if output.code == 0:
                raise DeviceError(f"{name}: {what}: devicectl wrote no JSON of the known form")
            raise faults.classified(name, what, _message(output, document))
        return result

    def _run(
        self,
        *words: str,
        seconds: float,
        patience: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> tuple[process.Output, dict[str, Any]]:
        """A command's output and its JSON, {} where there is none that can be read."""
        with tempfile.TemporaryDirectory(prefix="mtu-bench-") as folder:
            file = Path(folder) / "devicectl.json"
            # an option of each subcommand; what follows the app's name is the app's
            end = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
            option = ("--json-output", str(file))
            command = [self.xcrun, "devicectl", *words[:end], *option, *words[end:]]
            output = tool.run(command, seconds=seconds, patience=patience, on_line=on_line)
            try:
                if file.stat().st_size > tool.LONGEST_ANSWER:
                    return output, {}
                document = json.loads(file.read_bytes())
            except (OSError, ValueError, RecursionError):
                return output, {}
        return output, document if isinstance(document, dict) else {}


def _at(value: Any, *keys: str) -> Any:
    """A value deep in JSON; None where a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _message(output: process.Output, document: dict[str, Any]) -> str:
    """What a command says went wrong: its streams, and the chain of errors of its JSON."""
    lines, error = [tool.text(output)], document.get("error")
    while isinstance(error, dict) and len(lines) < 20:
        described = _at(error, "userInfo", "NSLocalizedDescription", "string")
        reason = _at(error, "userInfo", "NSLocalizedFailureReason", "string")
        lines += [str(each) for each in (described, reason) if each]
        lines.append(f"({error.get('domain')} error {error.get('code')})")
        error = _at(error, "userInfo", "NSUnderlyingError", "error")
    return "\n".join(lines)


def _phone(device: dict[str, Any]) -> Phone | None:
    """A device of the list as a phone; None for watches, televisions and what is away."""
    hardware, properties = device.get("hardwareProperties"), device.get("deviceProperties")
    connection = device.get("connectionProperties")
    if _at(hardware, "platform") not in ("iOS", "iPadOS") or _at(hardware, "reality") == "virtual":
        return None
    paired = _at(connection, "pairingState") == "paired"
    if paired and _at(connection, "tunnelState") == "unavailable":
        return None
    udid = _at(hardware, "udid") or device.get("identifier")
    if not isinstance(udid, str) or not re.fullmatch(r"[0-9A-Za-z-]{8,64}", udid):
        return None
    phone = Phone(
        udid=udid,
        name=printable(str(_at(properties, "name") or "no name"), 60),
        model=printable(str(_at(hardware, "productType") or "model unknown"), 60),
        os=printable(str(_at(properties, "osVersionNumber") or "unknown"), 20),
    )
    trouble = None
    if not paired:
        trouble = "has not allowed this computer: unlock it, connect it by USB and tap Trust"
    elif phone.major and phone.major < _OLDEST:
        trouble = f"is too old for devicectl, which needs iOS {_OLDEST}: use pymobiledevice3"
    elif _at(properties, "developerModeStatus") == "disabled":
        trouble = f"has Developer Mode switched off: {faults.DEVELOPER_MODE}"
    return Phone(**{**vars(phone), "trouble": trouble})


def _pid(line: str) -> int | None:
    """The process number that the app tells as its first line."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    pid = event.get("pid") if isinstance(event, dict) else None
    return pid if isinstance(pid, int) and pid > 1 else None
