"""Configs of the parts of a model in one file: sizes by its shapes, the rest as published.

Published: ``config.json`` of runwayml's 1.5, Stability AI's 2, 2.1 and SDXL base, and the LDM YAML
files of each. ``headers`` are a part's, in diffusers' and transformers' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export.checkpoint import Header

Headers = Mapping[str, Header]
_HEAD = 64
"""Channels of an attention head in 2.x, SDXL and every CLIP text encoder."""
_TIME = 256
_CLASSES = {4: "Pipeline", 8: "InstructPix2PixPipeline", 9: "InpaintPipeline"}
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
}


def unet(headers: Headers, architecture: str, pixels: int | None, v: bool) -> dict[str, Any]:
    """The UNet's config; ``pixels`` is the side of its images, None for the published one."""
    levels = _count(headers, "down_blocks")
    widths = [headers[f"down_blocks.{b}.resnets.0.conv1.weight"].shape[0] for b in range(levels)]
    depths = [_depth(headers, f"down_blocks.{b}.attentions.0") for b in range(levels)]
    sdxl = architecture == "sdxl"
    side = pixels or (1024 if sdxl else 768 if architecture == "sd2" and v else 512)
    cross = next(h.shape[1] for n, h in headers.items() if n.endswith("attn2.to_k.weight"))
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": headers["conv_in.weight"].shape[1],
        "out_channels": headers["conv_out.weight"].shape[0],
        "sample_size": side // 8,
        "block_out_channels": widths,
        "layers_per_block": _count(headers, "down_blocks.0.resnets"),
        "down_block_types": [_block("Down", depth) for depth in depths],
        "up_block_types": [_block("Up", depth) for depth in reversed(depths)],
        "cross_attention_dim": cross,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if architecture != "sd1":
        config |= {
            "attention_head_dim": [max(1, width // _HEAD) for width in widths],
            "use_linear_projection": True,
        }
    if architecture == "sd2" and v:
        config["upcast_attention"] = True
    if sdxl:
        config |= {
            "transformer_layers_per_block": [max(1, depth) for depth in depths],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME,
            "projection_class_embeddings_input_dim": headers["add_embedding.linear_1.weight"].shape[
                1
            ],
        }
    return config


def _block(kind: str, depth: int) -> str:
    return f"CrossAttn{kind}Block2D" if depth else f"{kind}Block2D"


def _depth(headers: Headers, path: str) -> int:
    return _count(headers, f"{path}.transformer_blocks")


def _count(headers: Headers, path: str) -> int:
    """How many modules a list has: its numbers, from 0 on."""
    prefix = f"{path}."
    numbers = {n.removeprefix(prefix).partition(".")[0] for n in headers if n.startswith(prefix)}
    return len(numbers)


def vae(headers: Headers, sdxl: bool, pixels: int | None = None) -> dict[str, Any]:
    """The config of an ``AutoencoderKL``."""
    levels = _count(headers, "encoder.down_blocks")
    paths = [f"encoder.down_blocks.{b}.resnets.0.conv1.weight" for b in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": headers["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [headers[path].shape[0] for path in paths],
        "layers_per_block": _count(headers, "encoder.down_blocks.0.resnets"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": pixels or (1024 if sdxl else 512),
        "scaling_factor": 0.13025 if sdxl else 0.18215,
        "force_upcast": sdxl,
    }


def tiny_vae(headers: Headers) -> dict[str, Any]:
    """The config of an ``AutoencoderTiny``, that of TAESD."""
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": headers["decoder.layers.0.weight"].shape[1],
        "scaling_factor": 1.0,
    }


def text_encoder(headers: Headers, architecture: str, projected: bool) -> dict[str, Any]:
    """The config of a CLIP text encoder; OpenCLIP's have an exact GELU."""
    path = "text_model.embeddings"
    vocabulary, width = headers[f"{path}.token_embedding.weight"].shape
    open_clip = projected or architecture == "sd2"
    projection = headers.get("text_projection.weight")
    inner = headers["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    return {
        "architectures": [f"CLIPTextModel{'WithProjection' if projected else ''}"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(headers, "text_model.encoder.layers"),
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": headers[f"{path}.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def scheduler(
    architecture: str, channels: int, prediction_type: str, zero_snr: bool
) -> dict[str, Any]:
    """The published scheduler of an architecture, for a prediction type."""
    config = {**_SCHEDULE, "prediction_type": prediction_type, "set_alpha_to_one": False}
    if zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return {"_class_name": "EulerDiscreteScheduler", **config}
    if architecture == "sdxl":
        return {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **config}
    if channels == 8:
        return {"_class_name": "EulerAncestralDiscreteScheduler", **config}
    if prediction_type == "v_prediction":
        return {"_class_name": "DDIMScheduler", **config}
    return {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **config}


def index(architecture: str, channels: int) -> dict[str, Any]:
    """The ``model_index.json`` of a whole pipeline."""
    xl = architecture == "sdxl"
    entries: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if xl else ''}{_CLASSES.get(channels, 'Pipeline')}",
        "scheduler": None,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        entries |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
    return entries
