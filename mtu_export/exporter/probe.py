"""A scheduler's steps as coefficients: probed with unit impulses, proved against the scheduler."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from mtu_export.exporter.fed_noise import FedNoise, has_drawn
from mtu_export.spec import HISTORY, MOST_PASSES, Pass, PlanError, Schedule, Unsupported
from mtu_export.spec.catalog import SCHEDULERS

SHORT_NAMES = ", ".join(name for name in SCHEDULERS if name.islower())
CONFIG_FILE = Path("scheduler") / "scheduler_config.json"
FLOOR_DB = 110.0
"""PSNR that every pass of a table must keep against its scheduler, both with float64 states."""
_AMPLITUDES = (1.0, 1000.0)
_REMEDIES = {"clip_sample": "false", "thresholding": "false", "clip_denoised": "false"}
_NEGLIGIBLE = 1e-8
"""Coefficients below this part of a pass's largest may be dropped."""
_EXACT = 1e-6
"""What an elimination may leave of a pass's largest coefficient, as float32 rounds."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers' advice to training scripts off the screen."""
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def reason(error: Exception) -> str:
    """The message of another library's error, in one printable line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:160]


def pristine_copy(scheduler: Any) -> Any:
    """A scheduler of this config in its initial state, to copy from: ``from_config`` is slow."""
    config = dict(scheduler.config)
    config.pop("_use_default_values", None)  # else a value set later would be forgotten
    with quiet():
        return type(scheduler).from_config(config)


@dataclass(frozen=True)
class Start:
    """A step count, and with ``strength`` the part of its passes that img2img runs."""

    steps: int
    strength: float | None = None

    @property
    def label(self) -> str:
        """Both, for messages."""
        at = "" if self.strength is None else f" at strength {self.strength:g}"
        return f"{self.steps} steps{at}"


def _fresh(pristine: Any, start: Start) -> tuple[Any, torch.Tensor]:
    """A copy with this number of steps set, and its timesteps from the start on.

    The start is that of ``StableDiffusionImg2ImgPipeline.get_timesteps`` of diffusers. Raises
    ``PlanError`` for a strength that leaves no pass.
    """
    scheduler = copy.deepcopy(pristine)
    scheduler.set_timesteps(start.steps)
    timesteps = scheduler.timesteps
    if not 1 <= len(timesteps) <= MOST_PASSES:
        raise ValueError(f"{len(timesteps)} passes, at most {MOST_PASSES} are written")
    if start.strength is None:
        return scheduler, timesteps
    skipped = start.steps - min(int(start.steps * start.strength), start.steps)
    begin = skipped * getattr(scheduler, "order", 1)
    if begin >= len(timesteps):
        raise PlanError(
            f"{type(pristine).__name__}, {start.label}: no pass is left; steps times strength "
            "must be at least 1"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler, timesteps[begin:]


def _begin(scheduler: Any, t: torch.Tensor, noise: torch.Tensor, picture: torch.Tensor) -> Any:
    """x_0 of noise and a picture's latent, [N, ...] both, before the pass at ``t``."""
    if not hasattr(scheduler, "add_noise"):
        name = type(scheduler).__name__
        raise Unsupported(f"{name} has no add_noise, so it cannot start from a picture")
    return scheduler.add_noise(picture, noise, t.reshape(1))


