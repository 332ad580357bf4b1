"""A scheduler's steps as coefficients: probed with unit impulses, proved against the scheduler."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from mtu_export.spec import HISTORY, MOST_PASSES, Pass, Schedule, Unsupported
from mtu_export.spec.catalog import SCHEDULERS

SHORT_NAMES = ", ".join(name for name in SCHEDULERS if name.islower())
CONFIG_FILE = Path("scheduler") / "scheduler_config.json"
FLOOR_DB = 110.0
"""PSNR that every pass of a table must keep against its scheduler, both with float64 states."""
_AMPLITUDES = (1.0, 1000.0)
_REMEDIES = {"clip_sample": "false", "thresholding": "false"}
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


def _fresh(pristine: Any, steps: int) -> Any:
    """A copy with this number of steps set."""
    scheduler = copy.deepcopy(pristine)
    scheduler.set_timesteps(steps)
    if not 1 <= len(scheduler.timesteps) <= MOST_PASSES:
        raise ValueError(f"{len(scheduler.timesteps)} passes, at most {MOST_PASSES} are written")
    return scheduler


def _scaled(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The denoiser's input; schedulers of flow matching scale nothing and have no method."""
    scale = getattr(scheduler, "scale_model_input", None)
    return x if scale is None else scale(x, t)


@dataclass(frozen=True, kw_only=True)
class _Response:
    """The response of one pass to unit impulses.

    With P passes ``coefficients`` are [2P + 1] in float64: of x_0..x_{P−1}, of m_0..m_{P−1}, and
    the offset.
    """

    timestep: float
    input_scale: float
    coefficients: torch.Tensor


def _responses(pristine: Any, steps: int) -> list[_Response]:
    """The response of each pass.

    Each x_i and m_i is an independent input here: component j of the sample is 1 only at pass j,
    so a step's result reads as its derivatives.
    """
    scheduler, responses = _fresh(pristine, steps), []
    count = len(scheduler.timesteps)
    for index, t in enumerate(scheduler.timesteps):
        x, m = torch.zeros(2, 1, 2 * count + 1, 1, 1, dtype=torch.float64)
        x[0, index] = 1
        m[0, count + index] = 1
        scale = float(_scaled(scheduler, x.clone(), t)[0, index])
        result = scheduler.step(m, t, x, return_dict=False)[0]
        response = _Response(
            timestep=float(t), input_scale=scale, coefficients=result.reshape(-1).double()
        )
        responses.append(response)
    return responses


def _check_responses(scheduler: Any, steps: int, responses: Sequence[_Response]) -> None:
    """Refuse coefficients that are not finite, and an offset."""
    for index, response in enumerate(responses):
        name, values = type(scheduler).__name__, response.coefficients
        where = f"{name}, {steps} steps, pass {index} (timestep {response.timestep:g})"
        if not torch.isfinite(values).all():
            raise Unsupported(f"{where}: the coefficients are not finite")
        if values[-1].abs() > _NEGLIGIBLE * values.abs().max():
            raise Unsupported(f"{where}: zero in does not give zero out{_remedy(scheduler)}")


def _has_drawn() -> bool:
    """Whether random numbers were drawn since the seed was set to 0."""
    return not torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())


def _refuse_noise(pristine: Any, steps: int, responses: Sequence[_Response]) -> None:
    """Refuse a scheduler whose second run, on other random numbers, responds otherwise."""
    again = _responses(pristine, steps)
    if any(
        not torch.equal(a.coefficients, b.coefficients)
        for a, b in zip(responses, again, strict=True)
    ):
        name = type(pristine).__name__
        raise Unsupported(f"{name} draws noise, so no table holds it; choose from: {SHORT_NAMES}")


