"""Cases of the four tasks in the world of shapes: prompt, input picture, picture to make.

t2i from a caption; edit by instruction (make: colour, turn: shape, add); sr x2 of a blurred, noisy
half-size picture with an empty prompt; inpaint as removal by instruction (Chavhan et al., 2025).
A case depends on world, split and index alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.shapes.world import (
    SHAPES,
    WORLDS,
    Scene,
    World,
    draw,
    is_fresh,
    some_scene,
    some_shade,
    some_thing,
)
from mtu_export.training.data import Sample

TASKS = ("t2i", "edit", "sr", "inpaint")
VERBS = ("make", "turn", "add", "remove")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case; ``before`` is the scene of the input picture, ``changed`` the thing spoken of."""

    task: str
    prompt: str
    after: Scene
    before: Scene | None = None
    verb: str | None = None
    changed: int | None = None
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0


def case(world: World, task: str, split: str, index: int) -> Case:
    """A case of ``split``: "test" holds a fresh combination where it counts, others hold none.

    It counts among the things of the picture to make, and of a removal's input. "train" is trained
    on; "valid" is what choices are made by.
    """
    rng = random.Random(f"{world.side}/{task}/{split}/{index}")
    while True:
        made_case = _MAKERS[task](world, rng)
        seen = (*made_case.after.things, *(made_case.before.things if made_case.before else ()))
        fresh = any(is_fresh(world, thing) for thing in seen)
        if split != "test":
            if not fresh:
                return made_case
            continue
        counted = (
            made_case.before if made_case.verb == "remove" and made_case.before else made_case.after
        )
        if any(is_fresh(world, thing) for thing in counted.things):
            return made_case


def _t2i(world: World, rng: random.Random) -> Case:
    scene = some_scene(world, rng, rng.randint(1, world.most))
    return Case(task="t2i", prompt=scene.caption(), after=scene)


def _sr(world: World, rng: random.Random) -> Case:
    scene = some_scene(world, rng, rng.randint(1, world.most))
    return Case(
        task="sr",
        prompt="",
        after=scene,
        before=scene,
        blur=rng.uniform(0.5, 1.0),
        noise=rng.uniform(0.0, 0.04),
        seed=rng.getrandbits(32),
    )


def _named(scene: Scene, index: int, rng: random.Random) -> str:
    """``red circle``, or ``circle`` where there is one alone of that shape, half of the time."""
    thing = scene.things[index]
    alone = [other.shape for other in scene.things].count(thing.shape) == 1
    return thing.shape if alone and rng.random() < 0.5 else f"{thing.colour} {thing.shape}"


def _edit(world: World, rng: random.Random) -> Case:
    verb = rng.choice(VERBS[:3])
    most = world.most - (verb == "add")
    scene = some_scene(world, rng, rng.randint(1, most))
    things = scene.things
    if verb == "add":
        free = [
            place
            for place in world.places
            if all(thing.place != place for thing in things)
            and world.fits([place, *(thing.place for thing in things)])
        ]
        if not free:
            return _edit(world, rng)
        new = some_thing(world, rng, rng.choice(free))
        if any((new.colour, new.shape) == (old.colour, old.shape) for old in things):
            return _edit(world, rng)
        after, prompt, index = (*things, new), f"add a {new.words()} {new.place}", len(things)
    else:
        index = rng.randrange(len(things))
        old, name = things[index], _named(scene, index, rng)
        if verb == "make":
            colour = rng.choice([c for c in world.colours if c != old.colour])
            new = replace(old, colour=colour, shade=some_shade(rng))
            prompt = f"make the {name} {colour}"
        else:
            shape = rng.choice([s for s in SHAPES if s != old.shape])
            new = replace(old, shape=shape)
            prompt = f"turn the {name} into a {shape}"
        after = (*things[:index], new, *things[index + 1 :])
    return Case(
        task="edit",
        prompt=prompt,
        before=scene,
        after=replace(scene, things=after),
        verb=verb,
        changed=index,
    )


