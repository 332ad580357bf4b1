"""Changes to the JSON files of a checkpoint: keys, tasks, bytes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing.campaigns.mutations.files import INDEX, dump, pick, slot
from mtu_export.testing.campaigns.mutations.values import ODD, OURS, STOCK


def config_stock(folder: Path, random: Random) -> str:
    """Change a key that diffusers reads."""
    path = folder / UNET / "config.json"
    config = json.loads(path.read_text("utf-8"))
    key = pick(random, STOCK)
    value = pick(random, STOCK[key] if random.random() < 0.8 else ODD)
    dump(config | {key: value}, path)
    return f"config {key}={value!r:.60}"


def config_ours(folder: Path, random: Random) -> str:
    """Change a key of experts, routers or tasks."""
    path = folder / UNET / "config.json"
    config = json.loads(path.read_text("utf-8"))
    key = pick(random, OURS)
    value = pick(random, OURS[key] if random.random() < 0.8 else ODD)
    dump(config | {key: value}, path)
    return f"config {key}={value!r:.60}"


def config_keys(folder: Path, random: Random) -> str:
    """Remove a key, or add an unknown one."""
    path = folder / UNET / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if random.random() < 0.7:
        key = pick(random, config)
        del config[key]
        dump(config, path)
        return f"config without {key}"
    key = pick(random, ("experts", "lora_rank", "", "tasks ", "\ud800", "In_channels", "_odd"))
    dump(config | {key: pick(random, ODD)}, path)
    return f"config with {key!r}"


def config_task(folder: Path, random: Random) -> str:
    """Change something inside ``tasks``: duplicate, rename, retype or remove it."""
    path = folder / UNET / "config.json"
    config = json.loads(path.read_text("utf-8"))
    tasks = config.get("tasks")
    if (
        not isinstance(tasks, list)
        or not all(isinstance(task, dict) for task in tasks)
        or not tasks
    ):
        return "no tasks"
    choice = random.randrange(6)
    if choice == 0:
        tasks.append(pick(random, tasks))
    elif choice == 1:
        random.shuffle(tasks)
    elif choice == 2:
        names = ("t2i", "weight", "training", "forward", "..", "a/b", "A" * 65, "edit ", "x", 5)
        pick(random, tasks)["name"] = pick(random, names)
    elif choice == 3:
        task = pick(random, tasks)
        task["guidance"] = pick(
            random,
            (
                {"kind": "text"},
                {"kind": "text", "text": -1e9},
                {"kind": "text", "text": True},
                {"kind": "none", "text": 1.0},
                {"kind": "text_image", "text": 1.0},
                {"kind": "x"},
                {"kind": ["text"]},
                {"kind": "none"},
                {"kind": "text", "text": 3, "colour": 1},
                7,
            ),
        )
    elif choice == 4:
        task = pick(random, tasks)
        task["conditioning"] = pick(
            random,
            (
                [{"kind": "mask", "channels": 2}],
                [{"kind": "image_latent", "channels": 0}],
                [{"kind": "image_latent", "channels": 10**9}],
                [{"kind": "image_latent", "channels": 3}],
                [{"kind": "image", "channels": 3, "scaled": False}],
                [{"kind": {}, "channels": 3}],
                [{"kind": "image_latent", "channels": 4, "scaled": 0}],
                [{"kind": "image_latent", "channels": 4}] * 1000,
                [[]],
                "mask",
            ),
        )
    else:
        node, key = slot(random, tasks)
        if random.random() < 0.3 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = pick(random, ODD)
    dump(config, path)
    return f"tasks changed ({choice})"


def json_bytes(folder: Path, random: Random) -> str:
    """Cut, flip, insert or delete bytes of a JSON file, or replace it by something else."""
    names = ["unet/config.json"] * 3 + [f"unet/{INDEX}", "vae/config.json", "model_index.json"]
    path = folder / pick(random, names)
    if not path.is_file():
        path = folder / UNET / "config.json"
    data = bytearray(path.read_bytes())
    choice = random.randrange(6)
    if choice == 0:
        data = data[: random.randrange(len(data) + 1)]
    elif choice == 1 and data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif choice == 2:
        begin = random.randrange(len(data) + 1)
        data[begin:begin] = pick(
            random, (b"\0", b"\xff", b'"', b"}", b"9" * 5000, b"-", b"NaN", b",{")
        )
    elif choice == 3:
        data = bytearray(pick(random, (b"[" * 100_000, b"[]", b"null", b'"x"', b"\xef\xbb\xbf{}")))
    elif choice == 4:
        text = data.decode("utf-8", "replace").rstrip()
        data = bytearray((text[:-1] + ', "in_channels": 4}').encode())
    else:
        begin = random.randrange(len(data) + 1)
        del data[begin : begin + random.randrange(1, 40)]
    path.write_bytes(data)
    return f"bytes of {path.name} ({choice})"
