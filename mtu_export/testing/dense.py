"""Random dense pipelines: stock ones of diffusers, with any UNet options and any scheduler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel

from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing import architectures, random_parts


def write_dense(
    architecture: str,
    folder: Path,
    seed: int = 0,
    *,
    pipeline: str = "StableDiffusionPipeline",
    unet: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a whole diffusers pipeline with random weights; returns ``folder``.

    ``unet`` changes options of the architecture's UNet, ``scheduler`` entries of its scheduler's
    config, ``flags`` those of ``model_index.json``, ``parts`` options of its other parts; ``vae``
    is the config of another VAE.
    """
    with torch.device("meta"):
        config = {**architectures.ARCHITECTURES[architecture], **(unet or {})}
        module = UNet2DConditionModel.from_config(config)
    assert isinstance(module, UNet2DConditionModel)
    state = {
        name: random_parts.random_tensor(name, tuple(value.shape), seed)
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
    module.save_pretrained(folder / UNET)
    stock = architectures.STOCK_PARTS[architecture]
    others = {name: {**config, **(parts or {}).get(name, {})} for name, config in stock.items()}
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        **random_parts.write(others, folder, seed, torch.float32),
        UNET: ["diffusers", "UNet2DConditionModel"],
    }
    if not architectures.ARCHITECTURES[architecture].get("addition_embed_type"):
        index |= {key: [None, None] for key in ("safety_checker", "feature_extractor")}
    if vae is not None:
        shutil.rmtree(folder / "vae")
        index["vae"] = random_parts.write_vae(folder / "vae", vae, seed, torch.float32)
    _set_scheduler(folder, index, scheduler or {})
    (folder / "model_index.json").write_text(json.dumps({**index, **(flags or {})}), "utf-8")
    return folder


def _set_scheduler(folder: Path, index: dict[str, Any], changes: Mapping[str, Any]) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    index["scheduler"] = ["diffusers", config["_class_name"]]
