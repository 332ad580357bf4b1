"""Checkpoints of the MTU family that tests load, change and ask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mtu_export import MTUUNet2DConditionModel
from mtu_export.models.mtu import network as mtu

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def inputs(unet: MTUUNet2DConditionModel, task: str, seed: int = 0) -> dict[str, object]:
    random = torch.Generator().manual_seed(seed)
    config, channels = unet.config, 4 + unet.task(task).channels

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    values: dict[str, object] = {
        "sample": normal(2, channels, 16, 16),
        "timestep": torch.tensor([401.0]),
        "encoder_hidden_states": normal(2, 77, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        values["added_cond_kwargs"] = {
            "text_embeds": normal(2, pooled),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
        }
    return values


def load(folder: Path) -> MTUUNet2DConditionModel:
    return mtu.load(folder)


def edit_config(source: Path, out: Path, **changes: object) -> Path:
    shutil.copytree(source, out)
    path = out / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), "utf-8")
    return out


def edit_weights(
    source: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(out / WEIGHTS)
    change(tensors)
    save_file(tensors, out / WEIGHTS)
    return out
