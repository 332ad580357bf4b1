"""Targets, one toolchain a file or package, found by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from mtu_export.spec import Target, UnknownName


def names() -> tuple[str, ...]:
    """Names of the targets: the files and packages of this folder."""
    here = Path(__file__).parent
    files = {path.stem for path in here.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in here.glob("*/__init__.py")}
    return tuple(sorted(files | packages))


def load(name: str) -> Target:
    """The target of this name; imports neither torch nor its toolchain."""
    if name not in names():
        raise UnknownName("target", name, names())
    return cast(Target, importlib.import_module(f"{__name__}.{name}"))
