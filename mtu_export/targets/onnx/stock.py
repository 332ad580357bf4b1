"""The names and config files with which optimum and diffusers open an ONNX bundle.

They follow ``onnxruntime/modeling_diffusion.py`` of optimum-onnx 0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtu_export.spec import Plan
from mtu_export.spec.catalog import SCHEDULERS, SD_DEFAULT

STOCK_PARTS: Mapping[str, tuple[str, str, str]] = {  # folder -> model_index key, library, class
    "unet": ("unet", "diffusers", "UNet2DConditionModel"),
    "text_encoder": ("text_encoder", "transformers", "CLIPTextModel"),
    "text_encoder_2": ("text_encoder_2", "transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("tokenizer", "transformers", "CLIPTokenizer"),
    "tokenizer_2": ("tokenizer_2", "transformers", "CLIPTokenizer"),
    "vae_encoder": ("vae", "diffusers", "AutoencoderKL"),
    "vae_decoder": ("vae", "diffusers", "AutoencoderKL"),
}

_ZEROS = "force_zeros_for_empty_prompt"
_LAST, _BEFORE_LAST = "last_hidden_state", "hidden_states.0"


def io_names(component: str, plan: Plan) -> dict[str, str]:
    """Input and output names: name in the program -> name that optimum expects, where they differ.

    From SDXL's text encoders optimum takes all hidden states and reads the last but one. The files
    hold only that one, so their config declares a single layer, and its name is
    ``hidden_states.0``.
    """
    if component.startswith("text_encoder"):
        hidden_states = _BEFORE_LAST if plan.is_sdxl else _LAST
        return {"hidden_states": hidden_states, "pooled": "text_embeds"}
    return {
        "vae_encoder": {"latent": "latent_sample"},
        "vae_decoder": {"latent": "latent_sample"},
    }.get(component, {})


def repeated_outputs(component: str, plan: Plan) -> dict[str, str]:
    """Output to add -> output that it repeats.

    diffusers checks the shape of a text encoder's first output. For SDXL's first encoder it must
    have three axes, so the hidden states are returned twice.
    """
    return {_LAST: _BEFORE_LAST} if component == "text_encoder" and plan.is_sdxl else {}


def write_configs(component: str, plan: Plan, folder: Path) -> None:
    """Write ``config.json`` beside the model, ``model_index.json`` and the scheduler's config.

    Writes nothing for several tasks: optimum has no layout for them.
    """
    if len(plan.tasks) != 1:
        return
    config = dict(plan.stock_configs.get(component, {}))
    if component.startswith("text_encoder") and plan.is_sdxl:
        config["num_hidden_layers"] = 1  # as many hidden states as optimum looks for
    _dump(config, folder / component / "config.json")
    index: dict[str, Any] = {"_class_name": _pipeline_class(plan)}
    index["_diffusers_version"] = version("diffusers")
    scheduler = _scheduler_config(plan)
    _dump(scheduler, folder / "scheduler" / "scheduler_config.json")
    index["scheduler"] = ["diffusers", scheduler.get("_class_name")]
    flag = plan.stock_configs.get("model_index", {}).get(_ZEROS)
    if isinstance(flag, bool) and plan.is_sdxl:
        index[_ZEROS] = flag
    for name, (key, library, kind) in STOCK_PARTS.items():
        # A tokenizer is written last: its text encoder says whether there will be one.
        encoder = name.replace("tokenizer", "text_encoder")
        if (folder / encoder).is_dir():
            index[key] = [library, kind]
    _dump(index, folder / "model_index.json")


def _scheduler_config(plan: Plan) -> dict[str, Any]:
    """The config of the manifest's scheduler: that of ``--scheduler``, else the checkpoint's."""
    config = plan.stock_configs.get("scheduler") or SD_DEFAULT
    if plan.scheduler is None:
        return dict(config)
    kind, settings = SCHEDULERS[plan.scheduler]
    return {**config, **settings, "_class_name": kind}


def _pipeline_class(plan: Plan) -> str:
    kinds = {entry.kind for entry in plan.tasks[0].conditioning}
    size = "XL" if plan.is_sdxl else ""
    variant = "InstructPix2Pix" if "image_latent" in kinds else ""
    if kinds >= {"mask", "masked_image_latent"}:
        variant = "Inpaint"
    return f"StableDiffusion{size}{variant}Pipeline"


def _dump(config: Mapping[str, Any], path: Path) -> None:
    content = {key: value for key, value in config.items() if key != "_name_or_path"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
