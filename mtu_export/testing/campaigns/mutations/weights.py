"""Changes to the weight files of a checkpoint: headers, data, shards."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing.campaigns.mutations.files import (
    INDEX,
    dump,
    pick,
    safetensors,
    write_safetensors,
)


def _weights(folder: Path, random: Random) -> Path:
    return pick(random, sorted((folder / UNET).glob("*.safetensors")))


def header(folder: Path, random: Random) -> str:
    """Change one entry of a safetensors header: name, dtype, shape or offsets."""
    path = _weights(folder, random)
    header, data = safetensors(path)
    name = pick(random, [key for key in header if key != "__metadata__"])
    entry = header[name]
    choice = random.randrange(12)
    if choice == 0:
        header[pick(random, ("x", name + "x", "", "a\nb", "\x1b[2J", "é" * 300))] = header.pop(name)
    elif choice == 1:
        entry["dtype"] = pick(
            random, ("I32", "I64", "U8", "BOOL", "F8_E4M3", "F16", "x", 4, None, [])
        )
    elif choice == 2:
        odd = ([], [0], [-1], [1.5], ["1"], [2**62, 2**62], [True], "x", None, [1] * 70, 4)
        entry["shape"] = pick(random, (entry["shape"][::-1], [*entry["shape"], 1], *odd))
    elif choice == 3:
        begin, end = entry["data_offsets"]
        odd = ([end, begin], [begin + 4, end + 4], [begin, end - 4], [begin, 2**60], [-4, end], [0])
        odd += (["0", "4"], None, [begin, end, end], [0.0, 4.0])
        entry["data_offsets"] = pick(random, odd)
    elif choice == 4:
        other = pick(random, [key for key in header if key not in ("__metadata__", name)])
        entry["data_offsets"] = header[other]["data_offsets"]
    elif choice == 5:
        text = json.dumps(header)
        moved = json.dumps({name: {**entry, "data_offsets": [0, entry["data_offsets"][1]]}})
        same = json.dumps({name: entry})
        extra = pick(random, (moved, same))[1:-1]
        write_safetensors(path, f"{text[:-1]}, {extra}}}".encode(), bytes(data))
        return f"header: {name} twice"
    elif choice == 6:
        header[pick(random, ("extra", "conv_in.x.weight", "mid_block"))] = {
            "dtype": "F32",
            "shape": [1],
            "data_offsets": [len(data), len(data) + 4],
        }
        data += b"\0\0\0\0"
    elif choice == 7:
        del header[name]
    elif choice == 8:
        header["__metadata__"] = pick(random, ([], 4, {"a": 1}, "x", None, {"a": "b" * 1000}))
    elif choice == 9:
        raw = path.read_bytes()
        lengths = (0, 1, 2, 7, 2**63, 2**64 - 1, 10**8 + 1, len(raw), len(raw) - 8, 10**6)
        path.write_bytes(struct.pack("<Q", pick(random, lengths)) + raw[8:])
        return "header: another length"
    elif choice == 10:
        text = json.dumps(header).encode()
        text = pick(random, (b"[]", b"null", b"{}", text[:-1], b" " * 50 + text, text + b" " * 64))
        write_safetensors(path, text, bytes(data))
        return "header: other JSON"
    else:
        header[name] = pick(random, (None, 7, [], {}, {"dtype": "F32"}, "x"))
    write_safetensors(path, header, bytes(data))
    return f"header: {name[:60]} ({choice})"


def data(folder: Path, random: Random) -> str:
    """Change the values of a tensor, or the length of the file."""
    import numpy as np

    path = _weights(folder, random)
    header, data = safetensors(path)
    name = pick(random, [key for key in header if key != "__metadata__"])
    begin, end = header[name]["data_offsets"]
    choice = random.randrange(10)
    if choice < 5:
        odd = (np.nan, np.inf, -np.inf, np.nan, 1e38, 3e38, -1e38, 1e20, 0.0, 1e-42, 1e38)
        value = pick(random, odd)
        values = np.frombuffer(data, np.float32)
        part = values[begin // 4 : end // 4]
        if random.random() < 0.5:
            part[random.randrange(len(part))] = value
        else:
            part[:] = value
        write_safetensors(path, header, data)
        return f"data: {name[:60]} = {value}"
    if choice == 5:
        values = np.frombuffer(data, np.float32)
        values *= np.float32(pick(random, (0, 1e30, -1, 1e-30)))
        write_safetensors(path, header, data)
        return "data: everything scaled"
    raw = path.read_bytes()
    if choice == 6:
        path.write_bytes(raw[: random.randrange(len(raw))])
        return "data: cut"
    if choice == 7:
        path.write_bytes(raw + b"\0" * random.choice((1, 4, 4096)))
        return "data: bytes after the end"
    if choice == 8:
        path.write_bytes(b"")
        return "data: empty file"
    for _ in range(random.choice((1, 8, 1000))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    write_safetensors(path, header, data)
    return "data: bits flipped"


def dtype(folder: Path, random: Random) -> str:
    """Convert all tensors of one file to another dtype, legal or not."""
    import torch
    from safetensors.torch import load_file, save_file

    path = _weights(folder, random)
    dtype = pick(random, ("float16", "bfloat16", "float64", "int8", "int32", "uint8", "bool"))
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in load_file(path).items()}
    save_file(tensors, path)
    return f"data: dtype {dtype}"


def shards(folder: Path, random: Random) -> str:
    """Change the shard index (paths that escape, names in no shard), or delete a shard."""
    unet = folder / UNET
    path = unet / INDEX
    names = sorted(p.name for p in unet.glob("*.safetensors"))
    index: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(("a", "b"), names[0])}
    if path.is_file():
        index = json.loads(path.read_text("utf-8"))
    weight_map = index["weight_map"]
    name = pick(random, weight_map)
    choice = random.randrange(6)
    if choice == 0:
        tricks = ("../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", "", "x.bin")
        more = ("\0.safetensors", "é" * 190 + ".safetensors", 5, None, [], names[0] + "/", "~")
        weight_map[name] = pick(random, (*tricks, *more))
    elif choice == 1:
        (unet / pick(random, names)).unlink()
    elif choice == 2:
        weight_map[name] = pick(random, names)
    elif choice == 3:
        weight_map[pick(random, ("extra", "", "\x1b"))] = pick(random, names)
    elif choice == 4:
        del weight_map[name]
    else:
        index["weight_map"] = pick(random, ([], {}, None, "x", {"a": {}}))
    dump(index, path)
    return f"index of shards ({choice})"
