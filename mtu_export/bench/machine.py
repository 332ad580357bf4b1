"""Clocks and governor of this machine's cores, as Linux tells them; None where it does not."""

from __future__ import annotations

from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def text(path: Path) -> str | None:
    """A file's text without white space around it."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A file that holds one whole number."""
    content = text(path)
    return int(content) if content and content.isdecimal() else None


def clocks() -> tuple[int, ...] | None:
    """The current clock of each core, kHz; None unless every core tells it."""
    files = sorted(CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    values = [number(file) for file in files]
    told = [value for value in values if value is not None]
    return tuple(told) if told and len(told) == len(files) else None


def governor() -> str | None:
    """What chooses the clock of the first core."""
    return text(CPUS / "cpu0" / "cpufreq" / "scaling_governor")
