"""Checks of the configs of CLIP text encoders and VAEs, so that only supported graphs are built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline.layout import TINY_VAE
from mtu_export.models.pipeline.unet import TEXT_TOKENS
from mtu_export.spec import CheckpointError, shown

_TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
_VAE_CLASSES = ("AutoencoderKL", TINY_VAE)
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
_TINY_LEVELS, _TINY_BLOCKS = (64, 64, 64, 64), {"encoder": (1, 3, 3, 3), "decoder": (3, 3, 3, 1)}
"""Defaults of diffusers' ``AutoencoderTiny``."""
_TINY_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("relu", "silu", "gelu"),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}


def class_of(folder: Folder, name: str, config: Mapping[str, Any]) -> str:
    """The class named by config and index; refuses other classes, remote code and contradictions.

    SDXL's second text encoder must have a projection, since diffusers takes the pooled text from
    it.
    """
    vae = name == "vae"
    legal = _VAE_CLASSES if vae else _TEXT_CLASSES[1:] if name.endswith("_2") else _TEXT_CLASSES
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


def vae_fields(kind: str, config: Mapping[str, Any], path: Folder) -> dict[str, Any]:
    """The validated arguments of a VAE of class ``kind``.

    Refuses what the graphs do not support: unknown keys, other blocks, shifted latents.
    """
    _check_sizes(config, _VAE_SIZES, path)
    _check_channels(config, path)
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    if kind == TINY_VAE:
        _check_tiny(config, path)
        fields.pop("block_out_channels", None)  # diffusers writes it and makes it itself
    else:
        _check_blocks(config, path)
    module = AutoencoderTiny if kind == TINY_VAE else AutoencoderKL
    legal = inspect.signature(module.__init__).parameters
    for key in fields:
        if key not in legal:
            raise CheckpointError(f"{path}: unknown key {key[:80]!r}")
    return fields


def _levels(config: Mapping[str, Any], key: str, default: Sequence[int], path: Folder) -> list[int]:
    """The widths, or numbers of blocks, of each level."""
    levels = config.get(key, list(default))
    if not isinstance(levels, list) or not 1 <= len(levels) <= 6:
        raise CheckpointError(f"{path}: {key} must be a list of 1 to 6 integers")
    for width in levels:
        _check_sizes({key: width}, {key: 2**14}, path)
    return levels


def _check_blocks(config: Mapping[str, Any], path: Folder) -> None:
    levels = _levels(config, "block_out_channels", (64,), path)
    for key, kind in _VAE_BLOCKS.items():
        blocks = config.get(key, [kind])
        if not isinstance(blocks, list) or blocks != [kind] * len(levels):
            raise CheckpointError(f"{path}: {key} must be {kind} for every level")


def _check_tiny(config: Mapping[str, Any], path: Folder) -> None:
    """Refuse halves of different depth or uneven width, and other layers than TAESD's."""
    counts = {}
    for half, default in _TINY_BLOCKS.items():
        widths = _levels(config, f"{half}_block_out_channels", _TINY_LEVELS, path)
        blocks = _levels(config, f"num_{half}_blocks", default, path)
        if max(blocks) > 128:
            raise CheckpointError(f"{path}: num_{half}_blocks must be 1 to 128 a level")
        counts[half] = len(widths)
        if len(blocks) != len(widths):
            raise CheckpointError(
                f"{path}: num_{half}_blocks has {len(blocks)} levels, {half}_block_out_channels "
                f"{len(widths)}"
            )
        if len(set(widths)) > 1:
            raise CheckpointError(
                f"{path}: {half}_block_out_channels must be the same width on every level, got "
                f"{shown(widths)}"
            )
    if counts["encoder"] != counts["decoder"]:
        raise CheckpointError(
            f"{path}: the encoder has {counts['encoder']} levels, the decoder {counts['decoder']}"
        )
    for key, legal in _TINY_FIXED.items():
        value = config.get(key, legal[0])
        if isinstance(value, bool) or value not in legal:
            words = " or ".join(map(str, legal))
            raise CheckpointError(f"{path}: {key} {shown(value)} is refused; legal: {words}")


def _check_channels(config: Mapping[str, Any], path: Folder) -> None:
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            raise CheckpointError(f"{path}: {key} must be 3, got {shown(config[key])}")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key) not in (None, 0):
            raise CheckpointError(
                f"{path}: {key} {shown(config[key])} is refused: latents are scaled, never shifted"
            )
