"""The loop over tables against diffusers' own loop, and guidance against its formulas."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bundle import sampler
from mtu_export.bundle.metrics import psnr
from mtu_export.bundle.sampler import Branch
from mtu_export.exporter import schedule
from mtu_export.spec import Guidance, ParityError, Pass, PlanError, Schedule

FLOOR_DB = 120.0
SHAPE = (1, 4, 16, 16)
SCHEDULERS = ("ddim", "euler", "dpm++2m", "dpm++2m-karras", "pndm", "unipc")
NOISE = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def fake(scaled: torch.Tensor, timestep: float) -> torch.Tensor:
    """Nonlinear, of zero mean and about unit size, mixes neighbours, depends on time."""
    near = torch.roll(scaled, 1, -1) - 0.5 * torch.roll(scaled, 1, 1)
    return torch.sin(2 * scaled + timestep / 300) + 0.7 * torch.tanh(near) * torch.cos(scaled)


def fake_numpy(scaled: np.ndarray, step: Pass) -> np.ndarray:
    return fake(torch.from_numpy(scaled), step.timestep).numpy()


@cache
def prepared(name: str, prediction: str) -> Any:
    scheduler = schedule.load(None, name)
    scheduler.register_to_config(prediction_type=prediction)
    return type(scheduler).from_config(
        {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    )


def by_diffusers(scheduler: Any, steps: int) -> tuple[list[float], list[np.ndarray]]:
    """Timesteps and latents of a pipeline's loop, float32."""
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(NOISE) * scheduler.init_noise_sigma
    latents = []
    for t in scheduler.timesteps:
        output = fake(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x, return_dict=False)[0]
        latents.append(x.numpy().copy())
    return [float(t) for t in scheduler.timesteps], latents


