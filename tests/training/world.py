"""A handful of coloured squares of every kind of task, and recipes of a few steps on them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtu_export.training import Recipe, Sample

SIDE = 32
TASKS = ("t2i", "edit", "sr", "inpaint", "fill", "relight")


class World:
    """``count`` samples a task; the same index gives the same sample."""

    def __init__(self, tasks: Sequence[str] = TASKS, count: int = 5, side: int = SIDE) -> None:
        self.tasks, self.count, self.side = tuple(tasks), count, side

    def __len__(self) -> int:
        return self.count * len(self.tasks)

    def task(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def __getitem__(self, index: int) -> Sample:
        random = torch.Generator().manual_seed(index)
        side = self.side
        shades = torch.rand(2, 3, 1, 1, generator=random) * 2 - 1
        image, condition = (shade.expand(3, side, side).clone() for shade in shades)
        image[:, side // 4 : side // 2, side // 4 : side // 2] = 0.9
        mask = torch.zeros(1, side, side)
        mask[:, side // 4 :, : side // 2] = 1
        task = self.task(index)
        small = condition[:, ::2, ::2] if task == "sr" else condition
        return Sample(
            task=task,
            prompt=f"square number {index}",
            image=image,
            condition=None if task in ("t2i", "fill") else small,
            mask=mask if task == "fill" else None,
        )


def four() -> World:
    """The paper's tasks: as a config names its data."""
    return World(TASKS[:4])


def recipe(model: Path, folder: Path, **options: Any) -> Recipe:
    """A recipe of two steps with everything that a run has, in ``home``."""
    defaults: dict[str, Any] = {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "height": SIDE,
        "width": SIDE,
        "state": folder / "state",
        "log_every": 1,
    }
    return Recipe(model=str(model), output=folder / "out", **{**defaults, **options})


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's log, without what a clock says."""
    with (folder / "state" / "log.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    return [{key: line[key] for key in ("step", "task", "loss", "lr")} for line in lines]
