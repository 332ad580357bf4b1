"""Fits the steps of a size to the minutes there are: measures samples/s of every recipe, scales.

The result, steps by recipe, lies in ``pace.json`` of the size's home and is kept to from then on,
so that a run in several pieces is one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mtu_export import training
from mtu_export.cli.console import Console
from mtu_export.training import Recipe

_SECONDS = 8.0
"""For which a recipe is measured."""


def measure(recipes: Mapping[str, Recipe], root: Path, minutes: float) -> dict[str, int]:
    """Steps by recipe, in the proportions of their own, that take ``minutes`` in all.

    More than a recipe asks for is never done. A recipe whose model is not made yet is measured as
    the dense one is.
    """
    path = root / "pace.json"
    if path.is_file():
        print(f"the steps are those of {path}; remove it to measure again", flush=True)
        return json.loads(path.read_text("utf-8"))
    parts = str(root / "parts")
    seconds = {}
    for name, recipe in recipes.items():
        tried = recipe if Path(recipe.model).is_dir() else replace(recipe, model=parts)
        rehearsal = training.rehearse(tried, console=Console(), force=True, seconds=_SECONDS)
        seconds[name] = rehearsal.seconds_a_step
        print(
            f"{name}: {rehearsal.samples_per_second:.0f} samples/s on {rehearsal.device}",
            flush=True,
        )
    whole = sum(seconds[name] * recipe.steps for name, recipe in recipes.items()) / 60
    share = min(1.0, minutes / whole)
    steps = {name: max(1, int(recipe.steps * share)) for name, recipe in recipes.items()}
    print(f"all steps take {whole:.1f} minutes; {100 * share:.0f} % of them are done", flush=True)
    path.write_text(json.dumps(steps, indent=1) + "\n", "utf-8")
    return steps


def apply(recipe: Recipe, name: str, root: Path) -> Recipe:
    """The recipe with the steps of ``pace.json``, where there is one."""
    path = root / "pace.json"
    if not path.is_file():
        return recipe
    return replace(recipe, steps=json.loads(path.read_text("utf-8"))[name])