@pytest.mark.parametrize("steps", [4, 8, 12, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_loop_is_that_of_diffusers(name: str, prediction: str, steps: int) -> None:
    scheduler = prepared(name, prediction)
    assert scheduler.config.prediction_type == prediction
    table = schedule.table(scheduler, steps)
    timesteps, expected = by_diffusers(scheduler, steps)
    latents = list(sampler.latents(table, NOISE, fake_numpy))
    assert [step.timestep for step in table.passes] == timesteps
    assert all(x.dtype == np.float32 and x.shape == SHAPE for x in latents)
    assert min(psnr(a, b) for a, b in zip(expected, latents, strict=True)) >= FLOOR_DB


def test_a_wrong_coefficient_would_show() -> None:
    """The measure is sharp: 1e-4 in one coefficient of 21 passes falls under the floor."""
    scheduler = prepared("pndm", "epsilon")
    table = schedule.table(scheduler, 20)
    step = table.passes[9]
    bent = Pass(
        timestep=step.timestep,
        input_scale=step.input_scale,
        x=(step.x[0] * 1.0001, *step.x[1:]),
        m=step.m,
    )
    passes = (*table.passes[:9], bent, *table.passes[10:])
    wrong = Schedule(start_noise=table.start_noise, passes=passes)
    last = list(sampler.latents(wrong, NOISE, fake_numpy))[-1]
    assert psnr(by_diffusers(scheduler, 20)[1][-1], last) < FLOOR_DB


def test_latents_are_made_pass_by_pass() -> None:
    asked = []

    def denoise(scaled: np.ndarray, step: Pass) -> np.ndarray:
        asked.append(step)
        assert scaled.dtype == np.float32
        return scaled

    table = schedule.table(prepared("ddim", "epsilon"), 4)
    running = sampler.latents(table, NOISE, denoise)
    assert asked == []
    next(running)
    assert asked == [table.passes[0]]


def random_table(random: np.random.Generator, count: int, strength: float | None) -> Schedule:
    """Passes of random coefficients, of which every second draws noise."""
    passes = []
    for i in range(count):
        a, b = (random.normal(0, 0.4, 4) * (np.arange(4) <= i) for _ in range(2))
        passes.append(
            Pass(
                timestep=float(i),
                input_scale=float(random.uniform(0.1, 2)),
                x=tuple(map(float, a)),
                m=tuple(map(float, b)),
                noise=float(random.normal()) if i % 2 else 0.0,
            )
        )
    return Schedule(
        start_noise=float(random.uniform(0.5, 15)),
        start_picture=0.0 if strength is None else float(random.normal()),
        strength=strength,
        passes=tuple(passes),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 9), strength=st.sampled_from([None, 0.5, 1.0])
)
def test_the_recurrence_is_that_of_the_contract(
    seed: int, count: int, strength: float | None
) -> None:
    """x_{i+1} = Σ_k x[k]·x_{i−k} + m[k]·m_{i−k} + noise·n_{i+1}, with plain indices in float64."""
    random = np.random.default_rng(seed)
    table = random_table(random, count, strength)
    noise = random.standard_normal((1 + count, 2, 3, 3)).astype(np.float32)
    picture = None if strength is None else noise[:1] ** 2
    asked = sampler.trajectory(
        table, noise, lambda x, step: np.tanh(x + step.timestep).astype(np.float32), picture
    )
    latents = [latent for _, latent in asked]
    wide = noise.astype(np.float64)
    x = [
        table.start_noise * wide[:1]
        + (0 if strength is None else table.start_picture * wide[:1] ** 2)
    ]
    m: list[np.ndarray] = []
    for i, step in enumerate(table.passes):
        m.append(np.tanh(step.input_scale * x[i] + step.timestep))
        total = step.noise * wide[i + 1 : i + 2]
        for k in range(min(i + 1, 4)):
            total += step.x[k] * x[i - k] + step.m[k] * m[i - k]
        x.append(total)
    scale = max(np.abs(each).max() for each in x)
    for expected, actual in zip(x[1:], latents, strict=True):
        assert np.abs(expected - actual).max() <= 2e-5 * scale


def test_a_sum_is_formed_in_float64_and_rounded_once() -> None:
    """Terms that cancel: in float32 nothing of the third would be left."""
    step = Pass(timestep=0.0, input_scale=1.0, x=(1.0, 0, 0, 0), m=(-1.0, 0, 0, 0), noise=1e-3)
    large, small = np.full((1, 1, 1, 1), 2.0**24, np.float32), np.ones((1, 1, 1, 1), np.float32)
    assert sampler.advance(step, [(large + 2, large)], small).item() == np.float32(2.001)
    table = Schedule(start_noise=0.1, start_picture=-0.1, strength=1.0, passes=(step,))
    x = sampler.start(table, np.full((2, 1, 1, 1), 3.0, np.float32), 3 * small)
    assert x.item() == 0.0


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (2, 4, 2, 2), (4, 4, 2, 2), (3, 4, 4)])
def test_noise_is_one_array_for_the_start_and_one_for_each_pass(shape: tuple[int, ...]) -> None:
    table = random_table(np.random.default_rng(0), 2, None)
    with pytest.raises(PlanError, match=r"the noise must be \[3, C, h, w\], got"):
        sampler.start(table, np.zeros(shape, np.float32))
    plain = Schedule(start_noise=1.0, passes=table.passes[:1])
    one, more = np.ones((1, 4, 2, 2), np.float32), np.ones((2, 4, 2, 2), np.float32)
    assert sampler.start(plain, one).shape == sampler.start(plain, more).shape == (1, 4, 2, 2)


def test_a_picture_is_taken_exactly_where_a_strength_is() -> None:
    noise, picture = np.ones((3, 4, 2, 2), np.float32), np.ones((1, 4, 2, 2), np.float32)
    table = random_table(np.random.default_rng(0), 2, 0.5)
    for wrong, got in ((None, "none"), (picture[..., 1:], r"\[1, 4, 2, 1\]")):
        with pytest.raises(PlanError, match=rf"takes a picture's latent .*, got {got}"):
            sampler.start(table, noise, wrong)
    table = random_table(np.random.default_rng(0), 2, None)
    with pytest.raises(PlanError, match="starts from noise alone and takes no picture"):
        sampler.start(table, noise, picture)


