"""JSON of others as a pydantic model, and the first of pydantic's errors as one line.

A line says where, what is legal and what is there: ``parts[0].bytes: must be an integer, got 'x'``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from mtu_export.spec import MtuExportError, shown

_Model = TypeVar("_Model", bound=BaseModel)


class StrictModel(BaseModel):
    """An object without unknown keys, whose values are of their type and never converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        legal = [field.alias or name for name, field in cls.model_fields.items()]
        for key in value if isinstance(value, Mapping) else ():
            if key not in legal and cls.model_config.get("extra") == "forbid":
                raise refused(f"unknown key {shown(key)}; legal: {', '.join(legal)}")
        return value


def refused(message: str) -> PydanticCustomError:
    """The error for a validator to raise; of "must be ..." the line says what is there instead."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def legal(what: str) -> WrapValidator:
    """The one error ``must be <what>`` of a type, whatever part of it a value does not fit."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise refused(f"must be {what}") from None

    return WrapValidator(validate)


def validate(
    model: type[_Model], document: object, error: type[MtuExportError], where: str = ""
) -> _Model:
    """A document as a model; raises ``error`` with the place of the first value it refuses."""
    try:
        return model.model_validate(document)
    except ValidationError as invalid:
        line = error_line(invalid, document)
        raise error(f"{where}: {line}" if where else line) from None


# ------------------------------------------------------------------------------ error messages


def _figure(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


_MESSAGES: Mapping[str, str | Callable[[Mapping[str, Any]], str]] = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "sequence_str": "must be a list",
    "is_instance_of": "must be a list",  # of Sequence, the only class that is asked for
    "greater_than": lambda ctx: f"must be greater than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"must be at least {_figure(ctx['ge'])}",
    "less_than_equal": lambda ctx: f"must be at most {_figure(ctx['le'])}",
    "too_short": lambda ctx: f"must have at least {_items(ctx['min_length'])}",
    "too_long": lambda ctx: f"must have at most {_items(ctx['max_length'])}",
    "string_too_short": lambda ctx: f"must have at least {ctx['min_length']} character",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "string_pattern_mismatch": lambda ctx: f"must match {ctx['pattern']}",
    "literal_error": lambda ctx: f"must be {ctx['expected']}",
    "union_tag_invalid": lambda ctx: f"must be {ctx['expected_tags']}",
}
"""What a value must be, by pydantic's type of error."""


def error_line(invalid: ValidationError, document: object) -> str:
    """The first error as ``parts[0].cost.parameters: must be an integer, got 'x'``."""
    error = invalid.errors(include_url=False)[0]
    kind, keys, context = error["type"], error["loc"], error.get("ctx", {})
    node: Any = document
    place, value = "", error["input"]
    for key in keys[:-1] if kind in ("missing", "extra_forbidden") else keys:
        if isinstance(node, Mapping) and isinstance(key, str) and key in node:
            node, place = node[key], f"{place}.{key}" if place else key
        elif isinstance(node, (list, tuple)) and isinstance(key, int):
            node, place = node[key], f"{place}[{key}]"
        # other keys are pydantic's own: the kind of a union, and "[key]" for a key itself
    if kind == "union_tag_invalid":
        place, value = f"{place}.kind", context["tag"]
    where = f"{place[:200]}: " if place else ""
    if kind in ("missing", "union_tag_not_found"):
        return f"{where}key {str(keys[-1]) if kind == 'missing' else 'kind'!r} is missing"
    if kind == "extra_forbidden":
        return f"{where}unknown key {shown(keys[-1])}"
    template = _MESSAGES.get(kind, error["msg"])
    message = template if isinstance(template, str) else template(context)
    is_whole = kind == "refused" and not message.startswith("must ")
    return f"{where}{message}" if is_whole else f"{where}{message}, got {shown(value)}"
