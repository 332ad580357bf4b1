"""Model families, one per file, found by the name in the checkpoint's config."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from mtu_export.spec import Family, UnknownName, telemetry

_SHARED = (
    "__init__",
    "analysis",
    "deviation",
    "experts",
    "folding",
    "stock",
    "stock_config",
    "unet",
)


def names() -> tuple[str, ...]:
    """Names of the families: those of the files in this folder."""
    modules = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(name for name in modules if name not in _SHARED))


def natural_order(path: str) -> list[tuple[int, str]]:
    """Sort key of a dotted path: numbers by value, so that expert 2 comes before expert 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def load(name: str) -> Family:
    """Import the family of this name, and with it torch and diffusers."""
    if name not in names():
        raise UnknownName("model family", name, names())
    telemetry.turn_off()
    return cast(Family, importlib.import_module(f"{__name__}.{name}"))
