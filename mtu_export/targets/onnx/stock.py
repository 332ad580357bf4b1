"""The configs by which optimum and diffusers open an ONNX bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.spec import Plan

STOCK_PARTS: Mapping[str, tuple[str, str, str]] = {  # folder -> model_index key, library, class
    "unet": ("unet", "diffusers", "UNet2DConditionModel"),
    "text_encoder": ("text_encoder", "transformers", "CLIPTextModel"),
    "text_encoder_2": ("text_encoder_2", "transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("tokenizer", "transformers", "CLIPTokenizer"),
    "tokenizer_2": ("tokenizer_2", "transformers", "CLIPTokenizer"),
    "vae_encoder": ("vae", "diffusers", "AutoencoderKL"),
    "vae_decoder": ("vae", "diffusers", "AutoencoderKL"),
}


def write_configs(component: str, plan: Plan, folder: Path) -> None:
    """Write ``config.json`` beside the model, ``model_index.json`` and the scheduler's config."""
    if component == "unet":
        channels = plan.config["in_channels"] + plan.tasks[0].channels
        config = checkpoint.stock_config(plan.config, channels)
    else:
        source = "vae" if component.startswith("vae_") else component
        config = _source_config(plan.checkpoint / source / "config.json") or {}
    _dump(config, folder / component / "config.json")
    index: dict[str, Any] = {"_class_name": _pipeline_class(plan)}
    scheduler = _source_config(plan.checkpoint / "scheduler" / "scheduler_config.json")
    if scheduler is not None:
        _dump(scheduler, folder / "scheduler" / "scheduler_config.json")
        index["scheduler"] = ["diffusers", scheduler.get("_class_name")]
    for name, (key, library, kind) in STOCK_PARTS.items():
        if (folder / name).is_dir():
            index[key] = [library, kind]
    _dump(index, folder / "model_index.json")


def _pipeline_class(plan: Plan) -> str:
    kinds = {entry.kind for entry in plan.tasks[0].conditioning}
    size = "XL" if plan.config.get("addition_embed_type") == "text_time" else ""
    job = "InstructPix2Pix" if "image_latent" in kinds else ""
    if kinds >= {"mask", "masked_image_latent"}:
        job = "Inpaint"
    return f"StableDiffusion{size}{job}Pipeline"


def _source_config(path: Path) -> dict[str, Any] | None:
    return checkpoint.read_json(path) if path.is_file() else None


def _dump(found: Mapping[str, Any], path: Path) -> None:
    kept = {key: value for key, value in found.items() if key != "_name_or_path"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")
