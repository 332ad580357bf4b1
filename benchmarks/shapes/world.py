"""A small world of pictures drawn by code: coloured shapes with size, place and background.

A scene is plain data; :func:`draw` renders many at once in torch. What a thing is (colour, shape,
size, place) is told apart from how it varies (offset, radius and shade), so that two scenes of one
case share all that did not change.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

COLOURS = {
    "red": (0.86, 0.14, 0.14),
    "green": (0.13, 0.68, 0.22),
    "blue": (0.14, 0.26, 0.88),
    "yellow": (0.96, 0.86, 0.12),
    "purple": (0.60, 0.16, 0.74),
    "orange": (0.97, 0.53, 0.08),
}
BACKGROUNDS = {"white": 0.95, "gray": 0.5, "black": 0.07}
SIZES = ("small", "large")
PLACES = {
    "at the left": (0.25, 0.5),
    "at the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the center": (0.5, 0.5),
}
CORNERS = {
    "at the top left": (0.2, 0.2),
    "at the top right": (0.8, 0.2),
    "at the bottom left": (0.2, 0.8),
    "at the bottom right": (0.8, 0.8),
}
_WIDE = {
    "at the left": (0.2, 0.5),
    "at the right": (0.8, 0.5),
    "at the top": (0.5, 0.2),
    "at the bottom": (0.5, 0.8),
    "in the center": (0.5, 0.5),
}
_FRESH = 8
"""Sums of the four indices that are 3 modulo this are never trained on; see :func:`fresh`."""


def _regular(corners: int, radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    wide = _regular(points, outer, -math.pi / 2)
    near = _regular(points, inner, -math.pi / 2 + math.pi / points)
    return [corner for pair in zip(wide, near, strict=True) for corner in pair]


CORNERS_OF: dict[str, list[tuple[float, float]]] = {
    "circle": [],
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": _regular(3, 1.28, -math.pi / 2),
    "star": _star(5, 1.3, 0.56),
}
"""Corners about the centroid, of a shape of radius 1, y downwards; a circle has none."""
SHAPES = tuple(CORNERS_OF)


@dataclass(frozen=True, kw_only=True)
class World:
    """What there is to see: names are indices into the tables above, in their order."""

    side: int
    colours: tuple[str, ...]
    places: dict[str, tuple[float, float]]
    radii: tuple[float, float]
    apart: float
    most: int

    def fits(self, places: Sequence[str]) -> bool:
        """Whether things at these places do not touch."""
        spots = [self.places[place] for place in places]
        return all(
            math.dist(one, other) >= self.apart
            for i, one in enumerate(spots)
            for other in spots[:i]
        )


SMALL = World(
    side=32,
    colours=("red", "green", "blue", "yellow"),
    places=PLACES,
    radii=(0.125, 0.18),
    apart=0.45,
    most=2,
)
FULL = World(
    side=64,
    colours=tuple(COLOURS),
    places={**_WIDE, **CORNERS},
    radii=(0.072, 0.104),
    apart=0.29,
    most=3,
)
WORLDS = {"small": SMALL, "full": FULL}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A shape: what it is, and by how much it varies (pixels of a picture of side 1, shades)."""

    colour: str
    shape: str
    size: str
    place: str
    offset: tuple[float, float] = (0.0, 0.0)
    stretch: float = 1.0
    shade: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What a checker reads back."""
        return (self.colour, self.shape, self.size, self.place)

    def words(self) -> str:
        """``small red circle``."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things on a background; ``shade`` is added to its grey."""

    background: str
    things: tuple[Thing, ...]
    shade: float = 0.0

    def caption(self) -> str:
        """``a small red circle at the left and ... on a white background``."""
        phrases = [f"a {thing.words()} {thing.place}" for thing in self.things]
        return f"{' and '.join(phrases) or 'nothing'} on a {self.background} background"

    @property
    def kinds(self) -> frozenset[tuple[str, str, str, str]]:
        """What is there, without how it varies."""
        return frozenset(thing.kind for thing in self.things)


def is_fresh(world: World, thing: Thing) -> bool:
    """Whether this combination is kept from training; :func:`fresh` counts them."""
    rows = (
        world.colours.index(thing.colour),
        SHAPES.index(thing.shape),
        2 * SIZES.index(thing.size),
        list(world.places).index(thing.place),
    )
    return sum(rows) % _FRESH == 3


