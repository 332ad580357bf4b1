"""Commands that read: bundles, checkpoints, names, packages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mtu_export.cli.words import PROOF_HEAD, Json, MinPsnr, Verbose, print_json
from mtu_export.console import Console, table, verdict_cells
from mtu_export.spec import Verdict


def verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle folders.")],
    min_psnr: MinPsnr = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run bundles against their goldens, each in its own runtime; exit 1 below a floor."""
    from mtu_export import bundle, exporter, plan
    from mtu_export import verify as room

    plan.check_floor(min_psnr)
    console = Console(verbose=verbose)
    found: list[tuple[Any, list[Verdict]]] = []
    for folder in bundles:
        with console.quiet(), console.stage(f"verify {folder}"):
            read = bundle.read(folder)
            found.append((read, exporter.check(read, min_psnr)))
    if as_json:
        rows = [
            {"bundle": str(b.folder), "bytes": b.bytes, "proof": [asdict(v) for v in verdicts]}
            for b, verdicts in found
        ]
        print_json(rows)
    else:
        cells = [
            [b.manifest["name"], *verdict_cells(v), f"{b.bytes / 1e6:.2f} MB"]
            for b, verdicts in found
            for v in verdicts
        ]
        table(["bundle", *PROOF_HEAD, "size"], cells)
    failed = room.failure([v for _, verdicts in found for v in verdicts])
    if failed is not None:
        from mtu_export.spec import ParityError

        raise ParityError(f"parity below the floor: {failed}")


def inspect_(
    path: Annotated[
        str | None, typer.Argument(metavar="[CHECKPOINT|BUNDLE]", help="Folder or hub id.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint or a bundle holds; without argument, the embedded checkpoint."""
    from mtu_export import bundle, checkpoint, report

    folder = Path(path).expanduser() if path is not None else None
    if folder is not None and (folder / bundle.MANIFEST).is_file():
        found = report.of_bundle(bundle.read(folder))
    else:
        found = report.of_checkpoint(checkpoint.locate(path))
    print_json(found) if as_json else report.show(found)


def list_(as_json: Json = False) -> None:
    """List targets, schemes, model families and task presets."""
    from mtu_export import report

    found = report.names()
    print_json(found) if as_json else report.show(found)


def doctor(as_json: Json = False) -> None:
    """Compare the packages found with the versions that were tried together."""
    from mtu_export import report

    found = report.packages()
    if as_json:
        print_json(found)
        return
    head = ["package", "found", "tried", "state", "extra"]
    table(head, [[str(row[key] or "") for key in head] for row in found["packages"]])
    for row in found["runners"]:
        print(f"{row['target']}: {row['runner'] or row['reason']}")
