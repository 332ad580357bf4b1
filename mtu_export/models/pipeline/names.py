"""Names of layers."""

from __future__ import annotations


def natural_order(path: str) -> list[tuple[int, str]]:
    """Sort key of a dotted path: numbers by value, so that expert 2 comes before expert 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]