def _scaled(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The denoiser's input; schedulers of flow matching scale nothing and have no method."""
    scale = getattr(scheduler, "scale_model_input", None)
    return x if scale is None else scale(x, t)


def _step(
    scheduler: Any, m: torch.Tensor, t: torch.Tensor, x: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """x after a pass, which draws ``noise`` where it draws any."""
    with FedNoise(noise, type(scheduler).__name__):
        return scheduler.step(m, t, x, return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class _Response:
    """The response of one pass to unit impulses.

    With P passes ``coefficients`` are [3P + 1] in float64: of x_0..x_{P−1}, of m_0..m_{P−1}, of
    n_1..n_P, and the offset.
    """

    timestep: float
    input_scale: float
    coefficients: torch.Tensor


def _responses(pristine: Any, start: Start) -> list[_Response]:
    """The response of each pass.

    Each x_i, m_i and n_{i+1} is an independent input here: component j of the sample is 1 only at
    pass j, so a step's result reads as its derivatives.
    """
    scheduler, timesteps = _fresh(pristine, start)
    count, responses = len(timesteps), []
    for index, t in enumerate(timesteps):
        x, m, n = torch.zeros(3, 1, 3 * count + 1, 1, 1, dtype=torch.float64)
        x[0, index] = m[0, count + index] = n[0, 2 * count + index] = 1
        scale = float(_scaled(scheduler, x.clone(), t)[0, index])
        result = _step(scheduler, m, t, x, n)
        response = _Response(
            timestep=float(t), input_scale=scale, coefficients=result.reshape(-1).double()
        )
        responses.append(response)
    return responses


def _start_coefficients(pristine: Any, start: Start) -> tuple[float, float]:
    """What x_0 is made of: the coefficients of noise and of the picture's latent."""
    scheduler, timesteps = _fresh(pristine, start)
    if start.strength is None:
        return float(getattr(scheduler, "init_noise_sigma", 1.0)), 0.0
    noise, picture = torch.eye(3, dtype=torch.float64)[:2].reshape(2, 1, 3, 1, 1)
    n, p, offset = _begin(scheduler, timesteps[0], noise, picture).reshape(-1).tolist()
    if not math.isfinite(n + p) or offset:
        what = "not linear" if math.isfinite(n + p) else "not finite"
        raise Unsupported(f"{type(scheduler).__name__}, {start.label}: the start is {what}")
    return n, p


def _check_responses(scheduler: Any, start: Start, responses: Sequence[_Response]) -> None:
    """Refuse coefficients that are not finite, and an offset."""
    for index, response in enumerate(responses):
        name, values = type(scheduler).__name__, response.coefficients
        where = f"{name}, {start.label}, pass {index} (timestep {response.timestep:g})"
        if not torch.isfinite(values).all():
            raise Unsupported(f"{where}: the coefficients are not finite")
        if values[-1].abs() > _NEGLIGIBLE * values.abs().max():
            raise Unsupported(f"{where}: zero in does not give zero out{_remedy(scheduler)}")


def _refuse_other_noise(pristine: Any, start: Start, responses: Sequence[_Response]) -> None:
    """Refuse a scheduler whose second run, on other random numbers, responds otherwise."""
    again = _responses(pristine, start)
    if any(
        not torch.equal(a.coefficients, b.coefficients)
        for a, b in zip(responses, again, strict=True)
    ):
        raise Unsupported(
            f"{type(pristine).__name__} draws noise that is not standard normal and new in each "
            f"pass, so no table holds it; choose from: {SHORT_NAMES}"
        )


def probe(pristine: Any, start: Start) -> Schedule:
    """The table that the impulses show, with the shortest history where it must be shortened."""
    start_noise, start_picture = _start_coefficients(pristine, start)
    responses = _responses(pristine, start)
    if has_drawn():
        _refuse_other_noise(pristine, start, responses)
    _check_responses(pristine, start, responses)
    deepest = 0
    for history in (None, *range(1, HISTORY + 1)):
        passes: list[Pass] = []
        for index, response in enumerate(responses):
            begin = max(0, index + 1 - HISTORY)
            latest = [each.coefficients for each in responses[begin : index + 1]]
            shortened = _shortened(latest, index, history)
            if shortened is None:
                deepest = index
                break
            x, m, noise = shortened
            t, scale = response.timestep, response.input_scale
            passes.append(Pass(timestep=t, input_scale=scale, x=x, m=m, noise=noise))
        else:
            return Schedule(
                start_noise=start_noise,
                start_picture=start_picture,
                strength=start.strength,
                passes=tuple(passes),
            )
    where = f"{type(pristine).__name__}, {start.label}: pass {deepest}"
    draws = any(response.coefficients[2 * len(responses) : -1].any() for response in responses)
    also = " or needs earlier noise" if draws else ""
    raise Unsupported(f"{where} looks more than {HISTORY} back{also}")


def _shortened(
    passes: Sequence[torch.Tensor], index: int, history: int | None
) -> tuple[tuple[float, ...], tuple[float, ...], float] | None:
    """Coefficients of the last of ``passes`` on the newest ``history`` x and m, and on its noise.

    ``index`` is the number of that pass. Without ``history`` its coefficients are taken as they
    are, if none lies more than four passes back and none is of earlier noise. But a scheduler may
    have an internal state (UniPC: the corrected sample) through which a step depends on every
    earlier pass. Each earlier pass is an equation in the same unknowns,
    ``c_j · (x, m, n) − x_{j+1} = 0``; multiples of up to three of them eliminate the past. None
    where they do not.
    """
    count = (len(passes[-1]) - 1) // 3
    past = max(0, index + 1 - (history or HISTORY))
    coefficients = passes[-1]
    size = coefficients.abs().max()
    earlier_noise = slice(2 * count, 2 * count + index)
    has_noise = any(bool(equation[earlier_noise].any()) for equation in passes)

    def old(values: torch.Tensor) -> torch.Tensor:
        parts = [values[:past], values[count : count + past]]
        return torch.cat([*parts, values[earlier_noise]] if has_noise else parts)

    def left() -> float:
        return float(old(coefficients).abs().max()) if past or has_noise else 0.0

    if left() > _NEGLIGIBLE * size:
        if history is None:
            return None
        for earlier in range(1, len(passes)):
            equations = [passes[-1 - back] for back in range(1, earlier + 1)]
            columns = torch.stack([old(equation) for equation in equations], dim=1)
            solved = torch.linalg.lstsq(columns, old(passes[-1])[:, None], driver="gelsd").solution
            coefficients = passes[-1].clone()
            for back, (equation, factor) in enumerate(zip(equations, solved[:, 0], strict=True), 1):
                coefficients -= factor * equation
                coefficients[index + 1 - back] += factor
            if left() <= _EXACT * size:
                break
        else:
            return None
    newest = range(index, past - 1, -1)
    pad = [0.0] * (HISTORY - len(newest))
    return (
        tuple([float(coefficients[i]) for i in newest] + pad),
        tuple([float(coefficients[count + i]) for i in newest] + pad),
        float(coefficients[2 * count + index]),
    )


def _remedy(scheduler: Any) -> str:
    """What in the scheduler's config is the likely cause, and its remedy."""
    on = [key for key in _REMEDIES if getattr(scheduler.config, key, False)]
    return f": {on[0]} is on; set it to {_REMEDIES[on[0]]} in {CONFIG_FILE}" if on else ""


# ------------------------------------------------------------------------------------- proving


def prove(pristine: Any, start: Start, schedule: Schedule) -> None:
    """Run table and scheduler side by side with float64 states, each on its own results.

    Both take the same noise. A float32 run would not test the table where σ is large: with zero
    terminal SNR (σ = 4096), rounding alone limits any implementation to 80 to 100 dB after a few
    steps. Where the two diverge, a step from the scheduler's history tells an error of the table
    from rounding.
    """
    scheduler, timesteps = _fresh(pristine, start)
    amplitudes = torch.tensor(_AMPLITUDES).double()[:, None, None, None]
    denoise, generator = _denoiser(amplitudes), torch.Generator().manual_seed(2)

    def draw() -> torch.Tensor:
        return torch.randn(1, 4, 8, 8, generator=generator).double() * amplitudes

    noise, picture = draw(), draw()
    expected = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    if start.strength is not None:
        expected = _begin(scheduler, timesteps[0], noise, picture)
    actual = noise * schedule.start_noise + picture * schedule.start_picture
    if not _near(actual - expected, expected.abs().amax((1, 2, 3))):
        raise Unsupported(f"{type(scheduler).__name__}, {start.label}: the start is not linear")
    history: deque[_State] = deque(maxlen=HISTORY)
    exact_history: deque[_State] = deque(maxlen=HISTORY)
    for index, (step, t) in enumerate(zip(schedule.passes, timesteps, strict=True)):
        noise, output = draw(), denoise(_scaled(scheduler, expected, t), float(t))
        exact_history.appendleft((expected, output))
        expected = _step(scheduler, output, t, expected, noise)
        history.appendleft((actual, denoise(step.input_scale * actual, step.timestep)))
        actual = torch.stack(_terms(step, history, noise)).sum(0)
        size = expected.abs().amax((1, 2, 3))
        if _near(actual - expected, size):
            continue
        terms = _terms(step, exact_history, noise)
        size = torch.stack(terms).abs().amax((0, 2, 3, 4))
        linear = _near(torch.stack(terms).sum(0) - expected, size)
        raise Unsupported(
            f"{type(scheduler).__name__}, {start.label}, pass {index} "
            f"(timestep {step.timestep:g}): "
            + ("rounding adds up beyond the floor" if linear else "the step is not linear")
            + ("; choose another step count" if linear else _remedy(scheduler))
        )


_State = tuple[torch.Tensor, torch.Tensor]
"""x before a pass and the m that it gave."""


def _terms(step: Pass, history: Iterable[_State], noise: torch.Tensor) -> list[torch.Tensor]:
    """The summands of the next x."""
    coefficients = zip(step.x, step.m, history, strict=False)
    terms = [a * x + b * m for a, b, (x, m) in coefficients]
    return [*terms, step.noise * noise] if step.noise else terms


def _near(error: torch.Tensor, size: torch.Tensor) -> bool:
    """Whether the error [N, C, H, W] of each sample is ``FLOOR_DB`` below its size [N]."""
    rmse = error.double().square().mean((1, 2, 3)).sqrt()
    return bool((rmse <= size * 10 ** (-FLOOR_DB / 20)).all())


def _denoiser(amplitude: torch.Tensor) -> Any:
    """A nonlinear stand-in for a UNet on [N, 4, 8, 8] that mixes pixels and knows the time."""
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 4, 3, 3, generator=random).double() / 8

    def denoise(scaled: torch.Tensor, timestep: float) -> torch.Tensor:
        mixed = torch.nn.functional.conv2d(scaled.double() / amplitude, weight, padding=1)
        return amplitude * torch.tanh(mixed + torch.cos(torch.tensor(timestep / 100)))

    return denoise
