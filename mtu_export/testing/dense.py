"""A random dense pipeline, to be upcycled."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mtu_export.testing import architectures, random_parts


def write_dense(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Write a whole diffusers pipeline with random weights; returns ``folder``."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES[architecture]))
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(folder / "unet")
    index = {
        "_class_name": "StableDiffusionPipeline",
        **random_parts.write(architecture, folder, seed, torch.float32),
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder
