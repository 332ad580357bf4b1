"""The adb client: one phone, commands with deadlines, answers that are limited and printable.

Nothing here changes a setting of the phone, clears a log or restarts adb's server.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtu_export.bench.devices import DeviceLost, Progress
from mtu_export.bench.devices.adb import process
from mtu_export.spec import DeviceError, RuntimeUnavailable

MARK = "mtu-export:exit:"
"""Ends what each command writes, with its exit code: also where adb has no shell protocol, and
an answer without it was cut off."""
LONGEST_ANSWER = 1_000_000
SECONDS = 30.0
"""Deadline of a command that only looks."""
_END = re.compile(rb"\r?\n?" + MARK.encode() + rb"(\d{1,3})\r?\n?$")
_STATE = (
    "device|offline|unauthorized|authorizing|connecting|no permissions|recovery|rescue|sideload|"
    "bootloader|host|unknown|detached"
)
_LISTED = re.compile(rf"^(\S.*?)\s+({_STATE})\b(.*)$")
_SLOWEST = 250_000
"""Bytes a second that a push must reach on the whole."""
_SILENCE = 60.0
"""Seconds without a byte more on the phone after which a push is stuck."""
_POLL = 2.0


def printable(text: str, longest: int = 200) -> str:
    """A text of the phone as one line for people."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line[:longest])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command on the phone left: its exit code and both streams."""

    code: int
    out: str
    err: str = ""
    stopped: str | None = None

    @property
    def last_line(self) -> str:
        """The last line of stderr, or of stdout, that is no event of the runner."""
        for text in (self.err, self.out):
            lines = [line for line in text.splitlines() if line.strip() and line[0] != "{"]
            if lines:
                return printable(lines[-1])
        return ""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A line of ``adb devices -l``."""

    serial: str
    state: str
    model: str

    def __str__(self) -> str:
        return f"{self.serial} ({self.state}, {self.model})"


def program() -> str:
    """Path of adb: ``$ADB``, or the one in PATH."""
    name = os.environ.get("ADB") or "adb"
    path = shutil.which(name)
    if path is None:
        raise RuntimeUnavailable(
            f"{name} is not installed: Android's platform-tools have it (Debian: "
            "apt install adb); $ADB names one that is not in PATH"
        )
    return path


def listed(adb: str) -> tuple[Listed, ...]:
    """The phones that adb's server sees; starts the server where none runs."""
    output = _run([adb, "devices", "-l"], seconds=SECONDS)
    text = output.out.decode("utf-8", "replace")
    _, heading, lines = text.partition("List of devices attached")
    if output.code != 0 or not heading:
        reason = output.stopped or _reason(output) or f"exit {output.code}"
        raise DeviceError(f"adb's server does not start: {reason}")
    matches = (_LISTED.match(line) for line in lines.splitlines())
    return tuple(
        Listed(
            serial=printable(match[1]),
            state=match[2],
            model=printable(_field("model", match[3]), 60),
        )
        for match in matches
        if match
    )


def _field(name: str, text: str) -> str:
    match = re.search(rf"\b{name}:(\S+)", text)
    return match[1] if match else "model unknown"


def choose(phones: Sequence[Listed], serial: str | None) -> Listed:
    """The phone to use. Raises ``DeviceError`` in one line where it is not one that answers."""
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    shown = "; ".join(map(str, phones)) or "none"
    if serial is not None:
        matching = [phone for phone in phones if phone.serial == serial]
        if not matching:
            raise DeviceError(f"adb sees no phone {printable(serial)}; it sees: {shown}")
    else:
        matching = list(phones)
    if not matching:
        raise DeviceError(
            "adb sees no phone: connect one by USB, switch on its USB debugging "
            "(Settings, Developer options), and see it in: adb devices"
        )
    if len(matching) > 1:
        raise DeviceError(
            f"adb sees {len(matching)} phones; name one with --device adb:SERIAL: {shown}"
        )
    (phone,) = matching
    if phone.state != "device":
        raise DeviceError(f"{phone.serial} {_STATES.get(phone.state, f'is {phone.state}')}")
    return phone


_STATES = {
    "unauthorized": "is unauthorized: unlock the phone and allow USB debugging for this computer",
    "authorizing": "is not authorized yet: unlock the phone and allow USB debugging",
    "offline": "is offline: it does not answer; unplug it and plug it in again",
    "connecting": "is still connecting: try again in a few seconds",
    "no permissions": "may not be opened by this user (Linux: udev rules of the phone's USB "
    "vendor, Debian: apt install android-sdk-platform-tools-common)",
    "recovery": "is in recovery: start Android",
    "sideload": "is in sideload mode: start Android",
    "bootloader": "is in its bootloader: start Android",
}


