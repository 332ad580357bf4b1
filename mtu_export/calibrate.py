"""Inputs of a component: seeded for goldens and, until the loop exists, for calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtu_export.spec import Arrays, Plan, Task, TensorSpec

GOLDEN_TIMESTEPS = (981.0, 501.0, 21.0)
CALIBRATION_TIMESTEPS = (999.0, 901.0, 751.0, 601.0, 451.0, 301.0, 151.0, 1.0)
ORIGIN = "seeded"
"""Where calibration inputs come from, as the manifest says it."""
_CALIBRATION_STREAM = 1


def goldens(specs: Sequence[TensorSpec], task: Task, plan: Plan) -> tuple[Arrays, ...]:
    """One input a golden timestep."""
    return _seeded(specs, task, plan, GOLDEN_TIMESTEPS, 0)


def calibration(specs: Sequence[TensorSpec], task: Task, plan: Plan) -> tuple[Arrays, ...]:
    """Inputs from another random stream than the goldens, over the range of timesteps."""
    return _seeded(specs, task, plan, CALIBRATION_TIMESTEPS, _CALIBRATION_STREAM)


def _seeded(
    specs: Sequence[TensorSpec], task: Task, plan: Plan, timesteps: Sequence[float], stream: int
) -> tuple[Arrays, ...]:
    random = np.random.default_rng((plan.seed, stream))
    return tuple(
        {spec.name: _value(spec, task, plan, timestep, random) for spec in specs}
        for timestep in timesteps
    )


def _value(
    spec: TensorSpec, task: Task, plan: Plan, timestep: float, random: np.random.Generator
) -> np.ndarray:
    """Normal values, except for times, sizes and masks, which look like the real ones."""
    if spec.name == "timestep":
        return np.full(spec.shape, timestep, np.float32)
    if spec.name == "time_ids":
        size = [plan.height, plan.width]
        return np.tile(np.array([*size, 0, 0, *size], np.float32), (spec.shape[0], 1))
    value = random.standard_normal(spec.shape, np.float32)
    if spec.name == "sample":
        begin = spec.shape[1] - task.channels
        for entry in task.conditioning:
            if entry.kind == "mask":
                value[:, begin] = value[:, begin] > 0
            begin += entry.channels
    return value
