"""What a program for iPhones can do: list them, copy files, start the bench app and wait for it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtu_export.bench.devices.adb import process
from mtu_export.bench.devices.ios import faults
from mtu_export.spec import DeviceError, RuntimeUnavailable

SECONDS = 60.0
"""Deadline of a command that only looks."""
LONGEST_ANSWER = 16_000_000
SLOWEST = 500_000
"""Bytes a second that a copy must reach on the whole."""
OLDEST = 16


@dataclass(frozen=True, kw_only=True)
class Phone:
    """An iPhone or iPad that a program sees; ``trouble`` is why it cannot be used."""

    udid: str
    name: str
    model: str
    os: str
    trouble: str | None = None

    def __str__(self) -> str:
        return f"{self.udid} ({self.name}, {self.model}, iOS {self.os})"

    @property
    def major(self) -> int:
        """The first number of its system; 0 where it is not told."""
        digits = self.os.partition(".")[0]
        return int(digits) if digits.isdecimal() else 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start of the app ended: ``signal`` where one ended it, ``stopped`` where it hung."""

    signal: int | None = None
    stopped: str | None = None


class Tool(Protocol):
    """A program that reaches phones. Each method raises ``DeviceError`` in one line, and
    ``DeviceLost`` where the phone is gone."""

    name: str

    def phones(self) -> Sequence[Phone]:
        """The phones that it sees."""
        ...

    def apps(self, phone: Phone) -> Sequence[str]:
        """Bundle identifiers of the bench app on a phone, under whatever prefix."""
        ...

    def push(self, phone: Phone, app: str, file: Path, target: str) -> None:
        """Copy a file into the app's container; the folder of ``target`` is there."""
        ...

    def pull(self, phone: Phone, app: str, source: str, file: Path) -> bool:
        """Copy a file from the app's container; False where there is none."""
        ...

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
        """Start the app anew and wait for its end.

        ``on_line`` gets the lines that it writes, on stdout and to the file ``events`` of its
        container. After ``patience`` seconds without one it is ended.
        """
        ...


def find() -> Tool:
    """The program that this machine has. Raises ``RuntimeUnavailable``."""
    from mtu_export.bench.devices.ios.devicectl import Devicectl
    from mtu_export.bench.devices.ios.pymobiledevice import Pymobiledevice

    for tool in (Devicectl.find(), Pymobiledevice.find()):
        if tool is not None:
            return tool
    if platform.system() == "Darwin":
        way = "install Xcode 15 or later and start it once (xcrun devicectl)"
    else:
        way = "install pymobiledevice3 (pipx install pymobiledevice3), or use a Mac with Xcode"
    raise RuntimeUnavailable(f"no program here reaches an iPhone: {way}")


def program(variable: str, name: str) -> str | None:
    """The path of a program, which an environment variable may name."""
    return shutil.which(os.environ.get(variable) or name)


def run(
    command: Sequence[str],
    *,
    seconds: float = SECONDS,
    patience: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> process.Output:
    """Run a program under a deadline; raises ``RuntimeUnavailable`` where it does not start."""
    try:
        return process.read(
            command, seconds=seconds, patience=patience, limit=LONGEST_ANSWER, on_line=on_line
        )
    except OSError as error:
        raise RuntimeUnavailable(f"{command[0]} does not run: {error.strerror}") from None


def text(output: process.Output) -> str:
    """Both streams of a program, stderr first."""
    return (output.err + b"\n" + output.out).decode("utf-8", "replace")


def choose(phones: Sequence[Phone], udid: str | None) -> Phone:
    """The phone to use. Raises ``DeviceError`` in one line where it is not one that answers."""
    shown = "; ".join(map(str, phones)) or "none"
    matching = [phone for phone in phones if udid in (None, phone.udid)]
    if udid is not None and not matching:
        raise DeviceError(f"no iPhone {udid} is connected; connected: {shown}")
    usable = [phone for phone in matching if phone.trouble is None]
    if udid is None and len(usable) > 1:
        raise DeviceError(
            f"{len(usable)} iPhones are connected; name one with --device ios:UDID: {shown}"
        )
    if usable:
        return usable[0]
    if matching:
        raise DeviceError("; ".join(f"{each} {each.trouble}" for each in matching))
    raise DeviceError(
        "no iPhone is connected: connect one by USB, unlock it and tap Trust; Developer Mode is "
        f"on where this is allowed ({faults.DEVELOPER_MODE})"
    )


def choose_app(apps: Sequence[str], phone: Phone) -> str:
    """The bundle identifier of the bench app. Raises ``DeviceError``."""
    if not apps:
        raise faults.missing(str(phone))
    if len(apps) > 1:
        raise DeviceError(
            f"{phone} has {len(apps)} bench apps: {', '.join(sorted(apps))}; remove all but one"
        )
    return apps[0]
