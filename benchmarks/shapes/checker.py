"""Reads pictures of the world back into things: connected components, then a fit by drawing.

It knows the world's tables and nothing of the case. Each component's centre and colour are
measured; shape and size are those whose drawing differs least. What is too small, unlike any
colour or unlike any shape makes a picture unclear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, World, coverage

Kind = tuple[str, str, str, str]
"""Colour, shape, size and place of a thing."""
_APART = 0.12
"""Distance in RGB (0..1) from the background at which a pixel belongs to a thing."""
_FAR = 0.25
"""Distance in RGB from every colour at which a thing has none."""
_UNLIKE = 0.07
"""Share of a thing's covered area by which it may differ from the best drawing."""
_SCALES = (0.93, 1.0, 1.07)
"""Of a radius, that a drawing is tried at."""
_SPECK, _LEAST = 3 / 32**2, 0.25
"""A part of a picture's area that is passed over, and the share of the smallest thing's area that
something must have to be a thing; between them is what makes a picture unclear."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is in a picture; ``clear`` if nothing is odd and nothing is there twice."""

    background: str
    kinds: frozenset[Kind]
    clear: bool


def components(mask: Tensor) -> Tensor:
    """Labels [B, H, W] of the 8-connected parts of masks [B, H, W]; 0 is outside."""
    numbers = torch.arange(1, mask[0].numel() + 1, dtype=torch.float32).view(1, *mask.shape[1:])
    labels = numbers * mask
    while True:
        grown = torch.nn.functional.max_pool2d(labels[:, None], 3, 1, 1)[:, 0] * mask
        if torch.equal(grown, labels):
            return labels.long()
        labels = grown


def _backgrounds(pixels: Tensor) -> Tensor:
    """The median colour of each picture's border, [B, 3]."""
    rim = torch.cat(
        [pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, 1:-1, 0], pixels[:, :, 1:-1, -1]], 2
    )
    return rim.median(2).values


def read(world: World, pictures: Tensor) -> list[Reading]:
    """What is in each of ``pictures`` [B, 3, side, side] in −1..1."""
    pixels = (pictures.float().clamp(-1, 1) + 1) / 2
    grounds = _backgrounds(pixels)
    distance = (pixels - grounds[:, :, None, None]).norm(dim=1)
    labels = components(distance > _APART)
    scenes = []
    for i, ground in enumerate(grounds):
        names = list(BACKGROUNDS)
        background = min(names, key=lambda n: (ground - BACKGROUNDS[n]).norm().item())
        clear = (ground - BACKGROUNDS[background]).norm().item() < _FAR
        kinds: set[Kind] = set()
        for label in labels[i].unique().tolist():
            mask = labels[i] == label
            if label == 0 or mask.sum() <= _SPECK * world.side**2:
                continue
            thing = _thing(world, pixels[i], ground, distance[i], mask)
            if thing is None or thing in kinds:
                clear = False
            else:
                kinds.add(thing)
        scenes.append(Reading(background=background, kinds=frozenset(kinds), clear=clear))
    return scenes


def _thing(
    world: World, pixels: Tensor, ground: Tensor, distance: Tensor, mask: Tensor
) -> Kind | None:
    side, area = world.side, float(mask.sum())
    if area < _LEAST * 2 * (world.radii[0] * side) ** 2:
        return None
    core = mask & (distance >= 0.8 * distance[mask].max())
    colour = pixels[:, core].mean(1)
    names = world.colours
    name = min(names, key=lambda n: (colour - torch.tensor(COLOURS[n])).norm().item())
    if (colour - torch.tensor(COLOURS[name])).norm().item() > _FAR:
        return None
    near = torch.nn.functional.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0]
    paint = colour - ground
    along = torch.einsum("chw,c->hw", pixels - ground[:, None, None], paint)
    covered = (along / paint.square().sum()).clamp(0, 1) * near
    middles = torch.arange(side) + 0.5
    mass = covered.sum()
    centre = torch.stack([(covered.sum(0) @ middles) / mass, (covered.sum(1) @ middles) / mass])
    spread = [radius * side * scale for radius in world.radii for scale in _SCALES]
    reach = math.ceil(1.5 * max(spread)) + 1
    left, top = ((centre - reach).long().clamp(0, max(0, side - 2 * reach))).tolist()
    window = covered[top : top + 2 * reach, left : left + 2 * reach]
    middle = (centre - torch.tensor([left, top])).expand(len(spread), 2)
    best = (math.inf, "", "")
    for shape in SHAPES:
        drawn = coverage(shape, middle, torch.tensor(spread), len(window))
        error, at = ((drawn - window).square().sum((1, 2)) / mass).min(0)
        best = min(best, (error.item(), shape, SIZES[int(at) // len(_SCALES)]))
    if best[0] > _UNLIKE:
        return None
    x, y = (centre / side).tolist()
    place = min(world.places, key=lambda p: math.dist(world.places[p], (x, y)))
    return name, best[1], best[2], place


def right(readings: Sequence[Reading], scenes: Sequence[Scene]) -> list[bool]:
    """Whether each reading is clear and says just what its scene holds."""
    return [
        reading.clear and reading.kinds == scene.kinds and reading.background == scene.background
        for reading, scene in zip(readings, scenes, strict=True)
    ]
