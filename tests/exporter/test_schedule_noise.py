"""Tables of schedulers that draw noise: the coefficients, the proof, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from mtu_export.bundle import sampler
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import schedule
from mtu_export.spec import Schedule, Unsupported
from tests.support.scheduler_loop import by_scheduler, fake_numpy

FLOOR_DB = 110.0
LATENT = (1, 4, 16, 16)
SD = dict(schedule.SD_DEFAULT)
SDE = {"algorithm_type": "sde-dpmsolver++"}


def scheduler_of(name: str, **settings: Any) -> Any:
    """A scheduler of diffusers with the config of Stable Diffusion 1.x and these settings."""
    return getattr(diffusers, name).from_config(SD, **settings)


def last_psnr(scheduler: Any, table: Schedule, steps: int) -> float:
    """PSNR of the numpy sampler's last latent against the scheduler's own, in float64."""
    noise = sampler.noise((1 + len(table.passes), *LATENT[1:]), 0)
    *_, (_, expected) = by_scheduler(scheduler, steps, noise)
    *_, actual = sampler.latents(table, noise, fake_numpy)
    return psnr(expected, actual)


# ------------------------------------------------------------------------------------ the proof


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {}),
        ("DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDPMScheduler", {"prediction_type": "v_prediction"}),
        ("DDPMParallelScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("TCDScheduler", {}),
        ("SASolverScheduler", {}),
        ("DPMSolverMultistepScheduler", SDE),
        ("DPMSolverMultistepScheduler", {**SDE, "solver_order": 3}),
        ("DPMSolverMultistepScheduler", {**SDE, "use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {**SDE, "solver_type": "heun"}),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        ("DPMSolverSinglestepScheduler", SDE),
        ("EDMDPMSolverMultistepScheduler", SDE),
        ("FlowMatchLCMScheduler", {}),
        ("LTXEulerAncestralRFScheduler", {}),
    ],
)
def test_twenty_steps_are_those_of_the_scheduler(name: str, settings: dict[str, Any]) -> None:
    scheduler = scheduler_of(name, **settings)
    table = schedule.table(scheduler, 20)
    assert table.draws == len(table.passes) >= 20
    assert last_psnr(scheduler, table, 20) >= FLOOR_DB


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LCMScheduler", {}),
        ("TCDScheduler", {}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "steps_offset": 0}),
    ],
)
def test_few_steps_are_those_of_the_scheduler(
    name: str, settings: dict[str, Any], steps: int
) -> None:
    """Turbo, Lightning, Hyper, LCM and TCD checkpoints run so."""
    scheduler = scheduler_of(name, **settings)
    table = schedule.table(scheduler, steps)
    assert len(table.passes) == steps
    assert last_psnr(scheduler, table, steps) >= FLOOR_DB


def test_a_wrong_noise_coefficient_would_show() -> None:
    scheduler = scheduler_of("LCMScheduler")
    table = schedule.table(scheduler, 4)
    noise = sampler.noise((1 + table.draws, *LATENT[1:]), 0)
    *_, (_, expected) = by_scheduler(scheduler, 4, noise)
    *_, swapped = sampler.latents(table, noise[[0, 2, 1, 3, 4]], fake_numpy)
    assert psnr(expected, swapped) < 40


# -------------------------------------------------------------------------------- coefficients


def test_lcm_gives_the_published_coefficients() -> None:
    """Luo et al. 2023, algorithm 3: x = sqrt(a)·f + sqrt(1 − a)·z, but for the last pass."""
    scheduler = scheduler_of("LCMScheduler")
    table = schedule.table(scheduler, 4)
    alphas = scheduler.alphas_cumprod.double()
    times = [int(step.timestep) for step in table.passes]
    expected = [float((1 - alphas[t]).sqrt()) for t in times[1:]] + [0.0]
    assert [step.noise for step in table.passes] == pytest.approx(expected, rel=1e-5)


def test_euler_ancestral_gives_the_published_coefficients() -> None:
    """sigma_up of Karras et al. 2022 as k-diffusion has it."""
    scheduler = scheduler_of("EulerAncestralDiscreteScheduler")
    table = schedule.table(scheduler, 20)
    scheduler.set_timesteps(20)
    now, then = scheduler.sigmas[:-1].double(), scheduler.sigmas[1:].double()
    expected = (then**2 * (now**2 - then**2) / now**2).sqrt().tolist()
    assert [step.noise for step in table.passes] == pytest.approx(expected, rel=1e-5)


def test_ddpm_gives_the_published_coefficients() -> None:
    """Ho et al. 2020, equation 7: sqrt of the posterior's variance."""
    scheduler = scheduler_of("DDPMScheduler")
    alphas = scheduler.alphas_cumprod.double()
    steps = schedule.table(scheduler, 20).passes
    for step, after in pairwise(steps):
        now, then = alphas[int(step.timestep)], alphas[int(after.timestep)]
        variance = (1 - then) / (1 - now) * (1 - now / then)
        assert step.noise == pytest.approx(float(variance.sqrt()), rel=1e-4)


