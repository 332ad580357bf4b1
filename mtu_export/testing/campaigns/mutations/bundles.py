"""A valid bundle, and random changes to copies of it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing.campaigns.mutations.files import (
    dump,
    pick,
    safetensors,
    slot,
    write_safetensors,
)
from mtu_export.testing.campaigns.mutations.values import ODD


def make_bundle(root: Path, checkpoint: Path) -> Path:
    """A valid int8 ONNX bundle of ``checkpoint`` below ``root``; exported once."""
    from mtu_export import exporter
    from mtu_export.exporter import options

    out = root / "edit-onnx-int8"
    if not out.is_dir():
        plan = options.resolve(
            model=checkpoint,
            target="onnx",
            task="edit",
            scheme="int8",
            height=64,
            width=64,
            out=out,
        )
        exporter.export(plan)
    return out


def mutate_bundle(folder: Path, random: Random) -> str:
    """Change a copy of a valid bundle in place; returns what was changed."""
    choice = random.randrange(9)
    if choice < 4:
        return _mutate_manifest(folder, random)
    if choice == 4:
        tricks = ("..", "/etc", "unet/../unet", "é" * 200, "a\0b", "~", "unet/model.onnx", "\ud800")
        manifest = _manifest(folder)
        manifest["parts"][0]["path"] = pick(random, tricks)
        dump(manifest, folder / "manifest.json")
        return "path of a part"
    if choice == 5:
        data = bytearray((folder / "manifest.json").read_bytes())
        begin = random.randrange(len(data))
        data[begin : begin + 5] = pick(random, (b"", b"\xff", b"1", b'"', b"{"))
        (folder / "manifest.json").write_bytes(data)
        return "bytes of the manifest"
    if choice == 6:
        return _mutate_goldens(folder / "goldens.safetensors", random)
    return _mutate_model(folder, random, cut=choice == 8)


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def _mutate_manifest(folder: Path, random: Random) -> str:
    manifest = _manifest(folder)
    node, key = slot(random, manifest)
    if random.random() < 0.25 and isinstance(node, dict):
        del node[key]
        change = f"manifest without {key!r:.60}"
    else:
        node[key] = pick(random, ODD)
        change = f"manifest {key!r:.60}={node[key]!r:.60}"
    dump(manifest, folder / "manifest.json")
    return change


def _mutate_goldens(path: Path, random: Random) -> str:
    import numpy as np

    header, data = safetensors(path)
    name = pick(random, [key for key in header if key != "__metadata__"])
    if random.random() < 0.5:
        begin, end = (n // 4 for n in header[name]["data_offsets"])
        value = pick(random, (np.nan, np.inf, 0.0, 1e38))
        np.frombuffer(data, np.float32)[begin:end] = value
        change = f"goldens {name} = {value}"
    else:
        odd = ({"dtype": "I32"}, {"dtype": "F16"}, {"shape": [1]}, {"data_offsets": [0, 4]})
        header[name] |= pick(random, odd)
        if random.random() < 0.3:
            header[pick(random, ("x", "unet/edit/9/sample", "a/b/c/d"))] = header.pop(name)
        change = f"header of goldens, {name}"
    write_safetensors(path, header, bytes(data))
    return change


def _mutate_model(folder: Path, random: Random, *, cut: bool) -> str:
    from mtu_export import bundle

    model = folder / UNET / "model.onnx"
    data = bytearray(model.read_bytes())
    if cut:
        data, change = data[: random.randrange(len(data))], "model cut"
    else:
        for _ in range(pick(random, (1, 20, 1000))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        change = "bits of the model"
    model.write_bytes(data)
    if random.random() < 0.8:  # a forger would write the new hash too
        manifest = _manifest(folder)
        part = manifest["parts"][0]
        part["bytes"], part["sha256"] = bundle.size(model.parent), bundle.sha256(model.parent)
        dump(manifest, folder / "manifest.json")
        change += ", hashed anew"
    return change
