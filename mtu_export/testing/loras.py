"""Random LoRA files under the names of several trainers, written without mtu_export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtu_export.models.pipeline.layout import UNET

Pair = tuple[Tensor, Tensor]
_OLD_NAMES = {
    "to_q": "to_q_lora",
    "to_k": "to_k_lora",
    "to_v": "to_v_lora",
    "to_out.0": "to_out_lora",
}


def pair(layer: nn.Module, rank: int, seed: int, std: float = 0.3) -> Pair:
    """Random down and up matrices of one Linear or Conv2d, in PEFT's shapes."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out, inner, *kernel = weight.shape
    down = torch.randn(rank, inner, *kernel, generator=generator) * std
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * std
    return down, up


def pairs(module: nn.Module, paths: Iterable[str], rank: int = 4, seed: int = 0) -> dict[str, Pair]:
    """Random LoRA matrices for each of the paths in a module."""
    return {
        path: pair(module.get_submodule(path), rank, 1000 * seed + i)
        for i, path in enumerate(paths)
    }


def layers(module: nn.Module) -> list[str]:
    """Paths of all Linear and Conv2d layers."""
    kinds = (nn.Linear, nn.Conv2d)
    return [path for path, layer in module.named_modules() if isinstance(layer, kinds)]


def peft(
    matrices: Mapping[str, Pair], component: str = UNET, wrapper: str = ""
) -> dict[str, Tensor]:
    """A LoRA's tensors under PEFT's names."""
    tensors = {}
    for path, (down, up) in matrices.items():
        stem = f"{wrapper}{component}.{path}" if component else wrapper + path
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return tensors


def old_diffusers(matrices: Mapping[str, Pair]) -> dict[str, Tensor]:
    """A LoRA's tensors under diffusers 0.1x's names, with attention processors where they fit."""
    tensors = {}
    for path, (down, up) in matrices.items():
        stem = f"unet.{path}.lora"
        for leaf, name in _OLD_NAMES.items():
            if ".attn" in path and path.endswith(f".{leaf}"):
                stem = f"unet.{path.removesuffix(leaf)}processor.{name}"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors


def kohya(
    matrices: Mapping[str, Pair], prefix: str = "lora_unet_", alpha: float | None = None
) -> dict[str, Tensor]:
    """A LoRA's tensors under kohya's names."""
    tensors = {}
    for path, (down, up) in matrices.items():
        stem = prefix + path.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def write(
    path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None
) -> Path:
    """Write a safetensors file, with a ``LoraConfig`` where diffusers keeps it."""
    metadata = {"format": "pt"}
    if config is not None:
        metadata["lora_adapter_metadata"] = json.dumps(config)
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata=metadata)
    return path
