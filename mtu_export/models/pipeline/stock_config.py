"""Checks of the configs of CLIP text encoders and VAEs, so that only supported graphs are built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline.unet import TEXT_TOKENS
from mtu_export.spec import CheckpointError, shown

_TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
_VAE_CLASS = "AutoencoderKL"
_ACTIVATIONS = ("quick_gelu", "gelu")
_TEXT_SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 128,
    "num_attention_heads": 2**10,
    "projection_dim": 2**16,
}
_VAE_SIZES = {"latent_channels": 2**10, "layers_per_block": 128, "norm_num_groups": 2**12}
_VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def class_of(folder: Folder, name: str, config: Mapping[str, Any]) -> str:
    """The class named by config and index; refuses other classes, remote code and contradictions.

    SDXL's second text encoder must have a projection, since diffusers takes the pooled text from
    it.
    """
    vae = name == "vae"
    legal = (_VAE_CLASS,) if vae else _TEXT_CLASSES[1:] if name.endswith("_2") else _TEXT_CLASSES
    where = folder / name / "config.json"
    entry = config.get("_class_name") if vae else config.get("architectures")
    entries = entry if isinstance(entry, list) else [entry]
    class_names = [(where, kind) for kind in entries if kind is not None]
    index = folder / "model_index.json"
    if index.is_file():
        entry = checkpoint.read_json(index).get(name)
        if entry is not None:
            library = "diffusers" if vae else "transformers"
            pair = isinstance(entry, list) and len(entry) == 2 and entry[0] == library
            class_names.append((index, entry[1] if pair else entry))  # type: ignore[index]
    for path, kind in class_names:
        if kind not in legal:
            raise CheckpointError(f"{path}: {name} is {shown(kind)}; legal: {' or '.join(legal)}")
    if len({kind for _, kind in class_names}) != 1:
        problem = "says no class" if not class_names else f"and {index.name} name different classes"
        raise CheckpointError(f"{where} {problem} of {name}; legal: {' or '.join(legal)}")
    return class_names[0][1]


def text_fields(config: Mapping[str, Any], path: Folder) -> dict[str, Any]:
    """The validated arguments of a ``CLIPTextConfig``."""
    fields = {key: config[key] for key in _TEXT_SIZES if key in config}
    _check_sizes(config, _TEXT_SIZES, path)
    length = config.get("max_position_embeddings", TEXT_TOKENS)
    if length != TEXT_TOKENS or isinstance(length, bool):
        raise CheckpointError(
            f"{path}: max_position_embeddings must be {TEXT_TOKENS}, got {shown(length)}"
        )
    act = config.get("hidden_act", _ACTIVATIONS[0])
    if act not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act {shown(act)} is refused; legal: {' or '.join(_ACTIVATIONS)}"
        )
    eps = config.get("layer_norm_eps", 1e-5)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise CheckpointError(f"{path}: layer_norm_eps must be between 0 and 1, got {shown(eps)}")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise CheckpointError(f"{path}: {key} must be an integer, got {shown(value)}")
        if value is not None:
            fields[key] = value
    return {**fields, "hidden_act": act, "layer_norm_eps": eps}


def _check_sizes(config: Mapping[str, Any], limits: Mapping[str, int], path: Folder) -> None:
    for key, limit in limits.items():
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise CheckpointError(
                f"{path}: {key} must be an integer from 1 to {limit}, got {shown(value)}"
            )


def check_vae(config: Mapping[str, Any], path: Folder) -> None:
    """Refuse what the VAE graphs do not support: unknown keys, other blocks, shifted latents."""
    _check_sizes(config, _VAE_SIZES, path)
    levels = config.get("block_out_channels", [64])
    if not isinstance(levels, list) or not 1 <= len(levels) <= 6:
        raise CheckpointError(f"{path}: block_out_channels must be a list of 1 to 6 integers")
    for width in levels:
        _check_sizes({"block_out_channels": width}, {"block_out_channels": 2**14}, path)
    for key, kind in _VAE_BLOCKS.items():
        blocks = config.get(key, [kind])
        if not isinstance(blocks, list) or blocks != [kind] * len(levels):
            raise CheckpointError(f"{path}: {key} must be {kind} for every level")
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            raise CheckpointError(f"{path}: {key} must be 3, got {shown(config[key])}")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key) not in (None, 0):
            raise CheckpointError(
                f"{path}: {key} {shown(config[key])} is refused: latents are scaled, never shifted"
            )
    legal = inspect.signature(AutoencoderKL.__init__).parameters
    for key in config:
        if not key.startswith("_") and key not in legal:
            raise CheckpointError(f"{path}: unknown key {key[:80]!r}")
