"""The table of MIL operators: name and operator set -> one small function.

A function's parameters are those of the operator, with the defaults of the MIL specification. The
ones annotated ``Tensor`` (or ``list[Tensor]``) are computed values or weights; all others are
constants of the program and arrive as plain Python values. Keyword-only parameters come from the
evaluator.
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
    """The implementation of an operator from the operator set ``since`` on.

    If ``arithmetic``, float16 operands arrive as float32 and integers as int64 (codes of weights
    as float32), and the result is rounded once to the type that the program declares. Other
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
    """Register a function that computes: operands are widened, the result is rounded once."""
    return _register(function, function.__name__, EARLIEST, computes=True)


def moves(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function that moves or converts values and does not round them itself."""
    return _register(function, function.__name__, EARLIEST, computes=False)


def version(name: str, since: int, *, computes: bool) -> Callable[[Any], Any]:
    """Register a function as the implementation of ``name`` from an operator set on."""
    return lambda function: _register(function, name, since, computes=computes)


def _register(
    function: Callable[..., Any], name: str, since: int, *, computes: bool
) -> Callable[..., Any]:
    operator = Operator(
        name=name,
        since=since,
        arithmetic=computes,
        function=function,
        parameters=dict(inspect.signature(function).parameters),
    )
    _TABLE.setdefault(name, []).append(operator)
    return function


def find(name: str, opset: int) -> Operator | None:
    """The implementation of an operator in an operator set, or None."""
    versions = [operator for operator in _TABLE.get(name, ()) if operator.since <= opset]
    return max(versions, key=lambda operator: operator.since, default=None)


def names() -> tuple[str, ...]:
    """Every operator in the table."""
    return tuple(sorted(_TABLE))
