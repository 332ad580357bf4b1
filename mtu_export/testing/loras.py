"""Random LoRA files under the names of several trainers, written without mtu_export."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtu_export.models.pipeline.layout import UNET

Pair = tuple[Tensor, Tensor]
Roles = dict[str, Tensor]
"""Tensors of one layer, by the ends of their names."""
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


# ---------------------------------------------------------------------------------- other forms


def lora_roles(layer: nn.Module, rank: int, seed: int, mid: bool = False) -> Roles:
    """A LoRA of one layer under kohya's names; with ``mid`` LyCORIS' Tucker decomposition."""
    down, up = pair(layer, rank, seed)
    roles = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(rank / 2)}
    if mid:
        roles["lora_mid.weight"] = _random(seed + 7, rank, rank, *down.shape[2:])
        roles["lora_down.weight"] = _random(seed + 8, rank, down.shape[1], *[1] * (down.ndim - 2))
    return roles


def loha(layer: nn.Module, rank: int, seed: int, cores: bool = False) -> Roles:
    """A LoHa of one layer, the kernel of a convolution flattened or in ``cores``."""
    out, inner, *kernel = _shape(layer)
    roles = {"alpha": torch.tensor(rank / 2)}
    for n in (1, 2):
        a, b = (out, rank), (rank, inner * math.prod(kernel))
        if cores:
            a, b = (rank, out), (rank, inner)
            roles[f"hada_t{n}"] = _random(seed + n, rank, rank, *kernel)
        roles[f"hada_w{n}_a"] = _random(seed + 10 * n, *a)
        roles[f"hada_w{n}_b"] = _random(seed + 20 * n, *b)
    return roles


def lokr(layer: nn.Module, rank: int, seed: int, first: str, second: str) -> Roles:
    """A LoKr of one layer: each factor ``whole`` or a ``product``, the second also with a
    ``core``.
    """
    out, inner, *kernel = _shape(layer)
    (a, b), (c, d) = _factors(out), _factors(inner)
    roles = {"alpha": torch.tensor(rank / 2)}
    if first == "whole":
        roles["lokr_w1"] = _random(seed, a, c)
    else:
        roles |= {"lokr_w1_a": _random(seed, a, rank), "lokr_w1_b": _random(seed + 1, rank, c)}
    if second == "whole":
        roles["lokr_w2"] = _random(seed + 2, b, d, *kernel)
    elif second == "core":
        roles["lokr_t2"] = _random(seed + 2, rank, rank, *kernel)
        roles |= {"lokr_w2_a": _random(seed + 3, rank, b), "lokr_w2_b": _random(seed + 4, rank, d)}
    else:
        roles["lokr_w2_a"] = _random(seed + 3, b, rank)
        roles["lokr_w2_b"] = _random(seed + 4, rank, d * math.prod(kernel))
    return roles


def full(layer: nn.Module, seed: int) -> Roles:
    """The whole difference of one layer, and of its bias."""
    names = (
        ("diff", "diff_b") if isinstance(layer, (nn.Linear, nn.Conv2d)) else ("w_norm", "b_norm")
    )
    roles = {names[0]: _random(seed, *_shape(layer))}
    if layer.bias is not None:
        roles[names[1]] = _random(seed + 1, *_shape(layer)[:1])
    return roles


def magnitude(layer: nn.Module, seed: int, axis: int = 0) -> Tensor:
    """A DoRA's magnitudes near the layer's norms, in the shape that LyCORIS gives them."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    others = [k for k in range(weight.ndim) if k != axis]
    norm = torch.linalg.vector_norm(weight.detach(), dim=others, keepdim=True)
    return norm * (1 + _random(seed, *norm.shape).abs())


def by_layer(
    roles: Mapping[str, Roles], prefix: str = "lora_unet_", dotted: bool = False
) -> dict[str, Tensor]:
    """Tensors of layers by path, under kohya's and LyCORIS' names."""
    return {
        f"{prefix}{path if dotted else path.replace('.', '_')}.{role}": tensor
        for path, tensors in roles.items()
        for role, tensor in tensors.items()
    }


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def _factors(number: int) -> tuple[int, int]:
    """Two factors of a number, the first as near to its root as can be."""
    small = next(n for n in range(math.isqrt(number), 0, -1) if number % n == 0)
    return small, number // small
