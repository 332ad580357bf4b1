"""``manifest.json`` as JSON Schema, for the readers that other languages have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export.bundle.manifest import Manifest
from mtu_export.spec.records import SCHEMA


def json_schema() -> dict[str, Any]:
    """``manifest.json`` as JSON Schema 2020-12, without references and in few keywords.

    The keywords are listed in ``runtime/README.md``, as other languages implement them.
    """
    schema = Manifest.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an mtu-export bundle, schema {SCHEMA[0]}.{SCHEMA[1]}",
        **_plain(schema, schema["$defs"]),
    }


_LEFT_OUT = ("$defs", "title", "description", "default", "discriminator")


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with references resolved, one keyword for each meaning, and no annotations."""
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    plain: dict[str, Any] = {}
    for key, value in node.items():
        if key in _LEFT_OUT or value is True:
            continue
        if key == "properties":
            plain[key] = {name: _plain(inner, definitions) for name, inner in value.items()}
        elif key in ("anyOf", "oneOf"):
            plain["anyOf"] = [_plain(inner, definitions) for inner in value]
        elif key == "patternProperties":
            ((pattern, inner),) = value.items()
            plain["propertyNames"] = {"pattern": pattern}
            plain["additionalProperties"] = _plain(inner, definitions)
        else:
            plain[key] = _plain(value, definitions) if isinstance(value, dict) else value
    return plain