def test_a_seed_is_one_stream_for_the_start_and_all_passes() -> None:
    """The noise of the start does not depend on how many passes draw."""
    one, four = sampler.noise((1, 4, 2, 2), 7), sampler.noise((4, 4, 2, 2), 7)
    np.testing.assert_array_equal(one, four[:1])
    stream = np.random.default_rng(7).standard_normal(64, np.float32)
    np.testing.assert_array_equal(four.reshape(-1), stream)
    assert four.dtype == np.float32


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (np.full(SHAPE, np.nan, np.float32), "NaN or Inf"),
        (np.full(SHAPE, np.inf, np.float32), "NaN or Inf"),
        (np.zeros((1, 4, 1, 1), np.float32), "shape"),
    ],
)
def test_a_broken_denoiser_is_named_by_its_pass(output: np.ndarray, reason: str) -> None:
    table = schedule.table(prepared("ddim", "epsilon"), 4)
    with pytest.raises(ParityError, match=rf"pass 0 \(timestep 751\): the denoiser gave {reason}"):
        list(sampler.latents(table, NOISE, lambda *_: output))


# ------------------------------------------------------------------------------------ guidance

NONE = Guidance(kind="none")
TEXT = Guidance(kind="text", text=7.5)
BOTH = Guidance(kind="text_image", text=4.0, image=1.5)


def test_branches_are_those_of_the_format() -> None:
    full = Branch(text=True, image=True)
    assert sampler.branches(NONE) == (full,)
    assert sampler.branches(TEXT) == (Branch(text=False, image=True), full)
    assert sampler.branches(BOTH) == (
        Branch(text=False, image=False),
        Branch(text=False, image=True),
        full,
    )
    for guidance in (NONE, TEXT, BOTH):
        assert len(sampler.branches(guidance)) == guidance.passes


def test_guidance_is_that_of_diffusers_pipelines() -> None:
    """StableDiffusion's and InstructPix2Pix's own lines, in torch float64."""
    random = np.random.default_rng(3)
    nothing, image, full = random.standard_normal((3, *SHAPE)).astype(np.float32)
    wide = [torch.from_numpy(x).double() for x in (nothing, image, full)]
    classifier_free = wide[0] + 7.5 * (wide[2] - wide[0])
    pix2pix = wide[0] + 4.0 * (wide[2] - wide[1]) + 1.5 * (wide[1] - wide[0])
    for guidance, outputs, expected in (
        (NONE, [full], wide[2]),
        (TEXT, [nothing, full], classifier_free),
        (BOTH, [nothing, image, full], pix2pix),
    ):
        guided = sampler.guide(guidance, outputs)
        assert guided.dtype == np.float32
        np.testing.assert_allclose(guided, expected.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outputs", [[], [NOISE], [NOISE] * 3, [NOISE, NOISE[:, :2]]])
def test_guidance_of_wrong_outputs_is_refused(outputs: list[np.ndarray]) -> None:
    with pytest.raises(PlanError, match="takes 2 outputs"):
        sampler.guide(TEXT, outputs)


def test_the_sampler_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom mtu_export.bundle import images, sampler\nprint('torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "False"


@pytest.mark.parametrize("text", [-1.0, 0.0, 0.5, 1.0, 1.001, 7.5])
@pytest.mark.parametrize("image", [None, 0.0, 0.9, 1.0, 1.5])
def test_scales_that_turn_guidance_off_in_diffusers_leave_the_prompt_alone(
    text: float, image: float | None
) -> None:
    if image is None:
        kind: Any = diffusers.StableDiffusionPipeline
        guidance = Guidance(kind="text", text=text)
    else:
        kind = diffusers.StableDiffusionInstructPix2PixPipeline
        guidance = Guidance(kind="text_image", text=text, image=image)
    unet = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=None))
    pipeline = SimpleNamespace(
        unet=unet,
        _guidance_scale=text,
        guidance_scale=text,
        _image_guidance_scale=image,
        image_guidance_scale=image,
    )
    is_on = kind.do_classifier_free_guidance.fget(pipeline)
    branches = sampler.branches(guidance)
    assert len(branches) == (guidance.passes if is_on else 1)
    assert branches[-1] == Branch(text=True, image=True)
    outputs = [np.full((1, 4, 2, 2), value, np.float32) for value in (3.0, -1.0, 2.0)]
    if not is_on:
        assert np.array_equal(sampler.guide(guidance, outputs[:1]), outputs[0])
