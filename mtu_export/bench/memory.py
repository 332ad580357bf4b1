"""Resident memory of this process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class Meter:
    """Reads anonymous and file-backed memory and the peak since :meth:`reset`, bytes."""

    def __init__(self) -> None:
        self._total = 0
        self._resets = self._reset()

    def reset(self) -> None:
        """Begin a phase: its peak is told apart from those before, where the system allows it."""
        self._total = max(self._total, _status().get("VmHWM", 0))
        self._resets = self._reset()

    def read(self) -> dict[str, int | None]:
        """``anonymous``, ``file`` and the phase's ``peak``; None for what cannot be read."""
        status = _status()
        self._total = max(self._total, status.get("VmHWM", 0))
        return {
            "anonymous": status.get("RssAnon"),
            "file": status.get("RssFile"),
            "peak": status.get("VmHWM") if self._resets else None,
        }

    def peak_total(self) -> int | None:
        """The peak of all phases."""
        return self._total or None

    @staticmethod
    def _reset() -> bool:
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return False
        return True


def _status() -> dict[str, int]:
    """The lines of /proc/self/status that count kB, in bytes; empty on other systems."""
    try:
        lines = _STATUS.read_text("ascii").splitlines()
    except OSError:
        return {}
    fields = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in fields}
