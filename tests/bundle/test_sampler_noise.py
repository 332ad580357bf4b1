"""The loop with fresh noise and a start from a picture: its sums, and the shapes it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bundle import sampler
from mtu_export.spec import BundleError, Pass, PlanError, Schedule

LATENT = (1, 2, 3, 4)
NOISE = sampler.noise((4, *LATENT[1:]), 0)
PICTURE = sampler.noise(LATENT, 1)
PLAIN = Pass(timestep=1.0, input_scale=0.5, x=(0.75, 0, 0, 0), m=(0.3, 0, 0, 0))
QUIET = Schedule(start_noise=2.5, passes=(PLAIN,) * 3)
NOISY = Schedule(start_noise=2.5, passes=(replace(PLAIN, noise=0.7), PLAIN, PLAIN))
FROM_PICTURE = replace(NOISY, start_picture=0.6, strength=0.5)


def denoise(x: np.ndarray, step: Pass) -> np.ndarray:
    return np.tanh(x + np.float32(step.timestep)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9))
def test_the_recurrence_with_noise(seed: int, count: int) -> None:
    """x_{i+1} = Σ_k x[k]·x_{i−k} + m[k]·m_{i−k} + noise·n_{i+1}, with plain indices in float64."""
    random = np.random.default_rng(seed)
    steps = []
    for i in range(count):
        a, b = (random.normal(0, 0.4, 4) * (np.arange(4) <= i) for _ in range(2))
        steps.append(
            Pass(
                timestep=float(i),
                input_scale=float(random.uniform(0.1, 2)),
                x=tuple(map(float, a)),
                m=tuple(map(float, b)),
                noise=float(random.uniform(0.1, 2)),
            )
        )
    schedule = Schedule(start_noise=1.7, start_picture=-0.4, strength=0.5, passes=tuple(steps))
    noise = sampler.noise((1 + count, *LATENT[1:]), seed)
    x = [1.7 * noise[:1].astype(np.float64) - 0.4 * PICTURE.astype(np.float64)]
    m: list[np.ndarray] = []
    for i, step in enumerate(steps):
        m.append(np.tanh(step.input_scale * x[i] + step.timestep))
        total = step.noise * noise[i + 1 : i + 2].astype(np.float64)
        for k in range(min(i + 1, 4)):
            total = total + step.x[k] * x[i - k] + step.m[k] * m[i - k]
        x.append(total)
    actual = list(sampler.latents(schedule, noise, denoise, PICTURE))
    scale = max(np.abs(each).max() for each in x)
    for wide, narrow in zip(x[1:], actual, strict=True):
        assert narrow.dtype == np.float32
        assert np.abs(wide - narrow).max() <= 2e-5 * scale


def test_noise_beyond_the_start_changes_nothing_where_no_pass_draws() -> None:
    one = list(sampler.latents(QUIET, NOISE[:1], denoise))
    all_of_it = list(sampler.latents(QUIET, NOISE, denoise))
    assert np.array_equal(one, all_of_it)


def test_each_pass_takes_its_own_noise() -> None:
    first = list(sampler.latents(NOISY, NOISE, denoise))
    other = NOISE.copy()
    other[2:] += 1  # of passes that draw none
    assert np.array_equal(first, list(sampler.latents(NOISY, other, denoise)))
    other[1] += 1
    assert np.abs(first[0] - next(sampler.latents(NOISY, other, denoise))).min() > 0.6


@given(sigma=st.floats(1e-3, 1e5))
def test_a_start_from_noise_is_the_single_product_of_float32(sigma: float) -> None:
    schedule = replace(QUIET, start_noise=sigma)
    assert np.array_equal(sampler.start(schedule, NOISE), np.float32(sigma) * NOISE[:1])


@given(a=st.floats(1e-3, 1e5), b=st.floats(-1e5, 1e5))
def test_a_start_from_a_picture_is_rounded_once(a: float, b: float) -> None:
    schedule = replace(FROM_PICTURE, start_noise=a, start_picture=b)
    wide = float(np.float32(a)) * NOISE[:1].astype(np.float64)
    wide += float(np.float32(b)) * PICTURE.astype(np.float64)
    assert np.array_equal(sampler.start(schedule, NOISE, PICTURE), wide.astype(np.float32))


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        (NOISY, (1, 2, 3, 4)),
        (NOISY, (3, 2, 3, 4)),
        (NOISY, (5, 2, 3, 4)),
        (NOISY, (4, 2, 3)),
        (NOISY, (0, 2, 3, 4)),
        (QUIET, (2, 2, 3, 4)),
        (QUIET, (5, 2, 3, 4)),
        (QUIET, (2, 3, 4)),
        (QUIET, ()),
    ],
)
def test_noise_of_another_shape_is_refused(schedule: Schedule, shape: tuple[int, ...]) -> None:
    legal = r"\[4, C, h, w\]" if schedule is NOISY else r"\[1, C, h, w\] or \[4, C, h, w\]"
    with pytest.raises(PlanError, match=f"the noise must be {legal}, got") as caught:
        list(sampler.latents(schedule, np.zeros(shape, np.float32), denoise))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("picture", [None, PICTURE[0], PICTURE[:, :1], np.zeros((2, 2, 3, 4))])
def test_a_picture_that_is_missing_or_does_not_fit_is_refused(picture: Any) -> None:
    with pytest.raises(PlanError, match=r"takes a picture's latent \[1, 2, 3, 4\], got"):
        sampler.start(FROM_PICTURE, NOISE, picture)


def test_a_picture_that_is_not_taken_is_refused() -> None:
    with pytest.raises(PlanError, match="starts from noise alone"):
        sampler.start(NOISY, NOISE, PICTURE)


@pytest.mark.parametrize("noise", [None, NOISE, NOISE[:1, :1]])
def test_a_pass_without_its_noise_is_refused(noise: Any) -> None:
    states = [(PICTURE, PICTURE)]
    with pytest.raises(PlanError, match=r"takes noise \[1, 2, 3, 4\], got"):
        sampler.advance(NOISY.passes[0], states, noise)
    assert sampler.advance(NOISY.passes[1], states, noise).shape == LATENT


def test_draws_are_one_for_each_pass_or_none() -> None:
    assert (QUIET.draws, NOISY.draws) == (0, 3)
    assert sampler.fresh(QUIET, NOISE, 0) is None
    assert np.array_equal(np.asarray(sampler.fresh(NOISY, NOISE, 2)), NOISE[3:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10])
@pytest.mark.parametrize("key", ["noise", "start_noise", "start_picture"])
def test_numbers_that_are_none_are_refused(key: str, value: float) -> None:
    with pytest.raises(BundleError, match=f"{key} must be finite"):
        replace(PLAIN if key == "noise" else FROM_PICTURE, **{key: value})


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(BundleError, match="strength must be above 0 and at most 1"):
        replace(FROM_PICTURE, strength=strength)


def test_a_picture_without_strength_is_refused() -> None:
    with pytest.raises(BundleError, match="start_picture needs a strength"):
        replace(FROM_PICTURE, strength=None)
