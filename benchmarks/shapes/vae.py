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
    found: list[Tensor] = []
    for number, task in enumerate(TASKS):
        rows = [case(world, task, split, start + i) for i in range(number, count, len(TASKS))]
        found.append(draw(world, [row.after for row in rows]))
        given = inputs(world, rows)
        if given is not None:
            found.append(given)
    return torch.cat(found)


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


def train(world: World, words: Mapping[str, Any], home: Path) -> tuple[Any, float]:
    """The trained VAE, with the scaling factor that gives its latents unit variance; seconds."""
    torch.manual_seed(words["seed"])
    model: Any = AutoencoderKL(**config(world, words["widths"], words["groups"]))
    model.to(memory_format=torch.channels_last)
    batch, pool = words["batch_size"], pictures(world, "train", 0, _POOL)
    at = 0

    def loss(step: int) -> Tensor:
        nonlocal pool, at
        turns = max(1, len(pool) // batch)
        if step // turns != at:
            at = step // turns
            pool = pictures(world, "train", at * _POOL, _POOL)
        generator = torch.Generator().manual_seed(words["seed"] * 1_000_003 + step)
        rows = torch.randint(len(pool), (batch,), generator=generator)
        given = pool[rows].to(DEVICE).contiguous(memory_format=torch.channels_last)
        posterior = model.encode(given).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        made = model.decode(posterior.mean + posterior.std * noise.to(DEVICE)).sample
        error = made - given
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + _KL * divergence

    seconds = fit(model, loss, home / "vae", steps=words["steps"], rate=words["rate"])
    model.eval().requires_grad_(False)
    with torch.no_grad():
        spread = model.encode(pictures(world, "train", 0, 1024)).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / spread, 5))
    return model, seconds


def psnr(model: Any, world: World, count: int = 1000) -> float:
    """Mean PSNR, dB, of held-out pictures through the VAE; peak is the range of −1..1."""
    given = pictures(world, "test", 0, count)
    total = 0.0
    with torch.no_grad():
        for rows in given.split(128):
            made = model.decode(model.encode(rows).latent_dist.mode()).sample.clamp(-1, 1)
            errors = (made - rows).square().mean((1, 2, 3)).clamp_min(1e-12)
            total += (10 * torch.log10(4 / errors)).sum().item()
    return total / len(given) if math.isfinite(total) else 0.0
