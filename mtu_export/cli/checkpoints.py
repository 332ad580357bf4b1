"""Commands that make checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mtu_export.checkpoint.presets import TASKS
from mtu_export.cli.console import Console, plain
from mtu_export.cli.options import Force, Json, Verbose, print_json
from mtu_export.spec import PlanError, UnknownName
from mtu_export.testing.architectures import ARCHITECTURES


def upcycle(
    source: Annotated[
        str | None, typer.Argument(help="Dense UNet or pipeline: folder or hub id.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="Checkpoint folder to make.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help=f"Preset ({', '.join(TASKS)}) or FILE.json; repeat."),
    ] = None,
    experts: Annotated[int, typer.Option("--experts", help="N, experts a feed-forward.")] = 4,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale/--no-rescale",
            help="Multiply value rows by N: start equal to the dense model. Default: the "
            "shards as they are, as in the paper (a feed-forward starts at 1/N).",
        ),
    ] = False,
    task_norm: Annotated[
        str, typer.Option("--task-norm", help="replace (default) or stacked.")
    ] = "replace",
    arch: Annotated[
        str | None,
        typer.Option("--arch", help=f"With --random: {', '.join(ARCHITECTURES)}."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Seeded random weights.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="With --random: fp32 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Make an MTU checkpoint of a dense UNet: upcycle SOURCE OUT --task ...

    Without a source: upcycle --arch tiny --random OUT
    """
    from mtu_export.checkpoint import presets
    from mtu_export.storage.draft import CHECKPOINT, refuse_existing

    if random and arch is None:
        raise PlanError(f"--random needs --arch: {', '.join(ARCHITECTURES)}")
    if arch is not None and not random:
        raise PlanError("--arch needs --random; a source has its own architecture")
    if random and source is not None and out is None:
        source, out = None, Path(source)
    if out is None or (source is None) != random:
        raise PlanError("usage: upcycle SOURCE OUT --task ... or upcycle --arch NAME --random OUT")
    if random and rescale:
        raise PlanError("--rescale needs a source; random experts stand for no dense model")
    if experts < 1:
        raise PlanError(f"--experts must be at least 1, got {experts}")
    if task_norm not in ("replace", "stacked"):
        raise UnknownName("task norm", task_norm, ["replace", "stacked"])
    if arch is not None and arch not in ARCHITECTURES:
        raise UnknownName("architecture", arch, list(ARCHITECTURES))
    words = task or (list(TASKS)[:4] if random else [])
    presets.resolve_tasks(words, ARCHITECTURES.get(arch or "", {}))
    refuse_existing(out, force, CHECKPOINT)
    console = Console(verbose=verbose)
    notes: list[str] = []
    with console.quiet(), console.stage("upcycle"):
        from mtu_export import checkpoint
        from mtu_export.authoring import upcycle as room

        if source is None:
            assert arch is not None
            room.write_random(
                arch,
                out,
                tasks=words,
                experts=experts,
                seed=seed,
                dtype=dtype,
                task_norm=task_norm,
                force=force,
            )
        else:
            notes = room.upcycle(
                checkpoint.locate(source),
                out,
                tasks=words,
                experts=experts,
                rescale=rescale,
                seed=seed,
                task_norm=task_norm,
                force=force,
            )
    for note in notes:
        console.warn(note)
    print(out)


def adopt(
    weights: Annotated[
        str, typer.Argument(help="Safetensors file, folder with safetensors, or hub id.")
    ],
    out: Annotated[Path | None, typer.Argument(help="Checkpoint folder to make.")] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="MAP.json", help="What becomes what: docs/adopt.md."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what maps to what; write nothing.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make an MTU checkpoint of weights in another layout: adopt WEIGHTS OUT --map MAP.json"""
    from mtu_export.storage.draft import CHECKPOINT, refuse_existing

    if map_file is None:
        raise PlanError("adopt needs --map MAP.json; docs/adopt.md describes maps")
    if out is None and not dry_run:
        raise PlanError("usage: adopt WEIGHTS OUT --map MAP.json, or adopt WEIGHTS --dry-run ...")
    if out is not None and not dry_run:
        refuse_existing(out, force, CHECKPOINT)
    console = Console(verbose=verbose)
    with console.quiet(), console.stage("map"):
        from mtu_export.authoring.adopt import survey, write

        found = survey(weights, map_file)
    if not dry_run:
        found.check()
        assert out is not None
        with console.quiet(), console.stage("adopt"):
            write(found, out, force=force)
    if as_json:
        print_json({"checkpoint": None if dry_run else str(out), **found.to_json()})
    elif dry_run:
        _print_rows(found.table())
    else:
        print(out)
    found.check()


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns that are never cut, so that names can be searched for."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (plain(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
