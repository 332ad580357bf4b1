"""The denoising loop as numbers: what a scheduler does at each pass, whoever runs it.

With m the guided output of the denoiser on ``input_scale · x`` at ``timestep``, pass i is
``x_{i+1} = Σ_k x[k]·x_{i−k} + m[k]·m_{i−k} + noise·n_{i+1}``, k = 0..3, where n_0, n_1, ... are
independent standard normal (runtime/README.md, "The loop").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtu_export.spec.errors import BundleError

HISTORY = 4
"""Coefficients on x and on m: the newest and three before it."""
MOST_PASSES = 10_000
TIMESTEP = "timestep"
"""The column that every table has."""
LARGEST_COEFFICIENT = 1e9
"""Of coefficients, timesteps and scales."""


def _require(value: float, name: str, *, positive: bool = False) -> None:
    if not abs(value) <= LARGEST_COEFFICIENT:  # also true for NaN
        raise BundleError(f"{name} must be finite and at most {LARGEST_COEFFICIENT:g}, got {value}")
    if positive and value <= 0:
        raise BundleError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass: where the denoiser is asked, and the coefficients, newest first.

    ``noise`` is the coefficient of fresh standard normal noise, 0 where the pass draws none;
    ``features`` are columns of the table beside the timestep, by name, numbers or vectors. Raises
    ``BundleError`` for what is no finite number and for other than four coefficients.
    """

    timestep: float
    input_scale: float
    x: tuple[float, ...]
    m: tuple[float, ...]
    noise: float = 0.0
    features: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require(self.timestep, "timestep")
        _require(self.input_scale, "input_scale", positive=True)
        _require(self.noise, "noise")
        for name, values in (("x", self.x), ("m", self.m)):
            if len(values) != HISTORY:
                raise BundleError(f"{name} must be {HISTORY} numbers, got {len(values)}")
            for k, value in enumerate(values):
                _require(value, f"{name}[{k}]")

    @property
    def columns(self) -> Mapping[str, float | tuple[float, ...]]:
        """What feeds inputs of parts: ``timestep`` and the features."""
        return {TIMESTEP: self.timestep, **self.features}

    @property
    def depth(self) -> int:
        """How many pairs (x, m) back the pass looks, the newest included."""
        used = [k for k in range(HISTORY) if self.x[k] or self.m[k]]
        return 1 + max(used, default=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The passes of one step count and start: ``x_0 = start_noise·n_0 + start_picture·p``.

    n_0 is standard normal noise and p the scaled latent of a picture; ``start_picture`` is 0 for a
    start from noise alone. ``strength`` is the one that the start was asked for with, in (0, 1], or
    None. Raises ``BundleError`` for no pass, for more than 10,000, and for a pass that looks back
    before the start.
    """

    start_noise: float
    passes: tuple[Pass, ...]
    start_picture: float = 0.0
    strength: float | None = None

    def __post_init__(self) -> None:
        _require(self.start_noise, "start_noise", positive=True)
        _require(self.start_picture, "start_picture")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise BundleError(f"strength must be above 0 and at most 1, got {self.strength}")
        if self.strength is None and self.start_picture:
            raise BundleError("start_picture needs a strength")
        if not 1 <= len(self.passes) <= MOST_PASSES:
            raise BundleError(f"passes must be 1 to {MOST_PASSES:,}, got {len(self.passes):,}")
        for index, step in enumerate(self.passes[: HISTORY - 1]):
            if step.depth > index + 1:
                raise BundleError(f"passes[{index}] looks back before the start")

    @property
    def depth(self) -> int:
        """How many pairs (x, m) the loop must keep."""
        return max(step.depth for step in self.passes)

    @property
    def draws(self) -> int:
        """How many arrays of noise the passes take besides n_0: one each, or none at all."""
        return len(self.passes) if any(step.noise for step in self.passes) else 0
