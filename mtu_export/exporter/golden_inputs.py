"""Seeded inputs: those of a part's goldens, and the pictures and masks of a request.

Which values an input gets follows from its sources in the flow: a column gets times, a constant
itself, a mask zeros and ones, text the embeddings of real prompts, and all else is normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtu_export.spec import Arrays, TensorSpec
from mtu_export.spec.flow import Column, Constant, Inputs, Number, Picture, Source, Value

GOLDEN_TIMESTEPS = (981.0, 501.0, 21.0)
_GOLDEN_STREAM, _PICTURE_STREAM, _TENSOR_STREAM = 0, 2, 3  # other numbers are other goldens
CASES = 3


def of_pass(
    specs: Sequence[TensorSpec],
    values: Mapping[str, Value],
    inputs: Inputs,
    constants: Mapping[str, np.ndarray],
    seed: int,
    embeddings: Sequence[Arrays] = (),
    timesteps: Sequence[float] = GOLDEN_TIMESTEPS,
) -> tuple[Arrays, ...]:
    """The inputs of one case per timestep, of a part that runs in a pass.

    ``values`` are those of a call of the part; ``embeddings`` are text inputs [1, ...] used in
    turn.
    """
    random = np.random.default_rng((seed, _GOLDEN_STREAM))
    cases = []
    for turn, timestep in enumerate(timesteps):
        case = {
            spec.name: _value(spec, values[spec.name], inputs, constants, timestep, random)
            for spec in specs
        }
        for name, value in (embeddings[turn % len(embeddings)] if embeddings else {}).items():
            if name in case:
                case[name] = np.repeat(value, len(case[name]), 0)
        cases.append(case)
    return tuple(cases)


def _value(
    spec: TensorSpec,
    value: Value,
    inputs: Inputs,
    constants: Mapping[str, np.ndarray],
    timestep: float,
    random: np.random.Generator,
) -> np.ndarray:
    only = value.sources[0] if len(value.sources) == 1 else None
    if isinstance(only, Column):
        return np.full(spec.shape, timestep, np.float32)
    if isinstance(only, Number):
        return np.full(spec.shape, inputs.numbers[only.name].default, np.float32)
    if isinstance(only, Constant) and only.name in constants:
        return np.repeat(constants[only.name], spec.shape[0], 0)
    array = random.standard_normal(spec.shape, np.float32)
    begin, widths = 0, _widths(value, spec, inputs)
    for source, width in zip(value.sources, widths, strict=True):
        if isinstance(source, Picture) and inputs.pictures[source.name].kind == "mask":
            array[:, begin] = array[:, begin] > 0
        begin += width
    return array


def _widths(value: Value, spec: TensorSpec, inputs: Inputs) -> list[int]:
    """Channels of each source of an input; those that are no pictures share what is left."""
    known = [_picture_channels(source, inputs) for source in value.sources]
    unknown = known.count(0)
    rest = (spec.shape[1] if len(spec.shape) > 1 else 1) - sum(known)
    return [width or rest // max(1, unknown) for width in known]


def _picture_channels(source: Source, inputs: Inputs) -> int:
    if not isinstance(source, Picture):
        return 0
    return 3 if inputs.pictures[source.name].kind == "picture" else 1


def request(
    inputs: Inputs, size: tuple[int, int], seed: int, case: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pictures and tensors of a request, by name; ``case`` is one of ``CASES``."""
    given, names = {}, [n for n, p in inputs.pictures.items() if p.kind != "mask"]
    for name, picture in inputs.pictures.items():
        if picture.kind == "mask":
            given[name] = mask(size)
            continue
        turn = (case + names.index(name)) % CASES  # a second picture is another one
        values = pictures(size, seed)[turn]
        if picture.kind == "grey":
            values = values.mean(1, keepdims=True, dtype=np.float32)
        if picture.range != "-1..1":
            values = (values + 1) * np.float32(0.5 if picture.range == "0..1" else 127.5)
        given[name] = np.rint(values) if picture.range == "0..255" else values
    random = np.random.default_rng((seed, _TENSOR_STREAM, case))
    tensors = {n: random.standard_normal(t.shape, np.float32) for n, t in inputs.tensors.items()}
    return given, tensors


def pictures(size: tuple[int, int], seed: int) -> tuple[np.ndarray, ...]:
    """Pictures [1, 3, H, W] in −1..1: slow waves of colour and a disc with a sharp edge."""
    random = np.random.default_rng((seed, _PICTURE_STREAM))
    down, across = np.meshgrid(*(np.linspace(0, 1, side) for side in size), indexing="ij")
    images = []
    for _ in range(CASES):
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
