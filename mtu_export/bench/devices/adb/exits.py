"""Why Android has ended an app: what the system keeps of the last processes of a package.

``dumpsys activity exit-info`` is there from Android 11 on; its fields are those of
``android.app.ApplicationExitInfo``, one a line or several.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mtu_export.bench.devices.adb.client import Adb

_RECORD = re.compile(r"ApplicationExitInfo #\d+:")
_CRASHED = {
    1: "it ended itself",
    4: "it crashed: an exception that nothing caught",
    5: "it crashed in native code",
    6: "it did not answer the system",
    7: "it did not start in time",
    8: "a permission of it was changed",
    9: "it was ended for what it used",
    10: "the user has ended it",
    11: "the user was stopped",
    12: "what it depended on has ended",
    13: "the system has ended it",
    14: "the system has ended it while it was frozen",
    15: "it was changed while it ran",
    16: "it was updated while it ran",
}
"""Reason -> words, but for the two that may be for want of memory."""
_SIGNALED, _LOW_MEMORY, _SIGKILL = 2, 3, 9


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a process ended: ``reason`` and ``status`` of ``ApplicationExitInfo``."""

    reason: int
    status: int

    @property
    def is_for_memory(self) -> bool:
        """Whether it was killed for want of memory, as far as the system tells: on many phones
        that is signal 9 without a reason."""
        return self.reason == _LOW_MEMORY or (self.reason == _SIGNALED and self.status == _SIGKILL)

    @property
    def words(self) -> str:
        """Why, in a few words."""
        if self.reason == _SIGNALED:
            return f"it was ended by signal {self.status}"
        words = _CRASHED.get(self.reason, "the system does not tell why")
        if self.reason == 5 and self.status > 0:
            words += f" (signal {self.status})"
        return f"{words} (exit code {self.status})" if self.reason == 1 else words


def last(adb: Adb, package: str, pid: int | None) -> Exit | None:
    """How this process of a package has ended; None where the phone does not tell."""
    text = adb.look(
        f"dumpsys activity exit-info {package} 2>/dev/null | head -c 200000",
        what="asking why the app ended",
    )
    for record in _RECORD.split(text)[1:]:
        if pid is not None and _field(record, "pid") == pid:
            reason = _field(record, "reason")
            return (
                None
                if reason is None
                else Exit(reason=reason, status=_field(record, "status") or 0)
            )
    return None


def _field(record: str, name: str) -> int | None:
    match = re.search(rf"(?m)(?:^|\s){name}=(-?[0-9]{{1,9}})\b", record)
    return int(match[1]) if match else None