def _inpaint(world: World, rng: random.Random) -> Case:
    scene = some_scene(world, rng, rng.randint(1, world.most))
    index = rng.randrange(len(scene.things))
    rest = (*scene.things[:index], *scene.things[index + 1 :])
    return Case(
        task="inpaint",
        prompt=f"remove the {_named(scene, index, rng)}",
        before=scene,
        after=replace(scene, things=rest),
        verb="remove",
        changed=index,
    )


_MAKERS = {"t2i": _t2i, "edit": _edit, "sr": _sr, "inpaint": _inpaint}


# ------------------------------------------------------------------------------------ pictures


@cache
def doubling(side: int, filter: Image.Resampling) -> Tensor:
    """The matrix [2 · side, side] of Pillow's resize along one axis."""
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    return torch.from_numpy(np.array(unit.resize((side, 2 * side), filter)))


def halved(world: World, cases: Sequence[Case], pictures: Tensor) -> Tensor:
    """What a user hands to sr: blurred, halved, noisy, 8-bit pictures [B, 3, side/2, side/2]."""
    steps = torch.arange(-3, 4, dtype=torch.float32)
    blurs = torch.tensor([case.blur for case in cases])[:, None]
    kernel = (-(steps**2) / (2 * blurs**2)).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    side = world.side
    index = (torch.arange(side)[:, None] + steps.long()[None]).clamp(0, side - 1)
    blur = torch.zeros(len(cases), side, side)
    blur.scatter_add_(2, index.expand(len(cases), -1, -1), kernel[:, None].expand(-1, side, -1))
    soft = torch.einsum("bij,bcjk,blk->bcil", blur, pictures, blur)
    small = torch.nn.functional.avg_pool2d(soft, 2)
    for i, item in enumerate(cases):
        generator = torch.Generator().manual_seed(item.seed)
        small[i] += 2 * item.noise * torch.randn(small[i].shape, generator=generator)
    return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def doubled(pictures: Tensor, filter: Image.Resampling = Image.Resampling.LANCZOS) -> Tensor:
    """Pictures at twice the size, as ``mtu-export run`` fits them (Lanczos).

    Along rows, then along columns, clipped after each as Pillow's bytes are.
    """
    wide = doubling(pictures.shape[-1], filter)
    across = (pictures @ wide.T).clamp(-1, 1)
    return (wide @ across).clamp(-1, 1)


def inputs(world: World, cases: Sequence[Case]) -> Tensor | None:
    """Input pictures [B, 3, side, side] of cases of one task; None for t2i."""
    scenes = [case.before for case in cases if case.before is not None]
    if not scenes:
        return None
    pictures = draw(world, scenes)
    return doubled(halved(world, cases, pictures)) if cases[0].task == "sr" else pictures


class Shapes:
    """Training samples of the world, task after task; see ``training.data.Samples``."""

    def __init__(self, world: World, counts: Mapping[str, int]) -> None:
        self.world = world
        self.ends = dict(zip(counts, accumulate(counts.values()), strict=True))
        self.counts = dict(counts)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def task(self, index: int) -> str:
        """The task of a sample."""
        return next(task for task, end in self.ends.items() if index < end)

    def __getitem__(self, index: int) -> Sample:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> list[Sample]:
        """Samples drawn together."""
        samples: dict[int, Sample] = {}
        for task, end in self.ends.items():
            start = end - self.counts[task]
            chosen = [index for index in indices if start <= index < end]
            if not chosen:
                continue
            batch = [case(self.world, task, "train", index - start) for index in chosen]
            images = draw(self.world, [item.after for item in batch])
            conditions = inputs(self.world, batch)
            for i, (index, item) in enumerate(zip(chosen, batch, strict=True)):
                condition = None if conditions is None else conditions[i]
                samples[index] = Sample(
                    task=task, prompt=item.prompt, image=images[i], condition=condition
                )
        return [samples[index] for index in indices]


def small() -> Shapes:
    """The training set of the CPU's configs."""
    return Shapes(WORLDS["small"], {"t2i": 61_440, "edit": 30_720, "sr": 20_480, "inpaint": 30_720})


def full() -> Shapes:
    """The training set of the GPU's configs."""
    return Shapes(WORLDS["full"], dict.fromkeys(TASKS, 409_600))
