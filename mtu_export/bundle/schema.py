"""Keys and types of ``manifest.json``, as bundle.md has them, and their JSON Schema.

Schema 1.1 adds to 1.0: ``text``, ``files``, ``parts[].scheme`` and ``.notes``, ``loop.golden``.
Schema 1.2 adds ``parts[].task_inputs`` and ``parts[].cost.task_weight_bytes``, and goldens of an
entry that several tasks run are under the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export.spec import BundleError, CheckpointError, Task

SCHEMA = (1, 2)
Types = type | tuple[type, ...]
_NULL = type(None)
_NUMBER = (int, float)

KEYS: Mapping[str, Types] = {
    "schema_version": str,
    "name": str,
    "created": str,
    "versions": dict,
    "source": dict,
    "target": str,
    "options": dict,
    "scheme": dict,
    "image": dict,
    "tasks": list,
    "parts": list,
    "tokenizers": list,
    "latent": dict,
    "mask": dict,
    "proof": list,
}
NESTED: Mapping[str, Mapping[str, Types]] = {
    "source": {"name": str, "family": str, "sha256": str, "model_config": dict},
    "scheme": {"name": str, "weights": dict, "activations": str, "kept_float": list},
    "image": {"height": int, "width": int},
    "latent": {"channels": int, "factor": int, "scaling_factor": _NUMBER},
    "mask": {"threshold": _NUMBER, "resize": str, "masked_image": str},
}
COUNTS = (("image", "height"), ("image", "width"), ("latent", "channels"), ("latent", "factor"))
LATER: Mapping[str, Types] = {"text": (dict, _NULL), "files": list, "loop": (dict, _NULL)}
"""Keys that a manifest may lack."""
ROWS: Mapping[str, Mapping[str, Types]] = {
    "tasks": {
        "name": str,
        "conditioning": list,
        "guidance": dict,
        "steps": int,
        "parts": list,
        "entry": str,
    },
    "parts": {
        "component": str,
        "path": str,
        "bytes": int,
        "sha256": str,
        "entries": dict,
        "inputs": list,
        "outputs": list,
        "cost": dict,
    },
    "proof": {
        "component": str,
        "task": str,
        "rung": str,
        "psnr_db": (int, float, _NULL),
        "max_abs": (int, float, _NULL),
        "floor_db": _NUMBER,
        "runner": (str, _NULL),
        "passed": (bool, _NULL),
        "reason": (str, _NULL),
    },
    "tokenizers": {"path": str, "bos": int, "eos": int, "pad": int, "length": int},
    "files": {"path": str, "bytes": int, "sha256": str},
}
COST: Mapping[str, Types] = {
    "parameters": int,
    "flops_conv_linear": int,
    "flops_total": int,
    "weight_bytes": int,
}
TENSOR: Mapping[str, Types] = {"name": str, "shape": list, "dtype": str}
LOOP: Mapping[str, Types] = {"scheduler": str, "prediction_type": str, "schedules": dict}
TEXT: Mapping[str, Types] = {"inputs": dict, "tokenizers": dict}
SOURCE: Mapping[str, Types] = {"component": str, "output": str}
"""An output of a text encoder that goes into an input of the UNet."""


def typed(found: Any, keys: Mapping[str, Types], where: str) -> None:
    """Refuse an object that lacks a key or has a value of another type or beyond a float."""
    if not isinstance(found, dict):
        raise BundleError(f"{where} is not an object")
    for key, kind in keys.items():
        if key not in found:
            raise BundleError(f"{where}: key {key!r} is missing")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        value = found[key]
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong or (isinstance(value, (int, float)) and not abs(value) < 1e18):
            names = " or ".join(each.__name__ for each in kinds)
            raise BundleError(f"{where}: {key} must be {names}")


def check_task(row: Mapping[str, Any], index: int, where: str) -> Task:
    """The task of a row; refuses what no checkpoint could have, leaves out newer keys."""

    def known(found: Any, *keys: str) -> Any:
        return {k: found[k] for k in keys if k in found} if isinstance(found, dict) else found

    entries = [known(entry, "kind", "channels", "scaled") for entry in row["conditioning"]]
    guidance = known(row["guidance"], "kind", "text", "image")
    own = {**known(row, "name", "steps", "prompt"), "conditioning": entries, "guidance": guidance}
    try:
        return Task.from_json(own, index)
    except CheckpointError as error:
        raise BundleError(f"{where}: {error}") from None
