"""Pictures of cases from a checkpoint in PyTorch, many at once, by the product's own loop.

Noise depends on the case's number alone, so every row of a table starts from the same: rows are
paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from benchmarks.shapes.cases import Case, inputs
from benchmarks.shapes.world import World
from mtu_export.bundle import sampler, source_tokenizer, tokenizer
from mtu_export.exporter import schedule
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import Guidance, Pass, Task

Denoiser = Callable[[Tensor, float, Tensor], Tensor]
"""``(x [B, c, h, w], timestep, text [B, tokens, d]) -> noise [B, C, h, w]``"""
_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What every model of the world shares: text encoder, tokenizer, VAE, scheduler's folder."""

    text: CLIPTextModel
    tokenizer: tokenizer.Tokenizer
    vae: Any  # an AutoencoderKL: diffusers' return types are unions
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """The parts of a pipeline folder, frozen."""
        text = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
        vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True)
        return cls(
            text=text.float().eval().requires_grad_(False),  # stored as float16 or float32
            tokenizer=source_tokenizer.read(folder / "tokenizer"),
            vae=vae.float().eval().requires_grad_(False),
            folder=folder,
        )

    def states(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states [B, tokens, d]."""
        ids = np.concatenate([self.tokenizer.encode(prompt)[0] for prompt in prompts])
        return self.text(input_ids=torch.from_numpy(ids).long()).last_hidden_state

    def latents(self, pictures: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] of pictures."""
        return self.vae.encode(pictures).latent_dist.mode() * self.vae.config["scaling_factor"]

    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], clipped."""
        decoded = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample
        return decoded.clamp(-1, 1)


def live(folder: Path, name: str) -> tuple[Denoiser, Task]:
    """One task of an MTU checkpoint, its router live."""
    unet: Any = mtu.load(folder)
    task = unet.task(name)
    return (lambda x, t, text: unet(x, t, text, task=name).sample), task


def folded(folder: Path, name: str) -> tuple[Denoiser, Task]:
    """One task of an MTU checkpoint, folded to a stock UNet."""
    whole = mtu.load(folder)
    task = whole.task(name)
    unet: Any = mtu.specialise(whole, [task])[name].module
    return (lambda x, t, text: unet(x, t, text).sample), task


def dense(folder: Path, task: Task) -> tuple[Denoiser, Task]:
    """A stock UNet, which has one task."""
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
    unet.eval().requires_grad_(False)
    return (lambda x, t, text: unet(x, t, text).sample), task


def noise(parts: Parts, numbers: Sequence[int], side: int) -> np.ndarray:
    """The noise of cases [B, 4, h, w]."""
    factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
    shape = (1, 4, side // factor, side // factor)
    return np.concatenate([sampler.noise(shape, number) for number in numbers])


@torch.no_grad()
def pictures(
    world: World,
    parts: Parts,
    model: tuple[Denoiser, Task],
    cases: Sequence[Case],
    guidance: Guidance | None = None,
) -> Tensor:
    """The pictures [B, 3, side, side] of cases of one task; case i has the noise of number i."""
    denoise, task = model
    scales = guidance or task.guidance
    table = schedule.table(schedule.load(parts.folder, None), task.steps)
    pictures_ = []
    for start in range(0, len(cases), _BATCH):
        batch = cases[start : start + _BATCH]
        conditions = inputs(world, batch)
        full = None if conditions is None or not task.conditioning else parts.latents(conditions)
        prompts = [item.prompt if task.prompt is None else task.prompt for item in batch]
        embeddings, empty = parts.states(prompts), parts.states([""]).expand(len(batch), -1, -1)

        def guided(
            x: np.ndarray,
            step: Pass,
            full: Tensor | None = full,
            embeddings: Tensor = embeddings,
            empty: Tensor = empty,
        ) -> np.ndarray:
            latent, outputs = torch.from_numpy(x).view(len(embeddings), 4, *x.shape[2:]), []
            for branch in sampler.branches(scales):
                wide = latent
                if full is not None:
                    shown = full if branch.image else torch.zeros_like(full)
                    wide = torch.cat([latent, shown], 1)
                text = embeddings if branch.text else empty
                outputs.append(denoise(wide, step.timestep, text).numpy())
            return sampler.guide(scales, outputs).reshape(x.shape)

        start_noise = noise(parts, range(start, start + len(batch)), world.side)
        # the loop is of one latent: the cases' channels stand side by side in it
        side_by_side = start_noise.reshape(1, -1, *start_noise.shape[2:])
        *_, last = sampler.latents(table, side_by_side, guided)
        pictures_.append(parts.decoded(torch.from_numpy(last).view(start_noise.shape)))
    return torch.cat(pictures_)
