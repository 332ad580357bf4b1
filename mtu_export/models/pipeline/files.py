"""The parts of a pipeline folder beside the UNet: which there are, and how they are taken over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.spec import CheckpointError

_LEFT_OUT = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack", ".*")
OPTIONAL = ("feature_extractor", "image_encoder", "safety_checker")
"""Parts that diffusers' pipelines run without; others that an index names must be there."""
_WEIGHTED = ("image_encoder", "safety_checker")
"""Those of them with weights, which are not fetched from the hub."""


def read(source: Folder) -> dict[str, Any]:
    """Entries of ``model_index.json`` other than the UNet, with their names checked.

    Leaves out what is absent and optional, or without a class, and optional parts that came without
    their weights, which no pipeline would open. Raises ``CheckpointError`` for other absent parts.
    """
    index = checkpoint.read_json(source / "model_index.json")
    for name in index:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
            raise CheckpointError(
                f"{source / 'model_index.json'}: {name[:80]!r} is not a valid part name"
            )
    for name in absent(source, index):
        raise CheckpointError(
            checkpoint.refusal(source, name)
            or f"{source} has no {name}/, which its model_index.json names; complete the copy or "
            "download"
        )
    return {
        name: entry
        for name, entry in index.items()
        if name != "unet"
        and not name.startswith("_")
        and (_is_flag(entry) or _is_whole(source / name))
    }


def _is_whole(part: Folder) -> bool:
    return part.is_dir() and (
        part.name not in _WEIGHTED
        or any(name.endswith(".safetensors") for name in checkpoint.children(part))
    )


def absent(folder: Folder, index: Mapping[str, Any]) -> list[str]:
    """Parts with a class in ``model_index.json`` whose folder is missing; optional ones may be."""
    return [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and any(entry) and not name.startswith("_")
        if name not in OPTIONAL and not (folder / name).is_dir()
    ]


def _is_flag(entry: object) -> bool:
    """A scalar of the index, such as SDXL's ``force_zeros_for_empty_prompt``."""
    return isinstance(entry, (bool, int, float, str))


def refuse_refiner(folder: Folder) -> None:
    """Refuse SDXL's refiner: its sizes are five numbers with an aesthetic score, here they are six.

    The index of a pipeline says so in ``requires_aesthetics_score``. Raises ``CheckpointError``.
    """
    path = folder / "model_index.json"
    if path.is_file() and checkpoint.read_json(path).get("requires_aesthetics_score") is True:
        raise CheckpointError(
            f"{path}: requires_aesthetics_score is true: SDXL's refiner is not supported, only "
            "its base model"
        )


def copy(source: Folder, folder: Path, index: Mapping[str, Any]) -> None:
    """Copy a pipeline's other parts and its licence; pickles and hidden files stay behind.

    Parts of a model in one file, and variants, are written as folders.
    """
    for name in (name for name, entry in index.items() if not _is_flag(entry)):
        _copy_part(source, source / name, folder / name)
    for path in checkpoint.licences(source):
        shutil.copyfile(path, folder / path.name)


def _copy_part(source: Folder, part: Folder, folder: Path) -> None:
    left_out = shutil.ignore_patterns(*_LEFT_OUT)
    if isinstance(part, Path):
        for path in (part, *part.rglob("*")):
            if not checkpoint.stays_inside(path, part.parent):
                raise CheckpointError(f"{path} is a link that leaves {source}")
        shutil.copytree(part, folder, ignore=left_out)
        return
    files = {n: path for n, path in checkpoint.children(part).items() if path.is_file()}
    stem = next((s for s in checkpoint.STEMS if f"{s}.safetensors" in files), None)
    stem = stem or next(
        (s for s in checkpoint.STEMS if f"{s}.safetensors.index.json" in files), None
    )
    if stem is None:
        folder.mkdir(parents=True)
    else:
        headers = checkpoint.headers(part, stem, checkpoint.POSITION_IDS)
        tensors = ((name, checkpoint.tensor(headers, name)) for name in headers)
        config = checkpoint.read_json(part / "config.json")
        checkpoint.write(folder, config, tensors, stem=stem)
    for name, path in files.items():
        if (
            name.endswith((".json", ".txt"))
            and not (folder / name).exists()
            and ".index." not in name
        ):
            _copy_file(path, folder / name)


def _copy_file(path: Folder, out: Path) -> None:
    if isinstance(path, Path):
        shutil.copyfile(path, out)
    else:
        out.write_text(json.dumps(checkpoint.read_json(path), indent=2) + "\n", "utf-8")


def write_index(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write ``model_index.json`` of a checkpoint with these parts beside its UNet."""
    index = {
        "_class_name": "MTUPipeline",
        **entries,
        "unet": ["mtu_export", "MTUUNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
