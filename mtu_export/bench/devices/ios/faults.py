"""What programs for iPhones say when something is wrong, and the line that the user sees.

The texts are those of Apple's devicectl and of pymobiledevice3; where neither is known, the last
line of the program's error stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.adb.client import printable
from mtu_export.spec import DeviceError

PROJECT = "runtime/ios/Apps/MTUApps.xcodeproj"
APP_SUFFIX = ".mtuexport.bench"
"""The end of the bench app's bundle identifier; what is before it is the user's own."""
INSTALL = (
    f"open {PROJECT} of this project's sources in Xcode 16, choose the scheme Bench, set your team "
    "(target Bench, Signing & Capabilities), choose the phone and press Run once"
)
_LOG = re.compile(r"^[\d-]{10} [\d:.,]+ \S+ \S+ (?=[A-Z]+ )")
"""What pymobiledevice3 puts before a line of its log."""
DEVELOPER_MODE = "Settings, Privacy & Security, Developer Mode; the phone starts again"


class AppMissing(DeviceError):
    """The bench app is not on the phone."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Texts that name one fault, and what the user reads of it."""

    pattern: re.Pattern[str]
    error: Callable[[str], DeviceError]


def _fault(pattern: str, line: str, kind: type[DeviceError] = DeviceError) -> Fault:
    return Fault(
        pattern=re.compile(pattern, re.IGNORECASE),
        error=lambda name: kind(f"{name} {line}"),
    )


def missing(name: str) -> AppMissing:
    """The app is not installed."""
    return AppMissing(f"{name} has no bench app: {INSTALL}; then run this command again")


FAULTS = (
    Fault(
        pattern=re.compile(
            r"FBSApplicationLibrary\) returned nil|ContainerLookupErrorDomain|is not installed|"
            r"No app with bundle ID|requested application .* could not be found",
            re.IGNORECASE,
        ),
        error=missing,
    ),
    _fault(
        r"could not be,? unlocked|failed preflight checks|\breason.{0,3}\bLocked\b|DeviceLocked|"
        r"password protected|Unlock the device|device is locked",
        "is locked: unlock it, keep it unlocked and its screen on until the end",
    ),
    _fault(
        r"not been explicitly trusted|invalid code signature|profile.{0,40}expired",
        "does not trust the app's developer: on it choose Settings, General, VPN & Device "
        "Management, your Apple ID, Trust; the app of a free Apple ID ends after 7 days, so press "
        "Run in Xcode again",
    ),
    _fault(
        r"Trust dialog|refused to trust|is not paired|has not been paired|NotPaired|"
        r"must be paired|Trust This Computer",
        "has not allowed this computer: unlock it, connect it by USB and tap Trust",
    ),
    _fault(
        r"Developer Mode is (disabled|not enabled|off)|DeveloperModeIsNotEnabled",
        f"has Developer Mode switched off: {DEVELOPER_MODE}",
    ),
    _fault(
        r"developer disk image|DeveloperDiskImage|Failed to start service",
        "is not prepared for development: keep it unlocked and open Xcode's window Devices and "
        "Simulators (with pymobiledevice3: pymobiledevice3 mounter auto-mount)",
    ),
    _fault(
        r"No space left|NO_SPACE_LEFT|not enough (free |disk )?space|NSCocoaErrorDomain error 640",
        "is full",
    ),
    _fault(
        r"CoreDeviceError error (1000|1011|4000|4016)\b|specified device was not found|"
        r"disconnected|not connected|"
        r"terminated abruptly|No device with the requested|Connection (was )?"
        r"(reset|interrupted|refused|terminated|aborted)|tunnel connection failed",
        "does not answer: unplugged, switched off or out of reach",
        DeviceLost,
    ),
)


def classified(name: str, what: str, text: str) -> DeviceError:
    """The error of a program that failed while doing something with a phone."""
    for fault in FAULTS:
        if fault.pattern.search(text):
            return fault.error(name)
    return DeviceError(f"{name}: {what} failed: {last_line(text)}")


def last_line(text: str) -> str:
    """The line of a program's output that says most: the first error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -─")]
    lines = [_LOG.sub("", line) for line in lines if "provisioning paramter" not in line]
    errors = [line for line in lines if re.match(r"(?i)error\b", line)]
    line = printable((errors or lines[-1:] or ["without a word"])[0])
    return re.sub(r"^(ERROR:? )+", "", line)
