"""The table of MIL operators: name and operator set -> one small function.

A function's parameters are the operator's, with the defaults of the MIL specification. Those
annotated ``Tensor`` (or ``list[Tensor]``) are computed values or weights; all others are constants
of the program and arrive as plain Python. Keyword-only ones come from the evaluator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
EARLIEST = 5
"""``CoreML5``, the operator set of iOS15."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator from the operator set ``since`` on.

    ``arithmetic``: float16 operands arrive as float32 and integers as int64 (codes of weights as
    float32), and the result is rounded once to the type that the program declares. Other
    operators move values unchanged.
    """

    name: str
    since: int
    arithmetic: bool
    function: Callable[..., Any]
    parameters: dict[str, inspect.Parameter]

    def is_data(self, parameter: str) -> bool:
        """Whether a parameter takes tensors."""
        return "Tensor" in str(self.parameters[parameter].annotation)


_TABLE: dict[str, list[Operator]] = {}


def arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function that computes: operands widened, result rounded once."""
    return _enter(function, function.__name__, EARLIEST, computes=True)


def moves(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function that moves or converts values and rounds nothing itself."""
    return _enter(function, function.__name__, EARLIEST, computes=False)


def version(name: str, since: int, *, computes: bool) -> Callable[[Any], Any]:
    """Enter a function as the meaning of ``name`` from an operator set on."""
    return lambda function: _enter(function, name, since, computes=computes)


def _enter(
    function: Callable[..., Any], name: str, since: int, *, computes: bool
) -> Callable[..., Any]:
    row = Operator(
        name=name,
        since=since,
        arithmetic=computes,
        function=function,
        parameters=dict(inspect.signature(function).parameters),
    )
    _TABLE.setdefault(name, []).append(row)
    return function


def find(name: str, opset: int) -> Operator | None:
    """The meaning of an operator in an operator set; null where it has none here."""
    rows = [row for row in _TABLE.get(name, ()) if row.since <= opset]
    return max(rows, key=lambda row: row.since, default=None)


def names() -> tuple[str, ...]:
    """Every operator in the table."""
    return tuple(sorted(_TABLE))
