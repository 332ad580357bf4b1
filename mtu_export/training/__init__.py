"""Eq. 2 as a product: a recipe and samples of several tasks in, a checkpoint out.

``read`` makes a :class:`Recipe` of a TOML file; any set of :class:`Samples` serves, and
:class:`Folder` is one of local pictures. PyTorch is imported when a run begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec.extras import EXPORT, require
from mtu_export.training.data import Folder, Sample, Samples
from mtu_export.training.recipe import Recipe, Upcycling, read

if TYPE_CHECKING:
    from mtu_export.training.run import Rehearsal
    from mtu_export.training.watch import Console

__all__ = ["Folder", "Recipe", "Sample", "Samples", "Upcycling", "read", "rehearse", "train"]

_NEEDED = (*EXPORT, "accelerate")


def train(
    recipe: Recipe,
    samples: Samples | None = None,
    *,
    console: Console | None = None,
    force: bool = False,
) -> Path:
    """Train, go on where a state of the same recipe is, and write the checkpoint.

    ``samples`` stands for the recipe's data; ``console`` shows stages and progress. Returns
    ``recipe.output``. Raises ``PlanError`` and its kinds, ``CheckpointError``,
    ``ToolchainMissing``, ``ResourceError``, ``ParityError`` (a loss that is not finite: the last
    state stays) and ``Interrupted`` (Ctrl-C: the state is saved; the same call goes on).
    """
    require(*_NEEDED)
    from mtu_export.training import run

    return run.train(recipe, samples, console=console, force=force)


def rehearse(
    recipe: Recipe,
    samples: Samples | None = None,
    *,
    console: Console | None = None,
    force: bool = False,
    seconds: float = 10.0,
) -> Rehearsal:
    """Check everything and run a few steps, for ``seconds`` at most after the first.

    No state and no output are written; the latents' cache and the upcycled checkpoint stay.
    Raises as :func:`train`.
    """
    require(*_NEEDED)
    from mtu_export.training import run

    return run.rehearse(recipe, samples, console=console, force=force, seconds=seconds)
