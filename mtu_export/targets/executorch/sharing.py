"""Refuses a flatbuffer that holds less than what is read from it, before it is unpacked.

Offsets of a flatbuffer may lead to one place from many: a file of some kilobytes then unpacks to
any number of objects. Programs of ExecuTorch share no objects.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

_UNIONS = {"Val": "KernelTypes", "InstrArgs": "InstructionArguments"}
"""Fields of several types, and the class that numbers them."""


def require_unshared(head: bytes) -> None:
    """Raise ``ValueError`` where tables, items and characters are more than the bytes of ``head``.

    Each takes at least one byte if none is shared.
    """
    # Importing it makes the generated modules' names those of their classes.
    from executorch.exir._serialize import _flatbuffer_program as program
    from executorch.exir._serialize.generated.executorch_flatbuffer import Program

    program._patch_generated_flatbuffer_aliases()
    left, pending = len(head), [Program.Program.GetRootAs(head, 0)]
    while pending:
        for count, table in _contents(pending.pop()):
            left -= count
            if left < 0:
                raise ValueError("its parts overlap")
            if table is not None:
                pending.append(table)


def _contents(table: Any) -> Iterator[tuple[int, Any]]:
    """Items and characters that a table holds, with the table behind each, if any."""
    vectors, fields = _members(type(table))
    for name in vectors:
        count = getattr(table, f"{name}Length")()
        if hasattr(table, f"{name}AsNumpy"):
            yield count, None
            continue
        yield count, None  # before the items: an empty one may be read a billion times
        for index in range(count):
            yield _content(getattr(table, name)(index))
    for name in fields:
        value = getattr(table, name)()
        if name in _UNIONS and value is not None:
            value = _member_of_union(_UNIONS[name], getattr(table, f"{name}Type")(), value)
        yield _content(value)


def _content(value: Any) -> tuple[int, Any]:
    if isinstance(value, bytes):
        return len(value), None
    return (1, value) if hasattr(value, "_tab") else (0, None)


def _member_of_union(union: str, number: int, table: Any) -> Any:
    """A union's table as that of its type; None for a number without one."""
    from executorch.exir._serialize.generated import executorch_flatbuffer as generated

    kinds = vars(getattr(getattr(generated, union), union)).items()
    for name in (name for name, value in kinds if value == number and name != "NONE"):
        typed = getattr(getattr(generated, name), name)()
        typed.Init(table.Bytes, table.Pos)
        return typed
    return None


@cache
def _members(kind: type) -> tuple[list[str], list[str]]:
    """Names of a table's vectors, and of its other fields."""
    methods = {name: method for name, method in vars(kind).items() if inspect.isfunction(method)}
    vectors = [name.removesuffix("Length") for name in methods if name.endswith("Length")]
    fields = [
        name
        for name, method in methods.items()
        if method.__code__.co_argcount == 1 and not name.endswith(("Length", "AsNumpy", "IsNone"))
    ]
    return vectors, [name for name in fields if name not in vectors]
