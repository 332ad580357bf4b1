"""``manifest.json`` from an untrusted file: strict JSON first, then the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtu_export import checkpoint
from mtu_export.bundle.manifest import Manifest
from mtu_export.bundle.paths import MANIFEST
from mtu_export.checkpoint.validation import error_line
from mtu_export.spec import BundleError
from mtu_export.spec.records import SCHEMA

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
    if int(version[1]) < SCHEMA[0]:
        raise BundleError(f"{path} was written by an earlier version; export it again")
    if int(version[1]) > SCHEMA[0]:
        raise BundleError(
            f"{path}: schema {version[0]} is not readable; this mtu-export reads {SCHEMA[0]}.x"
        )
    return validated(Manifest, text)


def validated(model: type[_Model], text: str) -> _Model:
    """JSON as a model; raises ``BundleError`` with the first value that the model refuses."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {error_line(error, json.loads(text))}") from None


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
        line = error_line(error, document)
        raise BundleError(f"{MANIFEST}: {error.title}: {line}") from None


def _depth(node: Any) -> int:
    if isinstance(node, dict):
        node = node.values()
    elif not isinstance(node, list):
        return 0
    return 1 + max(map(_depth, node), default=0)