def fresh(world: World) -> tuple[int, int]:
    """How many combinations are kept from training, and how many there are."""
    rows = [
        Thing(colour=colour, shape=shape, size=size, place=place)
        for colour, shape, size, place in product(world.colours, SHAPES, SIZES, world.places)
    ]
    return sum(is_fresh(world, thing) for thing in rows), len(rows)


def some_thing(world: World, rng: random.Random, place: str) -> Thing:
    """A thing at a place; all the rest is drawn evenly."""
    return Thing(
        colour=rng.choice(world.colours),
        shape=rng.choice(SHAPES),
        size=rng.choice(SIZES),
        place=place,
        offset=(rng.uniform(-0.5, 0.5) / 32, rng.uniform(-0.5, 0.5) / 32),
        stretch=rng.uniform(0.95, 1.05),
        shade=some_shade(rng),
    )


def some_shade(rng: random.Random) -> tuple[float, float, float]:
    """By how much a colour varies."""
    return (rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03))


def some_scene(world: World, rng: random.Random, count: int) -> Scene:
    """``count`` things of different colour or shape, apart from each other."""
    while True:
        places = rng.sample(list(world.places), count)
        if not world.fits(places):
            continue
        things = tuple(some_thing(world, rng, place) for place in places)
        if len({(thing.colour, thing.shape) for thing in things}) == count:
            return Scene(
                background=rng.choice(list(BACKGROUNDS)),
                things=things,
                shade=rng.uniform(-0.03, 0.03),
            )


# ------------------------------------------------------------------------------------- drawing


def coverage(shape: str, centre: Tensor, radius: Tensor, side: int) -> Tensor:
    """How much of each pixel a shape covers, [B, side, side] in 0..1.

    ``centre`` [B, 2] (x, y) and ``radius`` [B] are in pixels. The signed distance d of a pixel's
    middle gives 0.5 − d, clipped, which is exact for straight edges along an axis.
    """
    middles = torch.arange(side, dtype=torch.float32) + 0.5
    x = middles[None, None, :] - centre[:, 0, None, None]
    y = middles[None, :, None] - centre[:, 1, None, None]
    size = radius[:, None, None]
    corners = CORNERS_OF[shape]
    if not corners:
        return (0.5 - ((x * x + y * y).sqrt() - size)).clamp(0, 1)
    nearest = torch.full((len(radius), side, side), torch.inf)
    inside = torch.zeros(nearest.shape, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = (bx - ax) * size, (by - ay) * size
        px, py = x - ax * size, y - ay * size
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ay != by:
            crosses = (py < 0) != (y - by * size < 0)
            inside ^= crosses & (px < py * ex / ey)
    distance = nearest.sqrt()
    return (0.5 - torch.where(inside, -distance, distance)).clamp(0, 1)


def draw(world: World, scenes: Sequence[Scene]) -> Tensor:
    """The pictures of scenes, [B, 3, side, side] in −1..1."""
    greys = torch.tensor([BACKGROUNDS[scene.background] + scene.shade for scene in scenes])
    pictures = greys[:, None, None, None].repeat(1, 3, world.side, world.side)
    for shape, slot in product(SHAPES, range(world.most)):
        chosen = [
            (i, scene.things[slot])
            for i, scene in enumerate(scenes)
            if slot < len(scene.things) and scene.things[slot].shape == shape
        ]
        if not chosen:
            continue
        things = [thing for _, thing in chosen]
        spots = torch.tensor([world.places[thing.place] for thing in things])
        spots = (spots + torch.tensor([thing.offset for thing in things])) * world.side
        sizes = [world.radii[SIZES.index(thing.size)] * thing.stretch for thing in things]
        masks = coverage(shape, spots, torch.tensor(sizes) * world.side, world.side)[:, None]
        paints = torch.tensor([COLOURS[thing.colour] for thing in things])
        paints = (paints + torch.tensor([thing.shade for thing in things])).clamp(0, 1)
        index = torch.tensor([i for i, _ in chosen])
        below = pictures[index]
        pictures[index] = below + masks * (paints[:, :, None, None] - below)
    return pictures.clamp(0, 1) * 2 - 1
