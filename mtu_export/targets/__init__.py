"""Targets, one toolchain a file or package, found by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from mtu_export.spec import FloatWeights, Plan, Runtime, Target, UnknownName


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


def rewrites(plan: Plan) -> tuple[str, ...]:
    """What of ``rewrite.py`` a plan's graphs are given.

    The gates of integer weights are in their scales; those of float weights that tasks share are
    operators.
    """
    target = load(plan.target)
    gated = len(plan.tasks) > 1 and isinstance(plan.scheme.weights, FloatWeights)
    return (*target.rewrites, *(target.gates if gated else ()))


BOTH = "both"
"""Of all runtimes of a target, each compared with the first."""


def runtimes(target: Target, word: str | None = None) -> tuple[Runtime, ...]:
    """The runtimes that a word asks for: one by its name, all for ``both``.

    Without a word it is the first that runs here. Raises ``UnknownName``.
    """
    rows = dict(target.runtimes)
    if word is not None and word != BOTH and word not in rows:
        raise UnknownName("runner", word, (*rows, BOTH))
    if not rows:
        return (target,)
    if word == BOTH:
        return tuple(rows.values())
    if word is not None:
        return (rows[word],)
    found = [row for row in rows.values() if row.runner()[0] is not None]
    return tuple(found or rows.values())[:1]
