"""``manifest.json`` from an untrusted file: strict JSON first, then the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mtu_export import checkpoint
from mtu_export.bundle.kinds import SCHEMA
from mtu_export.bundle.manifest import Manifest
from mtu_export.bundle.paths import MANIFEST
from mtu_export.spec import BundleError, shown

_Model = TypeVar("_Model", bound=BaseModel)
LIMIT = 4_000_000
"""Bytes of a manifest."""
DEEPEST = 64
"""Objects and lists inside one another."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, validated against the model; references are not checked.

    Raises ``BundleError``, in one line, for a link, more than ``LIMIT`` bytes, JSON that parsers
    interpret differently, another major version, and the first value that the model refuses.
    """
    path = folder / MANIFEST
    try:
        if not folder.is_dir() or not path.is_file():
            raise BundleError(f"{str(folder)!r} is not a bundle: no {MANIFEST}")
        if path.is_symlink():
            raise BundleError(
                f"{path} is a link: copy the bundle with cp -L, or download it with local_dir"
            )
        if path.stat().st_size > LIMIT:
            raise BundleError(f"{path} has {path.stat().st_size:,} bytes; at most {LIMIT:,}")
        text = path.read_text("utf-8")
        document = checkpoint.strict_json(text)
        if _depth(document) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} objects and lists inside one another")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise BundleError(f"{path} does not hold a JSON object")
    version = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", str(document.get("schema_version")))
    if version is None:
        raise BundleError(f"{path}: schema_version is missing or malformed")
    if int(version[1]) != SCHEMA[0]:
        raise BundleError(
            f"{path}: schema {version[0]} is not readable; this mtu-export reads {SCHEMA[0]}.x"
        )
    return validated(Manifest, text)


def validated(model: type[_Model], text: str) -> _Model:
    """JSON as a model; raises ``BundleError`` with the first value that the model refuses."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BundleError(f"{MANIFEST}: {error_line(first, json.loads(text))}") from None


@contextmanager
def refuse_invalid_records() -> Iterator[None]:
    """Raise ``BundleError`` where a record is built of a value that the model refuses."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        document = first["input"]
        for key in reversed(first["loc"]):
            document = {key: document}
        line = error_line(first, document)
        raise BundleError(f"{MANIFEST}: {error.title}: {line}") from None


def _depth(node: Any) -> int:
    if isinstance(node, dict):
        node = node.values()
    elif not isinstance(node, list):
        return 0
    return 1 + max(map(_depth, node), default=0)


# ------------------------------------------------------------------------------ error messages


def _figure(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


_MESSAGES: Mapping[str, str | Callable[[Mapping[str, Any]], str]] = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
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


def error_line(error: ErrorDetails, document: Any) -> str:
    """One error of pydantic as ``parts[0].cost.parameters: must be an integer, got 'x'``."""
    kind, keys, context = error["type"], error["loc"], error.get("ctx", {})
    place, node, value = "", document, error["input"]
    for key in keys[:-1] if kind == "missing" else keys:
        if isinstance(node, dict) and isinstance(key, str) and key in node:
            node, place = node[key], f"{place}.{key}" if place else key
        elif isinstance(node, list) and isinstance(key, int):
            node, place = node[key], f"{place}[{key}]"
        # other keys are pydantic's own: the kind of a union, and "[key]" for a key itself
    if kind == "union_tag_invalid":
        place, value = f"{place}.kind", context["tag"]
    where = f"{place[:200]}: " if place else ""
    if kind in ("missing", "union_tag_not_found"):
        return f"{where}key {str(keys[-1]) if kind == 'missing' else 'kind'!r} is missing"
    message = _MESSAGES.get(kind, error["msg"])
    return f"{where}{message if isinstance(message, str) else message(context)}, got {shown(value)}"
