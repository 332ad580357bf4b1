"""The VAE of the world: f = 4, 4 channels, stock ``AutoencoderKL``; its gate is 33 dB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.shapes.cases import TASKS, case, inputs
from benchmarks.shapes.fitting import DEVICE, fit
from benchmarks.shapes.world import World, draw

_KL = 2e-4
"""Weight of the mean KL divergence of a latent number, beside the mean squared error of a pixel."""
_POOL = 2048
"""Pictures that are drawn at once."""


def pictures(world: World, split: str, start: int, count: int) -> Tensor:
    """What an encoder sees: pictures to make and inputs of all tasks, [~2·count, 3, side, side]."""
    images: list[Tensor] = []
    for number, task in enumerate(TASKS):
        batch = [case(world, task, split, start + i) for i in range(number, count, len(TASKS))]
        images.append(draw(world, [item.after for item in batch]))
        conditions = inputs(world, batch)
        if conditions is not None:
            images.append(conditions)
    return torch.cat(images)


def config(world: World, widths: Sequence[int], groups: int) -> dict[str, Any]:
    """A stock config, ``scaling_factor`` not yet known."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1,
        "norm_num_groups": groups,
        "act_fn": "silu",
        "sample_size": world.side,
    }


def train(world: World, settings: Mapping[str, Any], root: Path) -> tuple[Any, float]:
    """The trained VAE, with the scaling factor that gives its latents unit variance; seconds."""
    torch.manual_seed(settings["seed"])
    model: Any = AutoencoderKL(**config(world, settings["widths"], settings["groups"]))
    model.to(memory_format=torch.channels_last)
    batch, pool = settings["batch_size"], pictures(world, "train", 0, _POOL)
    at = 0

    def loss(step: int) -> Tensor:
        nonlocal pool, at
        turns = max(1, len(pool) // batch)
        if step // turns != at:
            at = step // turns
            pool = pictures(world, "train", at * _POOL, _POOL)
        generator = torch.Generator().manual_seed(settings["seed"] * 1_000_003 + step)
        chosen = torch.randint(len(pool), (batch,), generator=generator)
        images = pool[chosen].to(DEVICE).contiguous(memory_format=torch.channels_last)
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = model.decode(posterior.mean + posterior.std * noise.to(DEVICE)).sample
        error = decoded - images
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + _KL * divergence

    seconds = fit(model, loss, root / "vae", steps=settings["steps"], rate=settings["rate"])
    model.eval().requires_grad_(False)
    with torch.no_grad():
        spread = model.encode(pictures(world, "train", 0, 1024)).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / spread, 5))
    return model, seconds


def psnr(model: Any, world: World, count: int = 1000) -> float:
    """Mean PSNR, dB, of held-out pictures through the VAE; peak is the range of −1..1."""
    images = pictures(world, "test", 0, count)
    total = 0.0
    with torch.no_grad():
        for batch in images.split(128):
            decoded = model.decode(model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
            errors = (decoded - batch).square().mean((1, 2, 3)).clamp_min(1e-12)
            total += (10 * torch.log10(4 / errors)).sum().item()
    return total / len(images) if math.isfinite(total) else 0.0
