"""`train`: a recipe and samples make a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mtu_export.cli.console import Console, table
from mtu_export.cli.options import Force, Verbose
from mtu_export.spec import PlanError


def train(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="Recipe in TOML; docs/training.md describes it."),
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="DIR", help="Folder of the run's state, in place of the recipe's."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="Optimiser steps, in place of the recipe's."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, run a few steps and estimate the cost; write only caches.",
        ),
    ] = False,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Train a checkpoint by the paper's recipe, or a dense UNet for one task: train CONFIG

    A stopped run goes on with the same command.
    """
    from mtu_export import training

    if steps is not None and steps < 1:
        raise PlanError(f"--steps must be at least 1, got {steps}")
    recipe = training.read(config)
    if state is not None:
        recipe = replace(recipe, state=state.absolute())
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    console = Console(verbose=verbose)
    if not dry_run:
        with console.quiet():
            out = training.train(recipe, console=console, force=force)
        print(out)
        return
    with console.quiet():
        estimate = training.rehearse(recipe, console=console, force=force)
    estimates = [
        ["device", estimate.device],
        ["trained parameters", f"{estimate.trained / 1e6:.2f} M"],
        ["samples/s, all tasks", f"{estimate.samples_per_second:.1f}"],
        ["seconds a step", f"{estimate.seconds_a_step:.3f}"],
        [f"hours of {estimate.steps} steps", f"{estimate.hours:.2f}"],
        ["memory at most", f"{estimate.memory / 1e9:.2f} GB"],
    ]
    table(["", "estimate"], estimates, title=f"dry run of {config}")
