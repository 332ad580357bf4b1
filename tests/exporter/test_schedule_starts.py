"""Tables that start inside the schedule, from a picture, against img2img of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest

from mtu_export.bundle import sampler
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import schedule
from mtu_export.spec import PlanError, Unsupported
from tests.support.scheduler_loop import by_scheduler, fake_numpy

FLOOR_DB = 110.0
LATENT = (1, 4, 16, 16)
PICTURE = np.random.default_rng(5).standard_normal(LATENT, np.float32)
SD = dict(schedule.SD_DEFAULT)
DRAWING = [
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]
QUIET = [
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


def scheduler_of(name: str, **settings: Any) -> Any:
    """A scheduler of diffusers with the config of Stable Diffusion 1.x and these settings."""
    return getattr(diffusers, name).from_config(SD, **settings)


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58, 0.8, 1.0])
@pytest.mark.parametrize("name", QUIET + DRAWING)
def test_the_loop_is_that_of_the_scheduler_from_the_same_start(name: str, strength: float) -> None:
    scheduler, steps = scheduler_of(name), 20
    table = schedule.table(scheduler, steps, strength)
    noise = sampler.noise((1 + len(table.passes), *LATENT[1:]), 0)
    expected = list(by_scheduler(scheduler, steps, noise, strength, PICTURE))
    actual = list(sampler.latents(table, noise, fake_numpy, PICTURE))
    assert [step.timestep for step in table.passes] == [t for t, _ in expected]
    assert min(psnr(x, y) for (_, x), y in zip(expected, actual, strict=True)) >= FLOOR_DB
    assert table.strength == strength
    assert bool(table.draws) == (name in DRAWING and any(step.noise for step in table.passes))


@pytest.mark.parametrize("steps", [4, 7, 20, 50])
@pytest.mark.parametrize("strength", [0.29, 0.5, 0.57, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
def test_the_passes_are_those_of_the_img2img_pipeline(
    name: str, steps: int, strength: float
) -> None:
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(steps)
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    get_timesteps = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    expected, _ = get_timesteps(pipeline, steps, strength, None)
    table = schedule.table(scheduler_of(name), steps, strength)
    assert [step.timestep for step in table.passes] == [float(t) for t in expected]


def test_a_start_is_the_forward_process() -> None:
    """sqrt(a)·picture + sqrt(1 − a)·noise at the first timestep, and picture + σ·noise."""
    scheduler = scheduler_of("DDIMScheduler")
    table = schedule.table(scheduler, 20, 0.5)
    alpha = float(scheduler.alphas_cumprod[int(table.passes[0].timestep)])
    assert (table.start_picture, table.start_noise) == pytest.approx(
        (alpha**0.5, (1 - alpha) ** 0.5), rel=1e-6
    )
    euler = scheduler_of("EulerDiscreteScheduler")
    table = schedule.table(euler, 20, 0.5)
    euler.set_timesteps(20)
    assert (table.start_picture, table.start_noise) == (1.0, float(euler.sigmas[10]))


def test_the_history_begins_at_the_start() -> None:
    """A multistep solver has nothing to look back at in its first pass, wherever that is."""
    table = schedule.table(scheduler_of("DPMSolverMultistepScheduler"), 20, 0.5)
    assert [step.depth for step in table.passes[:3]] == [1, 2, 2]


def test_full_strength_still_holds_the_picture() -> None:
    """As img2img of diffusers: all passes, from a start that is not noise alone."""
    scheduler = scheduler_of("DDIMScheduler")
    full, plain = schedule.table(scheduler, 8, 1.0), schedule.table(scheduler, 8)
    assert full.passes == plain.passes
    assert (full.start_picture > 0, plain.start_picture, plain.strength) == (True, 0.0, None)


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.01, 2, float("nan"), "0.5", True, [0.5]])
def test_a_strength_out_of_range_is_refused(strength: Any) -> None:
    with pytest.raises(PlanError, match="strength must be above 0 and at most 1") as caught:
        schedule.table(scheduler_of("DDIMScheduler"), 4, strength)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_a_strength_that_leaves_no_pass_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=f"{name}, 4 steps at strength 0.24: no pass is left"):
        schedule.table(scheduler_of(name), 4, 0.24)
    assert len(schedule.table(scheduler_of("DDIMScheduler"), 4, 0.25).passes) == 1


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_scheduler_without_add_noise_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name} has no add_noise"):
        schedule.table(scheduler_of(name), 4, 0.5)


class Bent(diffusers.DDIMScheduler):
    """A start that is linear for impulses, which are 0 and 1, and for nothing else."""

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return super().add_noise(original_samples, noise * noise.abs(), timesteps)


class Shifted(diffusers.DDIMScheduler):
    """A start that adds a constant."""

    def add_noise(self, *words: Any, **named: Any) -> Any:
        return super().add_noise(*words, **named) + 1e-3


@pytest.mark.parametrize("kind", [Bent, Shifted])
def test_a_start_that_is_not_linear_is_refused(kind: type[Any]) -> None:
    scheduler = kind(beta_schedule="scaled_linear", clip_sample=False)
    with pytest.raises(Unsupported, match="start is not linear"):
        schedule.table(scheduler, 4, 0.5)
