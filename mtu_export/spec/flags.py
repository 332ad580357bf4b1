"""Fields of option dataclasses: what the command line needs to make a flag of each."""

from __future__ import annotations

from dataclasses import Field, field
from typing import Any

from mtu_export.spec.errors import PlanError
from mtu_export.spec.task import shown


def option(help: str, *flags: str, default: Any = None, **metadata: Any) -> Any:
    """A field of options with its ``help`` text and its ``flags`` (``--field-name`` unless named).

    ``metavar`` names the value; ``bounds`` are the least and the greatest number, with a ``unit``;
    ``shortcuts`` are values with a flag of their own; ``separator`` splits an argument into
    numbers.
    """
    return field(default=default, metadata={"help": help, "flags": flags, **metadata})


def flags_of(option: Field[Any]) -> tuple[str, ...]:
    """The flags of a field, the longest name last."""
    single = option.metadata.get("flag")
    default = single or "--" + option.name.replace("_", "-")
    return tuple(option.metadata.get("flags") or (default,))


def check_bounds(option: Field[Any], value: Any) -> None:
    """Refuse, with a ``PlanError``, a number (or one of several) outside the field's ``bounds``."""
    if "bounds" not in option.metadata or value is None:
        return
    least, most = option.metadata["bounds"]
    for number in value if isinstance(value, (list, tuple)) else (value,):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not least <= number <= most:
            unit = option.metadata.get("unit", "")
            raise PlanError(
                f"{flags_of(option)[-1]} must be from {least} to {most}{unit}, got {shown(number)}"
            )
