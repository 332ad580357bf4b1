"""LoRA files of random values in the names of several trainers, written without mtu_export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
OLD = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


def pair(layer: nn.Module, rank: int, seed: int, std: float = 0.3) -> Pair:
    """down and up of one Linear or Conv2d, as PEFT shapes them."""
    random = torch.Generator().manual_seed(seed)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out, inner, *kernel = weight.shape
    down = torch.randn(rank, inner, *kernel, generator=random) * std
    up = torch.randn(out, rank, *[1] * len(kernel), generator=random) * std
    return down, up


def pairs(module: nn.Module, paths: Iterable[str], rank: int = 4, seed: int = 0) -> dict[str, Pair]:
    """Random matrices of a LoRA for each path of a module."""
    return {
        path: pair(module.get_submodule(path), rank, 1000 * seed + i)
        for i, path in enumerate(paths)
    }


def layers(module: nn.Module) -> list[str]:
    """Paths of every Linear and Conv2d."""
    kinds = (nn.Linear, nn.Conv2d)
    return [path for path, layer in module.named_modules() if isinstance(layer, kinds)]


def peft(rows: Mapping[str, Pair], component: str = "unet", wrapper: str = "") -> dict[str, Tensor]:
    """The tensors of a file in PEFT's names."""
    found = {}
    for path, (down, up) in rows.items():
        stem = f"{wrapper}{component}.{path}" if component else wrapper + path
        found |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return found


def old_diffusers(rows: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Attention processors as of diffusers 0.1x, ``.lora.down`` elsewhere."""
    found = {}
    for path, (down, up) in rows.items():
        stem = f"unet.{path}.lora"
        for leaf, name in OLD.items():
            if ".attn" in path and path.endswith(f".{leaf}"):
                stem = f"unet.{path.removesuffix(leaf)}processor.{name}"
        found |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return found


def kohya(
    rows: Mapping[str, Pair], prefix: str = "lora_unet_", alpha: float | None = None
) -> dict[str, Tensor]:
    """The tensors of a file in kohya's names."""
    found = {}
    for path, (down, up) in rows.items():
        stem = prefix + path.replace(".", "_")
        found |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        if alpha is not None:
            found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def write(
    path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None
) -> Path:
    """A safetensors file, with a ``LoraConfig`` as diffusers keeps it."""
    metadata = {"format": "pt"}
    if config is not None:
        metadata["lora_adapter_metadata"] = json.dumps(config)
    rows = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(rows, path, metadata=metadata)
    return path
