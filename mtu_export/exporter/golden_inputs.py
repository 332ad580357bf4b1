"""Seeded inputs: those of a component's goldens, and the pictures and masks of a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtu_export.spec import Arrays, Plan, Task, TensorSpec

GOLDEN_TIMESTEPS = (981.0, 501.0, 21.0)
_GOLDEN_STREAM, _PICTURE_STREAM = 0, 2  # of the seed; other numbers would change every golden
_PICTURES = 3


def goldens(
    specs: Sequence[TensorSpec],
    task: Task,
    plan: Plan,
    text_inputs: Sequence[Arrays] = (),
    timesteps: Sequence[float] = GOLDEN_TIMESTEPS,
) -> tuple[Arrays, ...]:
    """The inputs of one case per timestep.

    ``text_inputs`` [1, ...], by case and used in turn, replace the random text inputs.
    """
    random = np.random.default_rng((plan.seed, _GOLDEN_STREAM))
    cases = []
    for turn, timestep in enumerate(timesteps):
        inputs = {spec.name: _value(spec, task, plan, timestep, random) for spec in specs}
        for name, value in (text_inputs[turn % len(text_inputs)] if text_inputs else {}).items():
            inputs[name] = np.repeat(value, len(inputs[name]), 0)
        cases.append(inputs)
    return tuple(cases)


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


def pictures(size: tuple[int, int], seed: int) -> tuple[np.ndarray, ...]:
    """Pictures [1, 3, H, W] in −1..1: slow waves of colour and a disc with a sharp edge."""
    random = np.random.default_rng((seed, _PICTURE_STREAM))
    down, across = np.meshgrid(*(np.linspace(0, 1, side) for side in size), indexing="ij")
    images = []
    for _ in range(_PICTURES):
        waves, phases = random.uniform(-3, 3, (3, 2)), random.uniform(0, 6, 3)
        angles = waves[:, :1, None] * down + waves[:, 1:, None] * across + phases[:, None, None]
        image = 0.8 * np.sin(angles)
        centre, radius = random.uniform(0.3, 0.7, 2), random.uniform(0.1, 0.3)
        disc = (down - centre[0]) ** 2 + (across - centre[1]) ** 2 < radius**2
        image = np.where(disc, random.uniform(-1, 1, (3, 1, 1)), image)
        images.append(image[None].astype(np.float32))
    return tuple(images)


def mask(size: tuple[int, int]) -> np.ndarray:
    """A mask [1, 1, H, W]: 1 inside the central half of each side, 0 around it."""
    height, width = size
    values = np.zeros((1, 1, height, width), np.float32)
    values[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    return values
