"""`bench`: what bundles cost, on this host, a phone or in a browser."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.console import Console, plain, table
from mtu_export.cli.options import (
    Json,
    Verbose,
    parameter,
    parameters,
    print_json,
    require_writable,
    values,
)
from mtu_export.spec import ParityError, ToolchainError
from mtu_export.spec.options import BenchOptions

if TYPE_CHECKING:
    from mtu_export.bench.record import Fleet, Measurement, Run

_Bundles = Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundle folders.")]


def bench_command() -> Callable[..., None]:
    """The command ``bench``, with the flags of ``BenchOptions``."""

    def command(**arguments: Any) -> None:
        """Measure bundles: latency, work, memory and dB, on this host, a phone or in a browser.

        Exit 1: something is below its floor or failed. What a device cannot run is "not run".
        """
        _bench(options=BenchOptions(**values(BenchOptions, arguments)), **arguments)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter("bundles", _Bundles, inspect.Parameter.empty),
            *parameters(BenchOptions),
            parameter("as_json", Json, False),
            parameter("verbose", Verbose, False),
        ]
    )
    return command


def _bench(bundles: list[Path], options: BenchOptions, as_json: bool, verbose: bool) -> None:
    from mtu_export.bench import api, record

    output = None if options.out is None else Path(options.out)
    if output is not None:
        require_writable(output, options.force)
    console = Console(verbose=verbose)
    with console.quiet(), console.steps() as (step, detail):
        run = api.bench(list(bundles), options, progress=step, detail=detail)
    if output is not None:
        record.write(run, output)
    if as_json:
        print_json(run.to_json())
    else:
        _show(run)
    _refuse_failures(run)


def _show(run: Run) -> None:
    """One table, then a line for each comparison, fleet and note."""
    head = ["bundle", "kind", "task", "part", "median", "p90", "first", "load", "GFLOP/s"]
    head += ["of peak", "memory", "worst dB", ""]
    title = f"{run.device.model}, {run.device.os}" + ", emulated" * run.device.emulated
    table(head, [_cells(each) for each in run.measurements], title=title)
    for each in run.comparisons:
        print(
            plain(
                f"{each.bundle} {each.task}: {each.subject} / {each.baseline} = "
                f"{each.ratio:.3f} ({each.low:.3f} to {each.high:.3f})"
            )
        )
    for fleet in run.fleets:
        print(plain(_fleet_line(fleet)))
    for note in run.notes:
        print(plain(note))


def _cells(each: Measurement) -> list[str]:
    name = [each.bundle.name, each.kind, each.task, each.part]
    if each.latency is None or not each.rounds:
        return [*name, *[""] * 8, f"{each.status}: {each.reason}"]
    times = (each.latency.median, each.latency.p90, each.rounds[0].first_s, each.rounds[0].load_s)
    memory = each.memory.peak_total if each.memory else None
    worst = min((check.psnr_db for check in each.checks), default=None)
    below = [check.name for check in each.checks if not check.passed]
    return [
        *name,
        *(_seconds(value) for value in times),
        "" if each.gflops is None else f"{each.gflops:.1f}",
        "" if each.share_of_peak is None else f"{each.share_of_peak:.2f}",
        "" if memory is None else f"{memory / 1e6:,.0f} MB",
        "not checked" if worst is None else f"{worst:.1f}",
        f"below its floor: {', '.join(below)}" if below else "",
    ]


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def _fleet_line(each: Fleet) -> str:
    text = f"{len(each.tasks)} tasks: {each.one_bytes / 1e6:,.1f} MB in one bundle, "
    text += f"{each.fleet_bytes / 1e6:,.1f} MB in {len(each.tasks)}"
    if each.one_memory and each.fleet_memory:
        text += f"; memory {each.one_memory / 1e6:,.0f} and {each.fleet_memory / 1e6:,.0f} MB"
    if each.one_switch_s and each.fleet_switch_s:
        text += f"; switch {_seconds(each.one_switch_s)} and {_seconds(each.fleet_switch_s)}"
    return text + (f"; {each.reason}" if each.reason else "")


def _refuse_failures(run: Run) -> None:
    """Raise where a bundle failed or is below its floor, and where nothing ran at all.

    Baselines that fail are rows of the record: the toolchain's own export is not ours to pass.
    """
    own = [each for each in run.measurements if each.kind == "bundle"]
    for each in own:
        name = f"{each.bundle.name} {each.task} {each.part}"
        for check in each.checks:
            if not check.passed:
                raise ParityError(
                    f"{name}: {check.name}: {check.psnr_db:.1f} dB, floor {check.floor_db:g} dB"
                )
        if each.status == "failed":
            raise ParityError(f"{name} failed: {each.reason}")
    if not any(each.status == "measured" for each in own):
        reasons = dict.fromkeys(str(each.reason) for each in own)
        raise ToolchainError(f"nothing was measured: {'; '.join(reasons)}")
