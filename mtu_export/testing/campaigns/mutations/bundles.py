"""A valid bundle, and random changes to a copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from mtu_export.testing.campaigns.mutations.files import (
    dump,
    pick,
    safetensors,
    slot,
    write_safetensors,
)
from mtu_export.testing.campaigns.mutations.values import ODD


def make_bundle(home: Path, checkpoint: Path) -> Path:
    """A valid int8 ONNX bundle below ``home``."""
    from mtu_export import exporter
    from mtu_export.exporter import options

    out = home / "edit-onnx-int8"
    if not out.is_dir():
        words = {"target": "onnx", "task": "edit", "scheme": "int8", "out": out}
        exporter.export(options.resolve(model=checkpoint, height=64, width=64, **words))  # type: ignore[arg-type]
    return out


def mutate_bundle(folder: Path, random: Random) -> str:
    """Change a copy of a valid bundle in place; says what was changed."""
    from mtu_export import bundle

    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text("utf-8"))
    choice = random.randrange(9)
    said = ""
    if choice < 4:
        node, key = slot(random, found)
        if random.random() < 0.25 and isinstance(node, dict):
            del node[key]
            said = f"manifest without {key!r:.60}"
        else:
            node[key] = pick(random, ODD)
            said = f"manifest {key!r:.60}={node[key]!r:.60}"
        dump(found, manifest)
    elif choice == 4:
        tricks = ("..", "/etc", "unet/../unet", "é" * 200, "a\0b", "~", "unet/model.onnx", "\ud800")
        found["parts"][0]["path"] = pick(random, tricks)
        dump(found, manifest)
        said = "path of a part"
    elif choice == 5:
        data = bytearray(manifest.read_bytes())
        at = random.randrange(len(data))
        data[at : at + 5] = pick(random, (b"", b"\xff", b"1", b'"', b"{"))
        manifest.write_bytes(data)
        said = "bytes of the manifest"
    elif choice == 6:
        path = folder / "goldens.safetensors"
        header, data = safetensors(path)
        name = pick(random, [key for key in header if key != "__metadata__"])
        if random.random() < 0.5:
            import numpy as np

            begin, end = (n // 4 for n in header[name]["data_offsets"])
            value = pick(random, (np.nan, np.inf, 0.0, 1e38))
            np.frombuffer(data, np.float32)[begin:end] = value
            said = f"goldens {name} = {value}"
        else:
            odd = ({"dtype": "I32"}, {"dtype": "F16"}, {"shape": [1]}, {"data_offsets": [0, 4]})
            header[name] |= pick(random, odd)
            if random.random() < 0.3:
                header[pick(random, ("x", "unet/edit/9/sample", "a/b/c/d"))] = header.pop(name)
            said = f"header of goldens, {name}"
        write_safetensors(path, header, bytes(data))
    else:
        model = folder / "unet" / "model.onnx"
        data = bytearray(model.read_bytes())
        if choice == 7:
            for _ in range(pick(random, (1, 20, 1000))):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            said = "bits of the model"
        else:
            data = data[: random.randrange(len(data))]
            said = "model cut"
        model.write_bytes(data)
        if random.random() < 0.8:  # a forger would write the new hash too
            part = found["parts"][0]
            part["bytes"], part["sha256"] = bundle.size(model.parent), bundle.sha256(model.parent)
            dump(found, manifest)
            said += ", hashed anew"
    return said
