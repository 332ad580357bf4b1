"""Targets by name: each file or package of this folder is one toolchain."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from mtu_export.spec import FloatWeights, Plan, Runtime, Target, UnknownName, Unsupported


def names() -> tuple[str, ...]:
    """Names of the targets, which are the files and packages of this folder."""
    folder = Path(__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return tuple(sorted(files | packages))


def load(name: str) -> Target:
    """The target of this name; imports neither torch nor its toolchain."""
    return _module(name).TARGET


def title(name: str) -> str:
    """The display name of a target, from its module's docstring."""
    return (_module(name).__doc__ or name).partition(":")[0]


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UnknownName("target", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def options(name: str, values: Mapping[str, Any], tasks: int) -> Any:
    """An instance of a target's options: ``values``, else the defaults.

    Some defaults differ for several ``tasks``. Raises ``UnknownName`` for an option that the target
    does not have, ``Unsupported`` for a value that is not among its choices.
    """
    target = load(name)
    option_fields = {field.name: field for field in fields(target.options)}
    for option, value in values.items():
        if option not in option_fields:
            raise UnknownName(f"option of {name}", option, list(option_fields))
        choices = option_fields[option].metadata.get("choices")
        if choices is not None and value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            raise Unsupported(f"{name} has no {option} {value!r}; choose from: {listed}")
    defaults = {
        option: field.metadata["several"]
        for option, field in option_fields.items()
        if tasks > 1 and "several" in field.metadata
    }
    return target.options(**{**defaults, **values})


def rewrites(plan: Plan) -> tuple[str, ...]:
    """Names of the rewrites from ``graph.rewrite`` to apply to a plan's graphs.

    Where tasks share weights, the gains of integer weights are folded into their scales; those of
    float weights become operators of the graph, which need more rewrites. A plain export has none.
    """
    if plan.is_plain:
        return ()
    info = load(plan.target).info
    gated = len(plan.tasks) > 1 and isinstance(plan.scheme.weights, FloatWeights)
    return (*info.rewrites, *(info.multitask_rewrites if gated else ()))


BOTH = "both"
"""Selects all runtimes of a target, each compared with the first."""


def runtime(target: Target) -> Runtime:
    """The target's first runtime that is available here, else its first."""
    choices = tuple(target.runtimes.values())
    return next((choice for choice in choices if choice.runner()[0] is not None), choices[0])


def runtimes(target: Target, name: str | None = None) -> tuple[Runtime, ...]:
    """The runtimes that ``--runner`` selects: one by name, all for ``both``, else the default.

    Raises ``UnknownName``.
    """
    if name is None:
        return (runtime(target),)
    if name == BOTH:
        return tuple(target.runtimes.values())
    if name not in target.runtimes:
        raise UnknownName("runner", name, (*target.runtimes, BOTH))
    return (target.runtimes[name],)
