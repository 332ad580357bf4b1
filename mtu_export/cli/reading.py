"""Commands that read: bundles, checkpoints, names, packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.console import Console, table, verdict_cells
from mtu_export.cli.options import PROOF_HEAD, Force, Json, MinPsnr, Verbose, part_sizes, print_json
from mtu_export.spec import PlanError, Verdict

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle


def verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle folders.")],
    min_psnr: MinPsnr = None,
    runner: Annotated[
        str | None,
        typer.Option(
            "--runner",
            metavar="NAME",
            help="Core ML bundles: coreml, mil-evaluator, or both, compared with one another.",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run bundles against their goldens, each in its own runtime; exit 1 below a floor.

    The rung of the fold needs the checkpoint: it is shown as the export recorded it.
    """
    from mtu_export import bundle
    from mtu_export.bundle import metrics as room
    from mtu_export.bundle import verification
    from mtu_export.exporter import options

    options.check_floor(min_psnr)
    console = Console(verbose=verbose)
    found: list[tuple[Any, list[Verdict]]] = []
    for folder in bundles:
        with console.quiet(), console.stage(f"verify {folder}"):
            read = bundle.read(folder)
            found.append((read, verification.verify_bundle(read, min_psnr, runner)))
    if as_json:
        rows = [
            {
                "bundle": str(b.folder),
                "bytes": b.bytes,
                "proof": [v.to_json() for v in verdicts],
                "recorded": [v.to_json() for v in _recorded(b)],
            }
            for b, verdicts in found
        ]
        print_json(rows)
    else:
        cells = [
            [b.manifest.name, *verdict_cells(v), sizes.get(v.component, "")]
            for b, verdicts in found
            for sizes in (part_sizes(b),)
            for v in (*_recorded(b), *verdicts)
        ]
        table(["bundle", *PROOF_HEAD, "size"], cells)
    failed = room.failure([v for _, verdicts in found for v in verdicts])
    if failed is not None:
        from mtu_export.spec import ParityError

        raise ParityError(f"parity below the floor: {failed}")


def _recorded(found: Bundle) -> list[Verdict]:
    """The rungs of a bundle's ladder that only an export can measure, marked as such."""
    return [
        replace(row, runner=f"{row.runner}, at the export")
        for row in found.proof
        if row.stage == "folded"
    ]


def inspect_(
    path: Annotated[
        str | None, typer.Argument(metavar="[CHECKPOINT|BUNDLE]", help="Folder or hub id.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Deviation from this checkpoint or dense UNet, by layer."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Heat map of the expert weights; with --against, bars of the deviation.",
        ),
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", help="Pixels for which FLOPs are counted.")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Pixels for which FLOPs are counted.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what a checkpoint or a bundle holds; without argument, the embedded checkpoint.

    Of a checkpoint: tasks, parameters, FLOPs and the expert weights of each layer and task.
    """
    from mtu_export import bundle, checkpoint
    from mtu_export.cli import plot, report

    asked = {"--against": against, "--plot": picture, "--height": height, "--width": width}
    source = checkpoint.locate(path)
    if (source / bundle.MANIFEST).is_file():
        for word, value in asked.items():
            if value is not None:
                raise PlanError(f"{word} is for a checkpoint; {str(path)!r} is a bundle")
        found = report.of_bundle(bundle.read(source))
        print_json(found) if as_json else report.show(found)
        return
    if against is not None and (height is not None or width is not None):
        raise PlanError("--against compares weights; leave --height and --width out")
    if picture is not None:
        plot.check(picture, force)
    console = Console(verbose=verbose)
    if against is None:
        with console.quiet(), console.stage("measure"):
            found = report.of_checkpoint(source, height, width)
            if picture is not None:
                plot.heat_map(found["expert weights"], picture, force=force)
    else:
        other = checkpoint.locate(against)
        if (other / bundle.MANIFEST).is_file():
            raise PlanError(f"--against takes a checkpoint; {against!r} is a bundle")
        with console.quiet(), console.stage("compare"):
            found = report.of_deviation(source, other)
            if picture is not None:
                plot.bars(found["layers"], found["kinds"], picture, force=force)
    if as_json:
        print_json(found)
    elif against is None:
        report.show_checkpoint(found)
    else:
        report.show_deviation(found)


def list_(as_json: Json = False) -> None:
    """List targets, schemes, model families and task presets."""
    from mtu_export.cli import report

    found = report.names()
    print_json(found) if as_json else report.show(found)


def doctor(as_json: Json = False) -> None:
    """Compare the packages found with the versions that were tried together."""
    from mtu_export.cli import report

    found = report.packages()
    if as_json:
        print_json(found)
        return
    head = ["package", "found", "tried", "state", "extra"]
    table(head, [[str(row[key] or "") for key in head] for row in found["packages"]])
    for row in found["runners"]:
        print(f"{row['target']}: {row['runner'] or row['reason']}")