def probe(pristine: Any, steps: int) -> Schedule:
    """The table that the impulses show, with the shortest history where it must be shortened."""
    start = float(getattr(_fresh(pristine, steps), "init_noise_sigma", 1.0))
    responses = _responses(pristine, steps)
    if _has_drawn():
        _refuse_noise(pristine, steps, responses)
    _check_responses(pristine, steps, responses)
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
            x, m = shortened
            passes.append(
                Pass(timestep=response.timestep, input_scale=response.input_scale, x=x, m=m)
            )
        else:
            return Schedule(init_noise_sigma=start, passes=tuple(passes))
    name = type(pristine).__name__
    raise Unsupported(f"{name}, {steps} steps: pass {deepest} looks more than {HISTORY} back")


def _shortened(
    passes: Sequence[torch.Tensor], index: int, history: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Coefficients of the last of ``passes`` on the newest ``history`` x and m, if it has such.

    ``index`` is the number of that pass. Without ``history`` its coefficients are taken as they
    are, if none lies more than four passes back. But a scheduler may have an internal state
    (UniPC: the corrected sample) through which a step depends on every earlier pass. Each earlier
    pass is an equation in the same unknowns, ``c_j · (x, m) − x_{j+1} = 0``; multiples of up to
    three of them eliminate the past.
    """
    count = (len(passes[-1]) - 1) // 2
    past = max(0, index + 1 - (history or HISTORY))
    coefficients = passes[-1]
    size = coefficients.abs().max()

    def old(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:past], values[count : count + past]])

    def left() -> float:
        return float(old(coefficients).abs().max()) if past else 0.0

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
    )


def _remedy(scheduler: Any) -> str:
    """What in the scheduler's config is the likely cause, and its remedy."""
    on = [key for key in _REMEDIES if getattr(scheduler.config, key, False)]
    return f": {on[0]} is on; set it to {_REMEDIES[on[0]]} in {CONFIG_FILE}" if on else ""


# ------------------------------------------------------------------------------------- proving


def prove(pristine: Any, steps: int, schedule: Schedule) -> None:
    """Run table and scheduler side by side with float64 states, each on its own results.

    A float32 run would not test the table where σ is large: with zero terminal SNR (σ = 4096),
    rounding alone limits any implementation to 80 to 100 dB after a few steps. Where the two
    diverge, a step from the scheduler's history tells an error of the table from rounding.
    """
    scheduler, amplitudes = _fresh(pristine, steps), torch.tensor(_AMPLITUDES).double()
    denoise = _denoiser(amplitudes[:, None, None, None])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    noise = noise * amplitudes[:, None, None, None]
    expected = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    actual = noise * schedule.init_noise_sigma
    history: deque[_State] = deque(maxlen=HISTORY)
    exact_history: deque[_State] = deque(maxlen=HISTORY)
    for index, (step, t) in enumerate(zip(schedule.passes, scheduler.timesteps, strict=True)):
        output = denoise(_scaled(scheduler, expected, t), float(t))
        exact_history.appendleft((expected, output))
        expected = scheduler.step(output, t, expected, return_dict=False)[0]
        history.appendleft((actual, denoise(step.input_scale * actual, step.timestep)))
        actual = torch.stack(_terms(step, history)).sum(0)
        size = expected.abs().amax((1, 2, 3))
        if _near(actual - expected, size):
            continue
        terms = _terms(step, exact_history)
        size = torch.stack(terms).abs().amax((0, 2, 3, 4))
        linear = _near(torch.stack(terms).sum(0) - expected, size)
        raise Unsupported(
            f"{type(scheduler).__name__}, {steps} steps, pass {index} "
            f"(timestep {step.timestep:g}): "
            + ("rounding adds up beyond the floor" if linear else "the step is not linear")
            + ("; choose another step count" if linear else _remedy(scheduler))
        )


_State = tuple[torch.Tensor, torch.Tensor]
"""x before a pass and the m that it gave."""


def _terms(step: Pass, history: Iterable[_State]) -> list[torch.Tensor]:
    """The summands of the next x."""
    coefficients = zip(step.x, step.m, history, strict=False)
    return [a * x + b * m for a, b, (x, m) in coefficients]


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
