"""Valid checkpoints, and random changes to copies of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

from safetensors import SafetensorError

from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing.campaigns.mutations.configs import (
    config_keys,
    config_ours,
    config_stock,
    config_task,
    json_bytes,
)
from mtu_export.testing.campaigns.mutations.files import INDEX, WEIGHTS, dump, pick
from mtu_export.testing.campaigns.mutations.values import ODD
from mtu_export.testing.campaigns.mutations.weights import data, dtype, header, shards

BASES = ("tiny", "tiny-sharded", "tiny-sdxl", "tiny-sdxl-sharded")
"""Valid checkpoints: SD and SDXL, each as one file and as shards."""
TASKS = ("t2i", "edit", "inpaint", "fill")
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8], "scaling_factor": 0.18}
SCHEDULER = {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}


def make_base(root: Path, name: str) -> Path:
    """The valid checkpoint ``name`` of ``BASES`` below ``root``; written once."""
    from mtu_export import checkpoint
    from mtu_export.authoring import upcycle
    from mtu_export.models.pipeline import files as pipeline_files

    folder, draft = root / name, root / f"{name}.new"
    if folder.is_dir():
        return folder
    shutil.rmtree(draft, ignore_errors=True)
    upcycle.write_random(name.removesuffix("-sharded"), draft, tasks=TASKS)
    for part in [path for path in draft.iterdir() if path.is_dir() and path.name != UNET]:
        shutil.rmtree(part)
    pipeline_files.write_index(draft, {})
    if name.endswith("-sharded"):
        whole = draft / "whole"
        (draft / UNET).rename(whole)
        headers = checkpoint.headers(whole)
        tensors = ((name, checkpoint.tensor(headers, name)) for name in headers)
        config = json.loads((whole / "config.json").read_text("utf-8"))
        checkpoint.write(draft / UNET, config, tensors, shard_bytes=2_000_000)
        shutil.rmtree(whole)
    for part, part_config in (("vae", VAE), ("scheduler", SCHEDULER)):
        (draft / part).mkdir()
        path = draft / part / ("config.json" if part == "vae" else "scheduler_config.json")
        path.write_text(json.dumps(part_config), "utf-8")
    (draft / "LICENSE").write_text("as you like\n", "utf-8")
    draft.rename(folder)
    return folder


def other_parts(folder: Path, random: Random) -> str:
    """Change a file outside the UNet's folder."""
    key = pick(random, ("block_out_channels", "scaling_factor", "latent_channels"))
    value = pick(random, (*ODD, [1] * 6, [1] * 7, [1], 0.5, -0.18, 1e30, 4))
    if random.random() < 0.7:
        dump({**VAE, key: value}, folder / "vae" / "config.json")
        return f"vae {key}={value!r:.60}"
    name = pick(random, ("model_index.json", "scheduler/scheduler_config.json"))
    documents = (
        {"_class_name": value},
        {UNET: value},
        [value],
        {"\ud800": 1},
        {"../x": ["a", "b"]},
    )
    dump(pick(random, documents), folder / name)
    return f"{name} replaced"


def links(folder: Path, random: Random) -> str:
    """Replace a plain file by a link, folder, pipe or pickle, or remove it."""
    names = ("unet/config.json", f"unet/{WEIGHTS}", "LICENSE", "vae/config.json", f"unet/{INDEX}")
    path = folder / pick(random, names)
    choice = pick(
        random, ("outside", "loop", "nowhere", "folder", "pipe", "zero", "pickle", "gone")
    )
    path.unlink(missing_ok=True)
    if choice == "pickle":
        path = folder / UNET / "diffusion_pytorch_model.bin"
        path.write_bytes(b"\x80\x04K\x01.")
        shutil.rmtree(folder / UNET / WEIGHTS, ignore_errors=True)
    elif choice == "folder":
        path.mkdir()
    elif choice == "pipe":
        os.mkfifo(path)
    elif choice != "gone":
        targets = {"outside": "/etc/hostname", "loop": path.name, "nowhere": "/nowhere/x"}
        path.symlink_to(targets.get(choice, "/dev/zero"))
    return f"{path.name} is {choice}"


_CHANGES: tuple[tuple[int, Callable[[Path, Random], str]], ...] = (
    (30, config_stock),
    (10, config_ours),
    (6, config_keys),
    (10, config_task),
    (9, json_bytes),
    (13, header),
    (10, data),
    (2, dtype),
    (6, shards),
    (5, other_parts),
    (5, links),
)
"""(weight, function) of every kind of change."""


_TOO_BROKEN = (RecursionError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""Errors of a change that finds nothing left to change after an earlier one."""


def mutate(folder: Path, random: Random) -> str:
    """Change a copy of a valid checkpoint in place; returns what was changed."""
    weights = [weight for weight, _ in _CHANGES]
    descriptions = []
    for _ in range(pick(random, (1, 1, 1, 2, 3))):
        change = random.choices(_CHANGES, weights)[0][1]
        try:
            descriptions.append(change(folder, random))
        except (*_TOO_BROKEN, struct.error, SafetensorError):
            if not descriptions:
                raise
            break
    return "; ".join(descriptions)
