"""A valid bundle, and random changes to copies of it."""

from __future__ import annotations

import copy
import json
import shutil
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


def make_bundle(root: Path) -> Path:
    """A valid int8 ONNX bundle below ``root``, of all parts and with its loop; exported once."""
    from mtu_export import exporter
    from mtu_export.authoring import upcycle
    from mtu_export.exporter import options

    out, checkpoint = root / "edit-onnx-int8", root / "whole"
    if not out.is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
        upcycle.write_random("atom", checkpoint, tasks=["edit"])
        plan = options.resolve(
            model=checkpoint,
            target="onnx",
            task="edit",
            scheme="int8",
            height=16,
            width=24,
            bake_steps=[2],
            out=out,
        )
        exporter.export(plan)
    return out


def mutate_bundle(folder: Path, random: Random) -> str:
    """Change a copy of a valid bundle in place; returns what was changed."""
    choice = random.randrange(12)
    if choice < 4:
        return _mutate_manifest(folder, random)
    if choice > 8:
        return _mutate_flow(folder, random)
    if choice == 4:
        tricks = ("..", "/etc", "unet/../unet", "é" * 200, "a\0b", "~", "unet/model.onnx", "\ud800")
        manifest = _manifest(folder)
        pick(random, manifest["parts"])["path"] = pick(random, tricks)
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


SOURCES: tuple[dict[str, Any], ...] = (
    *({"kind": "latent"}, {"kind": "guided"}, {"kind": "column", "name": "timestep"}),
    *({"kind": "column", "name": "x"}, {"kind": "constant", "name": "x"}),
    *({"kind": "constant", "name": "empty/encoder_hidden_states"}, {"kind": "tensor", "name": "x"}),
    *({"kind": "tokens", "tokenizer": "tokenizer"}, {"kind": "number", "name": "x"}),
    *({"kind": "picture", "name": "image"}, {"kind": "picture", "name": "image", "mean": 8}),
    *({"kind": "picture", "name": "image", "outside": "image"}, {"kind": "x"}),
    *({"kind": "output", "call": name, "name": "latent_sample"} for name in (UNET, "x")),
)
KEYS: tuple[dict[str, Any], ...] = (
    *({"multiply": 0.5}, {"divide": 1e9}, {"multiply": 2, "divide": 2}, {"only": "image"}),
    *({"only": "prompt"}, {"every": 8}, {"every": 8, "mean": 8}, {"axis": 1}, {"axis": 7}),
    *({"empty": "empty/encoder_hidden_states"}, {"empty": "x"}, {"name": "x"}, {"new": 1}),
)


def _mutate_flow(folder: Path, random: Random) -> str:
    """Another order of calls, another source or key, or another table."""
    manifest = _manifest(folder)
    flow = manifest["tasks"][0]["flow"]
    calls = flow["calls"]
    value = pick(random, pick(random, calls)["inputs"].values())
    index = random.randrange(len(value["sources"]))
    match random.randrange(8):
        case 0:
            random.shuffle(calls)
            change = "calls shuffled"
        case 1:
            calls.insert(random.randrange(len(calls)), copy.deepcopy(pick(random, calls)))
            change = "a call twice"
        case 2:
            calls.remove(pick(random, calls))
            change = "a call less"
        case 3:
            pick(random, calls)["when"] = pick(random, ("once", "pass", "guided", "end"))
            change = "when of a call"
        case 4:
            value["sources"][index] = pick(random, SOURCES)
            change = f"source {value['sources'][index]}"
        case 5:
            pick(random, (value, value["sources"][index])).update(pick(random, KEYS))
            change = f"keys of {value}"
        case 6:
            key = pick(random, ("prediction", "picture", "refined", "start"))
            flow[key] = pick(random, (*SOURCES, *(flow[k] for k in ("prediction", "picture"))))
            change = f"{key} {flow[key]}"
        case _:
            change = _mutate_table(pick(random, manifest["loop"]["schedules"]), random)
    dump(manifest, folder / "manifest.json")
    return change[:200]


def _mutate_table(table: dict[str, Any], random: Random) -> str:
    step = pick(random, table["passes"])
    match random.randrange(5):
        case 0:
            table["passes"].remove(step)
            return "a pass less"
        case 1:
            table["passes"].append(step)
            return "a pass more"
        case 2:
            table["strength"] = 0.5
            return "a table with a strength"
        case 3:
            step["columns"] = pick(random, ({}, {"x": 1.0}, {"timestep": [1.0, 2.0]}))
            return f"columns {step['columns']}"
        case _:
            step[pick(random, ("x", "m"))] = [random.uniform(-2, 2) for _ in range(4)]
            step["noise"] = pick(random, (0.0, 0.1))
            return "coefficients of a pass"


def _mutate_goldens(path: Path, random: Random) -> str:
    import numpy as np

    header, data = safetensors(path)
    name = pick(random, [key for key in header if key != "__metadata__"])
    if random.random() < 0.5:
        begin, end = (n // 4 for n in header[name]["data_offsets"])
        value = pick(random, (np.nan, np.inf, 0.0, 1e38))
        np.frombuffer(data, np.float32)[begin:end] = value  # ids are as wide
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

    manifest = _manifest(folder)
    part = pick(random, manifest["parts"])
    model = folder / part["path"] / "model.onnx"
    data = bytearray(model.read_bytes())
    if cut:
        data, change = data[: random.randrange(len(data))], "model cut"
    else:
        for _ in range(pick(random, (1, 20, 1000))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        change = "bits of the model"
    model.write_bytes(data)
    if random.random() < 0.8:  # a forger would write the new hash too
        part["bytes"], part["sha256"] = bundle.size(model.parent), bundle.sha256(model.parent)
        dump(manifest, folder / "manifest.json")
        change += ", hashed anew"
    return change
