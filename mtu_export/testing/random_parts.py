"""Seeded random weights, and all parts of a random pipeline but its UNet."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from mtu_export import checkpoint
from mtu_export.bundle import tokenizer
from mtu_export.models.pipeline.layout import tokenizer_folder
from mtu_export.models.pipeline.stock import TEXT_CLASSES, VAE_CLASSES
from mtu_export.testing import vocabulary

_TEXT_PREFIX = "text_model."
"""Prefix of a text encoder's tensor names in every published checkpoint."""
_BRANCHES = ("self_attn.out_proj.weight", "mlp.fc2.weight")
"""Last matrices of the two residual branches in each layer of a text encoder."""


def _seeded(name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    """Normal values that depend only on name, shape and seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.randn(shape, generator=generator) * std


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Values of plausible scale: 1/√fan_in for matrices, near 1 for norm weights."""
    if len(shape) > 1:
        gain = 2.0 if name.endswith("router.fc2.weight") else 1.0
        fan_in = 1 if name == "task_embedding.weight" else math.prod(shape[1:])
        return _seeded(name, shape, gain / math.sqrt(fan_in), seed)
    values = _seeded(name, shape, 0.1, seed)
    return values + 1 if name.endswith("weight") else values


def _text_tensor(name: str, shape: tuple[int, ...], seed: int, layers: int) -> Tensor:
    """As :func:`random_tensor`, scaled so that hidden states are near 1 after every layer."""
    if name.endswith("_embedding.weight"):
        return _seeded(name, shape, math.sqrt(0.5), seed)
    if name.endswith(_BRANCHES):
        return random_tensor(name, shape, seed) / math.sqrt(2 * layers)
    return random_tensor(name, shape, seed)


def _vae_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """As :func:`random_tensor`; the last layer is halved, so that images stay within ±3.

    That of a tiny VAE, which has three outputs and a number for its name, is a tenth.
    """
    value = random_tensor(f"vae/{name}", shape, seed)
    if name.startswith("decoder.layers.") and shape[0] == 3:
        return value / 10
    return value / 2 if name == "decoder.conv_out.weight" else value


def write(
    parts: Mapping[str, Mapping[str, Any]], folder: Path, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Write text encoders, tokenizers, VAE and scheduler of these configs, all stock.

    Returns their entries of ``model_index.json``. Each tensor depends only on its part, name, shape
    and seed.
    """
    index: dict[str, Any] = {}
    for part, config in parts.items():
        if part == "scheduler":
            path = folder / part / "scheduler_config.json"
            path.parent.mkdir()
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
            index[part] = ["diffusers", config["_class_name"]]
        elif part == "vae":
            index[part] = write_vae(folder / part, config, seed, dtype)
        else:
            kind = f"CLIPTextModel{'WithProjection' if part.endswith('_2') else ''}"
            _write_text_encoder(folder / part, kind, config, seed, dtype)
            index[part] = ["transformers", kind]
            name = tokenizer_folder(part)
            start, end = config["bos_token_id"], config["eos_token_id"]
            pad = tokenizer.END if config["pad_token_id"] == end else "!"
            vocabulary.write(folder / name, start=start, end=end, pad=pad)
            index[name] = ["transformers", "CLIPTokenizer"]
    if "text_encoder_2" in index:
        index["force_zeros_for_empty_prompt"] = True
    return index


def write_vae(folder: Path, config: Mapping[str, Any], seed: int, dtype: torch.dtype) -> list[str]:
    """Write a random VAE; returns its entry of ``model_index.json``."""
    config = {"_class_name": "AutoencoderKL", **config}
    kind = config["_class_name"]
    with torch.device("meta"):
        shapes = _shapes(VAE_CLASSES[kind](**{k: v for k, v in config.items() if k[0] != "_"}))
    tensors = ((n, _vae_tensor(n, s, seed).to(dtype)) for n, s in shapes.items())
    checkpoint.write(folder, config, tensors)
    return ["diffusers", kind]


def _write_text_encoder(
    folder: Path, kind: str, config: Mapping[str, Any], seed: int, dtype: torch.dtype
) -> None:
    with torch.device("meta"):
        shapes = _shapes(TEXT_CLASSES[kind](CLIPTextConfig(**config)))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in shapes.items():
            complete = name.startswith((_TEXT_PREFIX, "text_projection."))
            full = name if complete else f"{_TEXT_PREFIX}{name}"
            value = _text_tensor(f"{folder.name}/{full}", shape, seed, config["num_hidden_layers"])
            yield full, value.to(dtype)

    stored_config = {"architectures": [kind], "model_type": "clip_text_model", **config}
    checkpoint.write(folder, stored_config, tensors(), stem=checkpoint.TEXT_WEIGHTS)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