class Adb:
    """One phone behind the adb client."""

    def __init__(self, adb: str, serial: str, progress: Progress | None = None) -> None:
        self.program = adb
        self.serial = serial
        self.progress: Progress = progress or (lambda line: None)

    def command(self, *words: str) -> list[str]:
        """A command line of adb for this phone."""
        return [self.program, "-s", self.serial, *words]

    def by_hand(self, command: str) -> str:
        """The line that a user types to run a command on the phone."""
        return f"adb -s {shlex.quote(self.serial)} shell {command}"

    def shell_words(self, command: str) -> list[str]:
        """The command line that runs a command on the phone and marks its end."""
        return self.command("shell", f"{command}\nprintf '\\n%s%d\\n' {MARK} $?")

    def shell(
        self,
        command: str,
        *,
        what: str = "a command",
        seconds: float | None = None,
        patience: float | None = None,
        limit: int = LONGEST_ANSWER,
        on_line: Callable[[str], None] | None = None,
    ) -> Answer:
        """Run a command of the phone's shell; ``what`` it is, for errors.

        Where it was stopped for time or size, the answer says so. Raises ``DeviceLost`` where the
        connection ended before the command did.
        """
        output = _run(
            self.shell_words(command),
            seconds=SECONDS if seconds is None else seconds,
            patience=patience,
            limit=limit,
            on_line=on_line,
        )
        err = output.err.decode("utf-8", "replace")
        end = _END.search(output.out)
        if end is None and output.stopped is None:
            raise self.lost(what, _reason(output))
        out = output.out[: end.start()] if end else output.out
        code = int(end[1]) if end else -1
        return Answer(
            code=code, out=out.decode("utf-8", "replace"), err=err, stopped=output.stopped
        )

    def look(self, command: str, *, what: str, seconds: float | None = None) -> str:
        """What a short command writes. Raises ``DeviceLost`` where it does not end."""
        answer = self.shell(command, what=what, seconds=seconds)
        if answer.stopped is not None and "bytes" in answer.stopped:
            raise DeviceError(f"{self.serial}: {what}: {answer.stopped}")
        if answer.stopped is not None:
            raise DeviceLost(f"{self.serial} does not answer: {what}: {answer.stopped}")
        return answer.out

    def state(self) -> str | None:
        """The phone's state now, None where adb does not see it."""
        with suppress(DeviceError):
            for phone in listed(self.program):
                if phone.serial == self.serial:
                    return phone.state
        return None

    def returns(self, seconds: float) -> bool:
        """Whether a phone that went away is back within a time."""
        deadline = time.monotonic() + seconds
        while self.state() != "device":
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def lost(self, what: str, reason: str = "") -> DeviceLost:
        """The error of a connection that ended in the middle of something."""
        detail = f" (adb: {reason})" if reason else ""
        if self.state() == "device":
            return DeviceLost(
                f"{self.serial}: the connection was cut in the middle of {what}{detail}"
            )
        return DeviceLost(
            f"{self.serial} went away in the middle of {what}: unplugged, switched off or out of "
            f"reach{detail}"
        )

    # ------------------------------------------------------------------------------------- push

    def push(self, file: Path, target: str) -> None:
        """Copy a file to the phone.

        Ended after a time by its size, and where no byte arrives for a while. Raises ``DeviceLost``
        for a connection that ended, ``DeviceError`` for a phone that is full or refuses.
        """
        size = file.stat().st_size
        deadline = time.monotonic() + 60 + size / _SLOWEST
        arrived, moved, shown = 0, time.monotonic(), time.monotonic()
        with process.reading(self.command("push", str(file), target)) as (child, chunks):
            while child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=_POLL)
                    break
                before, arrived = arrived, self._size(file, target) or arrived
                now = time.monotonic()
                if arrived != before:
                    moved = now
                if now > deadline or now - moved > _SILENCE:
                    raise DeviceLost(
                        f"{self.serial}: the copy of {file.name} is stuck at {arrived:,} of "
                        f"{size:,} bytes"
                    )
                if now - shown > 5:
                    shown = now
                    self.progress(f"{file.name}: {arrived / 1e6:,.0f} of {size / 1e6:,.0f} MB")
            text = _drain(chunks)
        if child.returncode != 0:
            raise self._push_error(file, text)

    def _size(self, file: Path, target: str) -> int | None:
        command = f"wc -c < {shlex.quote(target)} 2>/dev/null"
        digits = self.shell(command, what=f"the push of {file.name}", limit=100).out.strip()
        return int(digits) if re.fullmatch(r"[0-9]{1,15}", digits) else None

    def _push_error(self, file: Path, text: str) -> DeviceError:
        if "No space left" in text:
            return DeviceError(f"{self.serial} is full: {file.name} does not fit")
        reason = reason_of(text, last=True)
        if self.state() != "device" or not re.search("denied|Read-only|couldn't create", text):
            return self.lost(f"the push of {file.name}", reason)
        return DeviceError(f"{self.serial} refuses {file.name}: {reason}")


def _drain(chunks: process.Chunks) -> str:
    text, open_streams = b"", 2
    while open_streams:
        _, chunk = chunks.get(timeout=10)
        open_streams -= not chunk
        text += chunk[: 10_000 - len(text)]
    return text.decode("utf-8", "replace")


def reason_of(text: str, *, last: bool = False) -> str:
    """The line of adb's output that says why it failed; ``last``: what is after its last colon."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("*")]
    line = next((line for line in lines if "error" in line or "cannot" in line), "")
    line = re.sub(r"^(adb: )?(error: )?", "", line)
    return printable(line.rpartition(": ")[2] if last else line)


def _reason(output: process.Output) -> str:
    return reason_of((output.err + b"\n" + output.out).decode("utf-8", "replace"))


def _run(
    command: Sequence[str],
    *,
    seconds: float,
    patience: float | None = None,
    limit: int = LONGEST_ANSWER,
    on_line: Callable[[str], None] | None = None,
) -> process.Output:
    try:
        return process.read(
            command, seconds=seconds, patience=patience, limit=limit, on_line=on_line
        )
    except OSError as error:
        raise RuntimeUnavailable(f"{command[0]} does not run: {error.strerror}") from None
