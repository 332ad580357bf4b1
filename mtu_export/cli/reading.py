"""Commands that read: bundles, checkpoints, names, packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.console import Console, table
from mtu_export.cli.options import (
    PROOF_HEAD,
    Force,
    Json,
    Revision,
    Variant,
    Verbose,
    parameter,
    parameters,
    part_sizes,
    print_json,
    values,
)
from mtu_export.spec import ParityError, PlanError, ToolchainError, Verdict
from mtu_export.spec.options import VerifyOptions

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle

_Folders = Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundle folders.")]


def verify_command() -> Callable[..., None]:
    """The command ``verify``, with the flags of ``VerifyOptions``."""

    def command(**arguments: Any) -> None:
        """Run bundles against their goldens, each in its own runtime; exit 1 below a floor.

        The stage `folded` needs the checkpoint: it is shown as the export recorded it.
        """
        _verify(options=VerifyOptions(**values(VerifyOptions, arguments)), **arguments)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter("bundles", _Folders, inspect.Parameter.empty),
            *parameters(VerifyOptions),
            parameter("as_json", Json, False),
            parameter("verbose", Verbose, False),
        ]
    )
    return command


def _verify(bundles: list[Path], options: VerifyOptions, as_json: bool, verbose: bool) -> None:
    from mtu_export import bundle
    from mtu_export.bundle import api, metrics

    console = Console(verbose=verbose)
    results: list[tuple[Bundle, list[Verdict]]] = []
    for folder in bundles:
        with console.quiet(), console.stage(f"verify {folder}"):
            opened = bundle.read(folder)
            results.append((opened, api.verify(opened, options)))
    if as_json:
        print_json(
            [
                {
                    "bundle": str(opened.folder),
                    "bytes": opened.bytes,
                    "proof": [asdict(verdict) for verdict in verdicts],
                    "recorded": [asdict(verdict) for verdict in _recorded(opened)],
                }
                for opened, verdicts in results
            ]
        )
    else:
        lines = []
        for opened, verdicts in results:
            sizes = part_sizes(opened)
            cells = [{**v.cells, "verdict": "recorded"} for v in _recorded(opened)]
            cells += [verdict.cells for verdict in verdicts]
            for line in cells:
                lines.append([opened.manifest.name, *line.values(), sizes.get(line["part"], "")])
        table(["bundle", *PROOF_HEAD, "size"], lines)
    failure = metrics.failure([verdict for _, verdicts in results for verdict in verdicts])
    if failure is not None:
        raise ParityError(f"parity below the floor: {failure}")
    for opened, verdicts in results:
        if all(verdict.runner is None for verdict in verdicts):
            reasons = {str(verdict.reason).partition(";")[0]: None for verdict in verdicts}
            raise ToolchainError(f"nothing of {opened.folder} ran here: {'; '.join(reasons)}")


def _recorded(bundle: Bundle) -> list[Verdict]:
    """The verdicts that only an export can measure, marked as such."""
    return [
        replace(verdict, runner=f"{verdict.runner}, at the export")
        for verdict in bundle.proof
        if verdict.stage == "folded"
    ]


def inspect_(
    path: Annotated[
        str | None, typer.Argument(metavar="[CHECKPOINT|BUNDLE]", help="Folder, file or hub id.")
    ] = None,
    revision: Revision = None,
    variant: Variant = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="FOLDER|HUB-ID",
            help="Measure the deviation from this checkpoint or dense UNet, layer by layer.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw the expert weights as a heat map; with --against, the deviation as bars.",
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option("--height", metavar="PIXELS", help="Image height to count FLOPs for."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", metavar="PIXELS", help="Image width to count FLOPs for."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what a checkpoint or a bundle holds; by default, the checkpoint of this package.

    Of a checkpoint: tasks, parameters, FLOPs and the expert weights of each layer and task.
    """
    from mtu_export import checkpoint
    from mtu_export.cli import plot, report
    from mtu_export.exporter import inspection

    if picture is not None:
        if inspection.is_bundle(checkpoint.place_of(path, revision, variant)):
            raise PlanError(f"--plot is for a checkpoint; {str(path)!r} is a bundle")
        plot.require_writable(picture, force)
    console = Console(verbose=verbose)
    with console.quiet(), console.stage("measure" if against is None else "compare"):
        result = inspection.inspect(
            path, revision=revision, variant=variant, against=against, height=height, width=width
        )
        if picture is not None and against is None and "expert weights" not in result:
            raise PlanError(f"--plot: {path} has no experts; with --against it shows the deviation")
        if picture is not None and against is None:
            plot.heat_map(result["expert weights"], picture, force=force)
        elif picture is not None:
            plot.bars(result["layers"], result["kinds"], picture, force=force)
    if as_json:
        print_json(result)
    else:
        report.show(result)


def list_(as_json: Json = False) -> None:
    """List targets, schemes, model families and task presets."""
    from mtu_export.cli import report

    names = report.names()
    if as_json:
        print_json(names)
    else:
        report.show(names)


def doctor(as_json: Json = False) -> None:
    """Compare the installed packages with the versions that were tested together."""
    from mtu_export.cli import report

    result = report.packages()
    if as_json:
        print_json(result)
        return
    head = ["package", "found", "tried", "state", "extra"]
    table(head, [[str(package[key] or "") for key in head] for package in result["packages"]])
    for runner in result["runners"]:
        print(f"{runner['target']}: {runner['runner'] or runner['reason']}")
