"""A scheduler's own loop in float64, fed the noise that a table is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

from mtu_export.spec import Pass


def fake(scaled: torch.Tensor, timestep: float) -> torch.Tensor:
    """A stand-in for a UNet: nonlinear, of about unit size, mixes neighbours, knows the time.

    Its slope is about 1, as a denoiser's is. One of slope 3 makes the loop of LCM over 20 passes
    chaotic: rounding grows fourfold in each, and no two float32 loops agree.
    """
    near = torch.roll(scaled, 1, -1) - 0.5 * torch.roll(scaled, 1, 1)
    return 0.8 * torch.sin(scaled + timestep / 300) + 0.3 * torch.tanh(near) * torch.cos(scaled)


def fake_numpy(scaled: np.ndarray, step: Pass) -> np.ndarray:
    """The same for numpy arrays, as a sampler asks it."""
    return fake(torch.from_numpy(scaled), step.timestep).numpy()


def by_scheduler(
    scheduler: Any,
    steps: int,
    noise: np.ndarray,
    strength: float | None = None,
    picture: np.ndarray | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the timestep of each pass and x after it.

    ``noise`` [1 + P, C, h, w] is that of the start, then of each pass, drawn or not. With
    ``strength`` the start is written as the img2img pipelines of diffusers have it.
    """
    scheduler.set_timesteps(steps)
    timesteps, wide = scheduler.timesteps, torch.from_numpy(noise).double()
    x = wide[:1] * getattr(scheduler, "init_noise_sigma", 1.0)
    if strength is not None and picture is not None:
        init_timestep = min(int(steps * strength), steps)
        t_start = max(steps - init_timestep, 0)
        timesteps = timesteps[t_start * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(t_start * scheduler.order)
        x = scheduler.add_noise(torch.from_numpy(picture).double(), wide[:1], timesteps[:1])
    for index, t in enumerate(timesteps):
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        output = fake(scale(x, t), float(t))
        own = wide[index + 1 : index + 2]

        def draw(
            *words: Any, own: torch.Tensor = own, dtype: torch.dtype | None = None, **named: Any
        ) -> torch.Tensor:
            return own.to(dtype or torch.float32)

        with mock.patch.object(torch, "randn", draw):
            x = scheduler.step(output, t, x, return_dict=False)[0].double()
        yield float(t), x.numpy().copy()
