"""Changes to the weights of a checkpoint: headers, data, shards."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from mtu_export.testing.campaigns.mutations.files import (
    INDEX,
    dump,
    pick,
    safetensors,
    write_safetensors,
)


def _weights(folder: Path, random: Random) -> Path:
    return pick(random, sorted((folder / "unet").glob("*.safetensors")))


def header(folder: Path, random: Random) -> str:
    """One row of a safetensors header: name, dtype, shape, offsets."""
    path = _weights(folder, random)
    header, data = safetensors(path)
    name = pick(random, [key for key in header if key != "__metadata__"])
    row = header[name]
    choice = random.randrange(12)
    if choice == 0:
        header[pick(random, ("x", name + "x", "", "a\nb", "\x1b[2J", "é" * 300))] = header.pop(name)
    elif choice == 1:
        row["dtype"] = pick(
            random, ("I32", "I64", "U8", "BOOL", "F8_E4M3", "F16", "x", 4, None, [])
        )
    elif choice == 2:
        odd = ([], [0], [-1], [1.5], ["1"], [2**62, 2**62], [True], "x", None, [1] * 70, 4)
        row["shape"] = pick(random, (row["shape"][::-1], [*row["shape"], 1], *odd))
    elif choice == 3:
        begin, end = row["data_offsets"]
        odd = ([end, begin], [begin + 4, end + 4], [begin, end - 4], [begin, 2**60], [-4, end], [0])
        row["data_offsets"] = pick(random, (*odd, ["0", "4"], None, [begin, end, end], [0.0, 4.0]))
    elif choice == 4:
        other = pick(random, [key for key in header if key not in ("__metadata__", name)])
        row["data_offsets"] = header[other]["data_offsets"]
    elif choice == 5:
        text = json.dumps(header)
        twin = json.dumps({name: {**row, "data_offsets": [0, row["data_offsets"][1]]}})
        same = json.dumps({name: row})
        extra = pick(random, (twin, same))[1:-1]
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
    """Values of one tensor, or the length of the file."""
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
    """All tensors of one file in another dtype, legal or not."""
    import torch
    from safetensors.torch import load_file, save_file

    path = _weights(folder, random)
    dtype = pick(random, ("float16", "bfloat16", "float64", "int8", "int32", "uint8", "bool"))
    rows = {name: value.to(getattr(torch, dtype)) for name, value in load_file(path).items()}
    save_file(rows, path)
    return f"data: dtype {dtype}"


def shards(folder: Path, random: Random) -> str:
    """The index of shards: paths that leave, shards that lack, names that nobody holds."""
    home = folder / "unet"
    path = home / INDEX
    names = sorted(p.name for p in home.glob("*.safetensors"))
    found: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(("a", "b"), names[0])}
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
    rows = found["weight_map"]
    name = pick(random, rows)
    choice = random.randrange(6)
    if choice == 0:
        tricks = ("../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", "", "x.bin")
        more = ("\0.safetensors", "é" * 190 + ".safetensors", 5, None, [], names[0] + "/", "~")
        rows[name] = pick(random, (*tricks, *more))
    elif choice == 1:
        (home / pick(random, names)).unlink()
    elif choice == 2:
        rows[name] = pick(random, names)
    elif choice == 3:
        rows[pick(random, ("extra", "", "\x1b"))] = pick(random, names)
    elif choice == 4:
        del rows[name]
    else:
        found["weight_map"] = pick(random, ([], {}, None, "x", {"a": {}}))
    dump(found, path)
    return f"index of shards ({choice})"
