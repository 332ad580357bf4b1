"""Commands that make checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mtu_export.cli.console import Console, plain
from mtu_export.cli.options import Force, Json, Revision, Variant, Verbose, print_json
from mtu_export.models.mtu.presets import TASKS
from mtu_export.spec import PlanError, UnknownName
from mtu_export.spec.options import PREDICTION_TYPES
from mtu_export.testing.architectures import ARCHITECTURES


def upcycle(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Dense UNet or pipeline: folder, model in one .safetensors file, or owner/name on "
            "the Hugging Face hub."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="Checkpoint folder to write.")] = None,
    revision: Revision = None,
    variant: Variant = None,
    tokenizer: Annotated[
        list[Path] | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER",
            help="Tokenizer of a model in one file; repeat for SDXL's second.",
        ),
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            "--prediction-type",
            metavar="NAME",
            help=f"What the source predicts: {' or '.join(PREDICTION_TYPES)}.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help=f"Task: a preset ({', '.join(TASKS)}) or FILE.json; repeat for more."
        ),
    ] = None,
    experts: Annotated[int, typer.Option("--experts", help="N, experts per feed-forward.")] = 4,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale/--no-rescale",
            help="Multiply value rows by N, so that the checkpoint starts equal to the dense "
            "model. Default: as in the paper, a feed-forward starts at 1/N of it.",
        ),
    ] = False,
    task_norm: Annotated[
        str,
        typer.Option("--task-norm", help="Norms of the tasks: replace (the default) or stacked."),
    ] = "replace",
    arch: Annotated[
        str | None,
        typer.Option("--arch", help=f"Architecture, with --random: {', '.join(ARCHITECTURES)}."),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Make seeded random weights instead of reading SOURCE.")
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the weights, with --random: fp32 or fp16.")
    ] = "fp32",
    seed: Annotated[int, typer.Option("--seed", help="Seed of random weights and routers.")] = 0,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Make an MTU checkpoint of a dense UNet: upcycle SOURCE OUT --task ...

    Without a source: upcycle --arch tiny --random OUT
    """
    from mtu_export.models.mtu import presets
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
    _refuse_source_flags(random, revision, variant, tokenizer, prediction_type)
    if experts < 1:
        raise PlanError(f"--experts must be at least 1, got {experts}")
    if task_norm not in ("replace", "stacked"):
        raise UnknownName("task norm", task_norm, ["replace", "stacked"])
    if arch is not None and arch not in ARCHITECTURES:
        raise UnknownName("architecture", arch, list(ARCHITECTURES))
    tasks = task or (list(TASKS)[:4] if random else [])
    presets.resolve_tasks(tasks, ARCHITECTURES.get(arch or "", {}))
    refuse_existing(out, force, CHECKPOINT)
    console = Console(verbose=verbose)
    notes: list[str] = []
    with console.quiet(), console.stage("upcycle"):
        from mtu_export import checkpoint
        from mtu_export.authoring import upcycle as authoring
        from mtu_export.models import sources

        if source is None:
            assert arch is not None
            authoring.write_random(
                arch,
                out,
                tasks=tasks,
                experts=experts,
                seed=seed,
                dtype=dtype,
                task_norm=task_norm,
                force=force,
            )
        else:
            folder = sources.open(
                source,
                revision,
                variant=variant,
                tokenizers=tokenizer or (),
                prediction_type=prediction_type,
            )
            notes = authoring.upcycle(
                folder,
                out,
                source_keys=checkpoint.source_keys(source, folder),
                tasks=tasks,
                experts=experts,
                rescale=rescale,
                seed=seed,
                task_norm=task_norm,
                force=force,
            )
    for note in notes:
        console.warn(note)
    print(out)


def _refuse_source_flags(
    random: bool,
    revision: str | None,
    variant: str | None,
    tokenizers: list[Path] | None,
    prediction_type: str | None,
) -> None:
    """Refuse what is said of a source where there is none."""
    if random and revision is not None:
        raise PlanError("--revision needs a source on the hub")
    if random and (variant or tokenizers or prediction_type):
        raise PlanError("--variant, --tokenizer and --prediction-type need a source")


def adopt(
    weights: Annotated[
        str,
        typer.Argument(help="Safetensors file, folder with such files, or owner/name on the hub."),
    ],
    out: Annotated[Path | None, typer.Argument(help="Checkpoint folder to write.")] = None,
    revision: Revision = None,
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="MAP.json",
            help="Which tensor becomes which; docs/adopt.md describes maps.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which tensor becomes which; write nothing.")
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

        adoption = survey(weights, map_file, revision)
    if not dry_run:
        adoption.check()
        assert out is not None
        with console.quiet(), console.stage("adopt"):
            write(adoption, out, force=force)
    if as_json:
        print_json({"checkpoint": None if dry_run else str(out), **adoption.to_json()})
    elif dry_run:
        _print_columns(adoption.table())
    else:
        print(out)
    adoption.check()


def _print_columns(lines: Sequence[Sequence[str]]) -> None:
    """Print aligned columns that are never cut, so that names can be searched for."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = (plain(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