def test_tcd_takes_the_eta_of_its_step() -> None:
    """0.3, as its paper has it: the noise of a pass has less than LCM's weight."""
    lcm, tcd = (schedule.table(scheduler_of(f"{n}Scheduler"), 4) for n in ("LCM", "TCD"))
    for a, b in zip(lcm.passes[:-1], tcd.passes[:-1], strict=True):
        assert 0 < b.noise < a.noise


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "pndm", "unipc"])
def test_no_noise_where_the_step_draws_none(name: str) -> None:
    table = schedule.table(schedule.load(None, name), 8)
    assert (table.draws, {step.noise for step in table.passes}) == (0, {0.0})


# ------------------------------------------------------------------------------------- refusals


class Uniform(diffusers.DDIMScheduler):
    """A step that draws uniform noise."""

    def step(self, *words: Any, **named: Any) -> Any:
        return (super().step(*words, **named)[0] + torch.rand(1),)


class Filled(diffusers.DDIMScheduler):
    """A step that draws normal noise in place."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        return (result + torch.empty_like(result).normal_(),)


class Twice(diffusers.DDIMScheduler):
    """A step that draws two arrays of noise."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        return (result + torch.randn(result.shape) + torch.randn(result.shape),)


class Row(diffusers.DDIMScheduler):
    """A step that draws one number for the whole sample."""

    def step(self, *words: Any, **named: Any) -> Any:
        return (super().step(*words, **named)[0] + torch.randn((1,)),)


class Private(diffusers.DDIMScheduler):
    """A step whose noise comes from another library's generator."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        return (result + np.random.default_rng(0).standard_normal(),)


class Seeded(diffusers.DDIMScheduler):
    """A step whose noise has a seed of PyTorch's, as Brownian trees have."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        seed = int(torch.randint(0, 2**31, ()))
        return (result + np.random.default_rng(seed).standard_normal(),)


class Squared(diffusers.DDIMScheduler):
    """A step that is linear in noise for impulses, which are 0 and 1, and for nothing else."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        return (result + torch.randn(result.shape) ** 2,)


class Scaled(diffusers.DDIMScheduler):
    """A step whose noise has the sample's size, pixel by pixel."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **named: Any) -> Any:
        result = super().step(model_output, timestep, sample, **named)[0]
        return (result + torch.randn(result.shape) * sample,)


class Kept(diffusers.DDIMScheduler):
    """A step that adds the noise of the pass before it."""

    def set_timesteps(self, *words: Any, **named: Any) -> None:
        self.kept: Any = 0.0
        super().set_timesteps(*words, **named)

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        result, self.kept = result + self.kept, torch.randn(result.shape, dtype=result.dtype)
        return (result,)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Uniform, "draws noise that is not standard normal"),
        (Filled, "draws noise that is not standard normal"),
        (Seeded, "draws noise that is not standard normal"),
        (Twice, "Twice draws noise twice in a pass"),
        (Row, r"Row draws noise of shape \[1\]"),
        (Private, "zero in does not give zero out"),
        (Squared, "the step is not linear"),
        (Scaled, "the step is not linear"),
        (Kept, "earlier noise"),
    ],
)
def test_other_noise_is_refused(kind: type[Any], reason: str) -> None:
    scheduler = kind(beta_schedule="scaled_linear", clip_sample=False)
    with pytest.raises(Unsupported, match=reason) as caught:
        schedule.table(scheduler, 6)
    assert "\n" not in str(caught.value)


class Idle(diffusers.DDIMScheduler):
    """A step that draws in every way and uses nothing of it."""

    def step(self, *words: Any, **named: Any) -> Any:
        result = super().step(*words, **named)[0]
        torch.rand(3), torch.randn(result.shape)
        return (result,)


def test_noise_that_is_not_used_does_not_count() -> None:
    settings: dict[str, Any] = {"beta_schedule": "scaled_linear", "clip_sample": False}
    plain = schedule.table(diffusers.DDIMScheduler(**settings), 6)
    assert schedule.table(Idle(**settings), 6) == plain


def test_clipping_of_a_consistency_model_is_refused_with_its_cause() -> None:
    kind = diffusers.CMStochasticIterativeScheduler
    with pytest.raises(Unsupported, match="clip_denoised is on; set it to false"):
        schedule.table(kind(), 4)
    assert schedule.table(kind(clip_denoised=False), 4).draws == 4


def test_a_bundle_holds_the_noise_of_each_pass() -> None:
    baked = schedule.bake(scheduler_of("LCMScheduler"), (4, 8), required=True)
    assert {steps: table.draws for (steps, _), table in baked.tables.items()} == {4: 4, 8: 8}
