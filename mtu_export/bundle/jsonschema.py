"""``manifest.json`` as JSON Schema, out of the tables by which :func:`bundle.read` checks it.

What JSON Schema cannot say is left to readers: paths, hashes, sizes, names that must fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export.bundle.schema import (
    COST,
    COUNTS,
    KEYS,
    LATER,
    LOOP,
    NESTED,
    ROWS,
    SCHEMA,
    SOURCE,
    TENSOR,
    TEXT,
    Types,
)
from mtu_export.spec import COMPONENTS, CONDITIONING_CHANNELS, GUIDANCE_SCALES, HISTORY, MOST_PASSES

_WORDS = {str: "string", int: "integer", float: "number", bool: "boolean"} | {
    dict: "object",
    list: "array",
    type(None): "null",
}
_NULL = {"type": "null"}
_COEFFICIENTS = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": HISTORY,
    "maxItems": HISTORY,
}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_STEPS = r"^[1-9][0-9]{0,4}$"


def json_schema() -> dict[str, Any]:
    """``manifest.json`` as JSON Schema 2020-12; unknown keys are legal (a newer minor schema)."""
    properties = {**_properties(KEYS), **_properties(LATER)}
    for key, keys in NESTED.items():
        properties[key] = _object(keys)
    for key, name in COUNTS:
        properties[key]["properties"][name]["minimum"] = 1
    for key, keys in ROWS.items():
        properties[key] = {"type": "array", "items": _object(keys)}
    properties["schema_version"] = {"type": "string", "pattern": rf"^{SCHEMA[0]}\.[0-9]{{1,6}}$"}
    _refine_tasks(properties["tasks"]["items"]["properties"])
    _refine_parts(properties["parts"])
    properties["files"]["items"]["properties"] |= _hashed()
    properties["text"] = {"anyOf": [_text(), _NULL]}
    properties["loop"] = {"anyOf": [_loop(), _NULL]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an mtu-export bundle, schema {SCHEMA[0]}.{SCHEMA[1]}",
        "type": "object",
        "properties": properties,
        "required": list(KEYS),
    }


def _refine_tasks(task: dict[str, Any]) -> None:
    task["conditioning"]["items"] = {
        "type": "object",
        "properties": {
            "kind": {"enum": list(CONDITIONING_CHANNELS)},
            "channels": {"type": "integer", "minimum": 1},
            "scaled": {"type": "boolean"},
        },
        "required": ["kind", "channels"],
    }
    task["guidance"] = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "kind": {"const": kind},
                    **{scale: {"type": "number"} for scale in scales},
                },
                "required": ["kind", *scales],
            }
            for kind, scales in GUIDANCE_SCALES.items()
        ]
    }
    task["steps"]["minimum"] = 1
    task["prompt"] = {"type": ["string", "null"]}


def _refine_parts(parts: dict[str, Any]) -> None:
    part = parts["items"]["properties"]
    tensor = _object(TENSOR)
    tensor["properties"]["shape"]["items"] = {"type": "integer", "minimum": 1}
    part |= _hashed()
    part["component"] = {"enum": list(COMPONENTS)}
    part["cost"] = _object(COST)
    part["entries"]["additionalProperties"] = {"type": "string", "minLength": 1, "maxLength": 255}
    part["inputs"] = part["outputs"] = {"type": "array", "items": tensor}
    part["scheme"] = _object(NESTED["scheme"])
    part["task_inputs"] = {"type": "object", "additionalProperties": part["inputs"]}
    part["cost"]["properties"]["task_weight_bytes"] = {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0},
    }
    parts["minItems"] = 1


def _hashed() -> dict[str, Any]:
    return {
        "path": {"type": "string", "minLength": 1, "maxLength": 255},
        "bytes": {"type": "integer", "minimum": 0},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    }


def _text() -> dict[str, Any]:
    sources = {"type": "array", "items": _object(SOURCE), "minItems": 1}
    found = _object(TEXT)
    found["properties"]["inputs"]["additionalProperties"] = sources
    found["properties"]["tokenizers"]["additionalProperties"] = {"type": "string"}
    return found


def _loop() -> dict[str, Any]:
    row = {
        "timestep": {"type": "number"},
        "input_scale": _POSITIVE,
        "x": _COEFFICIENTS,
        "m": _COEFFICIENTS,
    }
    passes = {
        "type": "array",
        "items": {"type": "object", "properties": row, "required": list(row)},
        "minItems": 1,
        "maxItems": MOST_PASSES,
    }
    schedule = {"init_noise_sigma": _POSITIVE, "passes": passes}
    found = _object(LOOP)
    found["properties"]["schedules"] = {
        "type": "object",
        "propertyNames": {"pattern": _STEPS},
        "additionalProperties": {
            "type": "object",
            "properties": schedule,
            "required": list(schedule),
        },
    }
    return found


def _properties(keys: Mapping[str, Types]) -> dict[str, Any]:
    rows = {key: kind if isinstance(kind, tuple) else (kind,) for key, kind in keys.items()}
    return {
        key: {"type": _WORDS[kinds[0]] if len(kinds) == 1 else [_WORDS[kind] for kind in kinds]}
        for key, kinds in rows.items()
    }


def _object(keys: Mapping[str, Types]) -> dict[str, Any]:
    return {"type": "object", "properties": _properties(keys), "required": list(keys)}
