"""JSON and safetensors files read and written carelessly, as a mutation needs it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def pick(random: Random, rows: Any) -> Any:
    """One of what can be iterated over."""
    return random.choice(list(rows))


def dump(found: Any, path: Path) -> None:
    """JSON as a careless writer would: NaN, lone surrogates and huge integers included."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(json.dumps(found), "utf-8")
    finally:
        sys.set_int_max_str_digits(before)


def slot(random: Random, found: Any) -> tuple[Any, Any]:
    """A container somewhere inside a JSON value, and one of its keys or positions."""
    places = []
    stack = [found]
    while stack:
        node = stack.pop()
        rows = list(node.items() if isinstance(node, dict) else enumerate(node))
        places += [(node, key) for key, _ in rows]
        stack += [value for _, value in rows if isinstance(value, (dict, list))]
    return pick(random, places)


def safetensors(path: Path) -> tuple[dict[str, Any], bytearray]:
    """Header and data of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def write_safetensors(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes | bytearray
) -> None:
    """Write a file with a header as it is given, legal or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
