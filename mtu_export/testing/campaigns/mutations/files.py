"""Read and write JSON and safetensors files without any checks, as mutations need it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def pick(random: Random, choices: Iterable[Any]) -> Any:
    """A random element of an iterable."""
    return random.choice(list(choices))


def dump(document: Any, path: Path) -> None:
    """Write JSON as a careless program would, with NaN, lone surrogates and huge integers."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(json.dumps(document), "utf-8")
    finally:
        sys.set_int_max_str_digits(limit)


def slot(random: Random, document: Any) -> tuple[Any, Any]:
    """A random container inside a JSON document, and one of its keys or indices."""
    places = []
    stack = [document]
    while stack:
        node = stack.pop()
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        places += [(node, key) for key, _ in items]
        stack += [value for _, value in items if isinstance(value, (dict, list))]
    return pick(random, places)


def safetensors(path: Path) -> tuple[dict[str, Any], bytearray]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def write_safetensors(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes | bytearray
) -> None:
    """Write a safetensors file with any header, legal or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
