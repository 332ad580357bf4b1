"""What is right about pictures of cases, by task: one number a picture, and 95 % intervals.

t2i: all of the caption is there. edit: it is done, and the rest is unchanged. sr: PSNR, and PSNR
of bicubic. inpaint: it is removed, and the rest is unchanged; PSNR inside the removed thing's
surroundings and outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from benchmarks.shapes import checker
from benchmarks.shapes.cases import Case, doubled, halved
from benchmarks.shapes.world import SIZES, World, draw

UNCHANGED_DB = 25.0
"""PSNR outside of the changed thing's surroundings from which the rest counts as unchanged."""
MEASURES = {
    "t2i": ("all right",),
    "edit": ("done, rest unchanged", "done", "PSNR outside"),
    "sr": ("PSNR",),
    "inpaint": ("removed, rest unchanged", "PSNR inside", "PSNR outside"),
}
_LEAST = 1e-9
MOST_DB = 10 * math.log10(4 / _LEAST)
_ROUND = 1.6
"""Surroundings of a thing: so many times its radius, square."""


def psnr(errors: Tensor, where: Tensor | None = None) -> Tensor:
    """dB by picture of squared errors [B, 3, H, W]; the peak is 2; ``where`` [B, H, W] a mask.

    At most :data:`MOST_DB`, which equal pictures have.
    """
    if where is None:
        where = torch.ones(errors.shape[0], *errors.shape[2:], dtype=torch.bool)
    total = (errors.mean(1) * where).sum((1, 2)) / where.sum((1, 2)).clamp_min(1)
    return 10 * torch.log10(4 / total.clamp_min(_LEAST))


def surroundings(world: World, cases: Sequence[Case]) -> Tensor:
    """Where the changed thing is or was, [B, side, side]."""
    changed = torch.zeros(len(cases), world.side, world.side, dtype=torch.bool)
    middles = (torch.arange(world.side) + 0.5) / world.side
    for i, item in enumerate(cases):
        if item.changed is None:
            continue
        scene = item.before if item.verb == "remove" else item.after
        assert scene is not None
        thing = scene.things[item.changed]
        x, y = world.places[thing.place]
        reach = _ROUND * world.radii[SIZES.index(thing.size)]
        across = (middles - x - thing.offset[0]).abs() < reach
        changed[i] = ((middles - y - thing.offset[1]).abs() < reach)[:, None] & across[None]
    return changed


def measures(world: World, cases: Sequence[Case], pictures: Tensor) -> dict[str, Tensor]:
    """Numbers [B] for pictures ``made`` [B, 3, side, side] of cases of one task.

    They are those of :data:`MEASURES`, in their order.
    """
    task, truth = cases[0].task, draw(world, [item.after for item in cases])
    errors = (pictures - truth).square()
    if task == "sr":
        return dict(zip(MEASURES[task], [psnr(errors)], strict=True))
    right = torch.tensor(
        checker.right(checker.read(world, pictures), [item.after for item in cases])
    )
    if task == "t2i":
        return dict(zip(MEASURES[task], [right.float()], strict=True))
    where = surroundings(world, cases)
    inside, outside = psnr(errors, where), psnr(errors, ~where)
    whole = (right & (outside >= UNCHANGED_DB)).float()
    between = inside if task == "inpaint" else right.float()
    return dict(zip(MEASURES[task], [whole, between, outside], strict=True))


def bicubic(world: World, cases: Sequence[Case]) -> Tensor:
    """The half-size pictures of sr at full size by Pillow's bicubic filter."""
    small = halved(world, cases, draw(world, [item.after for item in cases]))
    return doubled(small, Image.Resampling.BICUBIC)


def interval(values: Tensor, share: bool) -> tuple[float, float, float]:
    """Mean and 95 % interval: Wilson's for shares, the normal one for the rest."""
    count, mean = len(values), values.double().mean().item()
    z = 1.959964
    if share:
        middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
        half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
        half /= 1 + z * z / count
        return mean, max(0.0, middle - half), min(1.0, middle + half)
    half = z * values.double().std().item() / math.sqrt(count)
    return mean, mean - half, mean + half


def difference(values: Tensor, share: bool) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences: of shares Bonett and Price's (2012).

    Theirs adds one case each way, so that pairs without any difference do not claim certainty.
    """
    if not share:
        return interval(values, share=False)
    count, z = len(values) + 2, 1.959964
    gained, lost = ((values * sign > 0).sum().item() + 1 for sign in (1, -1))
    middle = (gained - lost) / count
    half = z * math.sqrt(((gained + lost) / count - middle**2) / count)
    return values.double().mean().item(), max(-1.0, middle - half), min(1.0, middle + half)


def is_share(name: str) -> bool:
    """Whether a measure is a share of pictures, not dB."""
    return "PSNR" not in name
