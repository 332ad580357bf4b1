"""The denoising loop as numbers: what a scheduler does at each pass, whoever runs it.

With m the guided output of the denoiser on ``input_scale · x`` at ``timestep``, pass i is
``x_{i+1} = Σ_k x[k]·x_{i−k} + m[k]·m_{i−k}``, k = 0..3 (bundle.md, "The loop").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtu_export.spec.errors import BundleError
from mtu_export.spec.task import shown

HISTORY = 4
"""Coefficients on x and on m: the newest and three before it."""
MOST_PASSES = 10_000
_LARGEST = 1e9


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BundleError(f"{name} must be a number, got {shown(value)}")
    if not abs(value) <= _LARGEST:  # also true for NaN
        raise BundleError(f"{name} must be finite and at most {_LARGEST:g}, got {shown(value)}")
    return float(value)


def _positive(value: object, name: str) -> float:
    found = _number(value, name)
    if not found > 0:
        raise BundleError(f"{name} must be positive, got {shown(value)}")
    return found


def _coefficients(values: object, name: str) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != HISTORY:
        raise BundleError(f"{name} must be {HISTORY} numbers, got {shown(values)}")
    return tuple(_number(value, f"{name}[{k}]") for k, value in enumerate(values))


def _get(found: Mapping[str, Any], key: str) -> Any:
    if key not in found:
        raise BundleError(f"key {key!r} is missing")
    return found[key]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass: where the denoiser is asked, and the coefficients, newest first.

    Raises ``BundleError`` for what is no finite number and for other than four coefficients.
    """

    timestep: float
    input_scale: float
    x: tuple[float, ...]
    m: tuple[float, ...]

    def __post_init__(self) -> None:
        _number(self.timestep, "timestep")
        _positive(self.input_scale, "input_scale")
        _coefficients(self.x, "x")
        _coefficients(self.m, "m")

    @property
    def depth(self) -> int:
        """How many pairs (x, m) back the pass looks, the newest included."""
        used = [k for k in range(HISTORY) if self.x[k] or self.m[k]]
        return 1 + max(used, default=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The passes of one step count; x_0 is ``init_noise_sigma`` times standard normal noise.

    Raises ``BundleError`` for no pass, for more than 10,000, and for a pass that looks back
    before the start.
    """

    init_noise_sigma: float
    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        _positive(self.init_noise_sigma, "init_noise_sigma")
        if not 1 <= len(self.passes) <= MOST_PASSES:
            raise BundleError(f"passes must be 1 to {MOST_PASSES:,}, got {len(self.passes):,}")
        for index, row in enumerate(self.passes[: HISTORY - 1]):
            if row.depth > index + 1:
                raise BundleError(f"passes[{index}] looks back before the start")

    @property
    def depth(self) -> int:
        """How many pairs (x, m) the loop must keep."""
        return max(row.depth for row in self.passes)

    @classmethod
    def from_json(cls, found: object, where: str) -> Schedule:
        """Read one entry of ``schedules`` in a manifest; ``where`` names it in errors.

        Keys of a newer minor schema are left out. Raises ``BundleError``, one line.
        """
        place = where
        try:
            if not isinstance(found, Mapping):
                raise BundleError("not an object")
            sigma = _positive(_get(found, "init_noise_sigma"), "init_noise_sigma")
            rows = _get(found, "passes")
            if not isinstance(rows, (list, tuple)):
                raise BundleError("passes must be a list")
            if len(rows) > MOST_PASSES:
                raise BundleError(f"passes must be 1 to {MOST_PASSES:,}, got {len(rows):,}")
            passes = []
            for index, row in enumerate(rows):
                place = f"{where}: passes[{index}]"
                if not isinstance(row, Mapping):
                    raise BundleError("not an object")
                passes.append(
                    Pass(
                        timestep=_number(_get(row, "timestep"), "timestep"),
                        input_scale=_number(_get(row, "input_scale"), "input_scale"),
                        x=_coefficients(_get(row, "x"), "x"),
                        m=_coefficients(_get(row, "m"), "m"),
                    )
                )
            place = where
            return cls(init_noise_sigma=sigma, passes=tuple(passes))
        except BundleError as error:
            raise BundleError(f"{place}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The entry of a manifest; inverse of :meth:`from_json`."""
        return {
            "init_noise_sigma": self.init_noise_sigma,
            "passes": [
                {
                    "timestep": row.timestep,
                    "input_scale": row.input_scale,
                    "x": list(row.x),
                    "m": list(row.m),
                }
                for row in self.passes
            ],
        }
