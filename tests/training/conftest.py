"""What tests of training share: checkpoints to begin with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from mtu_export.testing import architectures, random_parts


@pytest.fixture(scope="session")
def four_tasks(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny MTU checkpoint of the paper's four tasks."""
    return make_tiny("tiny", whole=True, tasks=["t2i", "edit", "sr", "inpaint"])


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny dense pipeline."""
    home = tmp_path_factory.mktemp("dense") / "pipeline"
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES["tiny"]))
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(home / "unet")
    index = random_parts.write("tiny", home, 0, torch.float32)
    said = {
        "_class_name": "StableDiffusionPipeline",
        **index,
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (home / "model_index.json").write_text(json.dumps(said), "utf-8")
    return home
