"""What lies on the phone during a run, and its removal.

Everything is below ``/data/local/tmp/mtu-export/<id>``, a folder that the session creates. A shell
on the phone, the guard, waits for the end of its input, which comes with the end of this process
or of the connection, and removes the folder: so it goes too where this process is killed or the
phone is unplugged. What is kept lies in ``kept/<hash>`` beside it, named by its content.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty
from shlex import quote

from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.adb import process
from mtu_export.bench.devices.adb.client import Adb, printable, reason_of
from mtu_export.bundle import sha256
from mtu_export.spec import DeviceError

TEMPORARY = "/data/local/tmp"
BASE = f"{TEMPORARY}/mtu-export"
KEPT = f"{BASE}/kept"
MARGIN = 200_000_000
"""Bytes that stay free on the phone."""
RETURN = 10.0
"""Seconds that the end of a session waits for a phone that went away."""
_HASHES_A_SECOND = 20e6
_READY = b"ready"

Files = Mapping[str, Path]
"""Relative path on the phone -> file here."""


def name_of(identity: str) -> str:
    """The name of a folder for a content of this identity."""
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def ending(folder: str) -> str:
    """The shell commands that end what runs in a folder: processes that have it as their working
    folder, so that no other one can be ended."""
    return (
        'for p in /proc/[0-9]*; do case "$(readlink "$p/cwd" 2>/dev/null)" in '
        f'{folder}|{folder}/*) kill -9 "${{p#/proc/}}" 2>/dev/null;; esac; done; '
    )


def removal(folder: str) -> str:
    """The shell commands that end what runs in a folder and remove it."""
    return f"{ending(folder)}rm -rf {folder}; rmdir {KEPT} {BASE} 2>/dev/null; test ! -e {folder}"


class Session:
    """A folder on the phone, from its creation to its removal.

    ``ending`` gives, for the folder, shell commands that come before its removal.
    """

    def __init__(
        self, adb: Adb, *, keep: bool = False, ending: Callable[[str], str] = lambda folder: ""
    ) -> None:
        self.adb = adb
        self.keep = keep
        self.folder = f"{BASE}/{secrets.token_hex(6)}"
        self._removal = ending(self.folder) + removal(self.folder)
        self.pushed_bytes = 0
        self._verified: dict[str, set[str]] = {}
        self._places: dict[str, str] = {}
        self._hashes = False
        self._guard: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    # -------------------------------------------------------------------------- begin and end

    def open(self) -> None:
        """Create the folder, with its guard; raises ``DeviceError``."""
        command = (
            f"{{ mkdir -p {self.folder} || mkdir -p {self.folder}; }} && trap '' HUP && "
            f"echo ready && {{ cat >/dev/null; {self._removal}; }}"
        )
        guard, chunks = self._stack.enter_context(
            process.reading(self.adb.command("shell", command), stdin=subprocess.PIPE)
        )
        text, ends = b"", 0
        with suppress(Empty):
            while _READY not in text and ends < 2:
                _, chunk = chunks.get(timeout=30)
                ends += not chunk
                text += chunk
        if _READY not in text:
            self._stack.close()
            answer = text.decode("utf-8", "replace")
            if self.adb.state() != "device":
                raise self.adb.lost("making a folder", reason_of(answer))
            reason = printable(answer) or "no answer"
            raise DeviceError(f"{self.adb.serial}: {BASE} cannot be used: {reason}")
        self._guard = guard
        self._hashes = "sha256sum" in self.adb.look(
            "command -v sha256sum", what="looking for sha256sum"
        )

    @property
    def is_open(self) -> bool:
        """Whether the folder is there: its guard lives as long as the connection."""
        return self._guard is not None and self._guard.poll() is None

    def close(self) -> str | None:
        """End what runs in the folder, remove it; returns a line where it may be left."""
        if self._guard is None:
            self._stack.close()
            return None
        try:
            if self._removed():
                return None
            return self._line()
        finally:
            self._end_guard()

    def _line(self) -> str:
        return (
            f"{self.adb.serial} does not answer: {self.folder} may be left on it, where its own "
            "shell has not removed it; remove it with: " + self.adb.by_hand(f"rm -rf {self.folder}")
        )

    def _end_guard(self) -> None:
        """End the guard's input and wait for it: it removes the same folder at the same time."""
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                guard.wait(timeout=2)
        self._stack.close()

    def _removed(self) -> bool:
        for _ in range(3):
            if not self.adb.returns(RETURN):
                return False
            with suppress(DeviceError):
                if self.adb.shell(self._removal, what="the removal", seconds=60).code == 0:
                    return True
        return False

    # ------------------------------------------------------------------------------- contents

    def place(self, key: str, files: Files, wanted: Collection[str] = ()) -> str:
        """Bring files below one folder of the phone; returns that folder.

        ``key`` names the content. What is there already, from this session or kept by an earlier
        one, is checked and not copied again. For want of space this session's other contents are
        removed, except those that are ``wanted``.
        """
        there = self._verified.setdefault(key, set())
        missing = {name: file for name, file in files.items() if name not in there}
        folder = self._places.get(key)
        kept = f"{KEPT}/{key}"
        if missing and (self.keep or folder in (None, kept)):
            right = self._right(kept, missing)
            if self.keep or right == set(missing):
                folder, there = kept, there | right
            else:
                if folder == kept:  # what is kept lacks some: nothing is written there
                    self.adb.look(f"rm -f {self.folder}/{key}", what="removing a link")
                folder, there, missing = f"{self.folder}/{key}", set(), dict(files)
            missing = {name: file for name, file in missing.items() if name not in there}
        assert folder is not None
        if missing:
            self._require_space(missing, {key, *wanted})
            self._push(folder, missing)
            wrong = sorted(set(missing) - self._right(folder, missing))
            if wrong:
                raise DeviceError(
                    f"{self.adb.serial}: {printable(wrong[0])} differs on the phone after the copy"
                )
        self._verified[key] = there | set(missing)
        if self._places.get(key) != folder:
            self._link(key, folder)
        return folder

    def _link(self, key: str, folder: str) -> None:
        """Make a content that lies in ``kept`` seen in the session's folder."""
        if folder == f"{KEPT}/{key}":
            self.adb.look(f"ln -sf ../kept/{key} {self.folder}/", what="making a link")
        self._places[key] = folder

    def _push(self, folder: str, files: Files) -> None:
        """Copy files; their folders are made first."""
        parents = sorted({str(Path(f"{folder}/{name}").parent) for name in files})
        answer = self.adb.shell("mkdir -p " + " ".join(map(quote, parents)), what="making folders")
        if answer.code != 0:
            raise DeviceError(f"{self.adb.serial}: {answer.last_line or 'mkdir failed'}")
        for name, file in files.items():
            size = file.stat().st_size
            if size > 10_000_000:
                self.adb.progress(f"pushing {printable(name)} ({size / 1e6:,.0f} MB)")
            try:
                self.adb.push(file, f"{folder}/{name}")
            except DeviceLost:
                raise
            except DeviceError:
                target = quote(f"{folder}/{name}")
                self.adb.look(f"rm -f {target}", what="removing what does not fit")
                raise
            self.pushed_bytes += size

    def send(self, *files: Path) -> None:
        """Bring files of a single job into the session's folder."""
        named = {file.name: file for file in files}
        self._push(self.folder, named)
        wrong = sorted(set(named) - self._right(self.folder, named))
        if wrong:
            raise DeviceError(f"{self.adb.serial}: {wrong[0]} differs on the phone after the copy")

    def _right(self, folder: str, files: Files) -> set[str]:
        """The files that have here and there the same size, and the same hash where the phone can
        tell."""
        if not files:
            return set()
        check = "{ wc -c < %s && sha256sum < %s; }" if self._hashes else "{ wc -c < %s; }"
        commands = [
            f"echo $({check.replace('%s', quote(f'{folder}/{name}'))} 2>/dev/null)"
            for name in files
        ]
        seconds = 30 + sum(file.stat().st_size for file in files.values()) / _HASHES_A_SECOND
        answers: list[str] = []
        for first in range(0, len(commands), 50):
            text = self.adb.look(
                "\n".join(commands[first : first + 50]),
                what="the check of what was pushed",
                seconds=seconds,
            )
            answers += text.splitlines()
        if len(answers) < len(files):
            raise DeviceLost(f"{self.adb.serial} does not tell the sizes of what is on it")
        pairs = zip(files.items(), answers, strict=False)
        return {name for (name, file), answer in pairs if self._is_same(file, answer)}

    def _is_same(self, file: Path, answer: str) -> bool:
        words = answer.split()
        if not words or words[0] != str(file.stat().st_size):
            return False
        return not self._hashes or (len(words) > 1 and words[1] == sha256(file))

    # ---------------------------------------------------------------------------------- space

    def free(self) -> int | None:
        """Bytes that are free where the folder lies."""
        text = self.adb.look(f"df -k {TEMPORARY}", what="looking for free space")
        match = re.search(r"\s(\d{1,12})\s+(\d{1,12})\s+(\d{1,12})\s+\d{1,3}%", text)
        return int(match[3]) * 1024 if match else None

    def _require_space(self, files: Files, wanted: Collection[str]) -> None:
        needed = sum(file.stat().st_size for file in files.values())
        free = self.free()
        if free is not None and free < needed + MARGIN:
            for key in [key for key in self._places if key not in wanted]:
                self.adb.look(f"rm -rf {self.folder}/{key}", what="making room", seconds=60)
                del self._places[key], self._verified[key]
            free = self.free()
        if free is not None and free < needed + MARGIN:
            raise DeviceError(
                f"{self.adb.serial} is full: {TEMPORARY} has {free / 1e6:,.0f} MB free; "
                f"{needed / 1e6:,.1f} MB are to be pushed and {MARGIN / 1e6:,.0f} MB stay free"
            )
