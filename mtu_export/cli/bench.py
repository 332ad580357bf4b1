"""Commands of the benchmark suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtu_export.cli.console import plain, table
from mtu_export.cli.options import Force, Json, print_json
from mtu_export.spec import OutputExists, PlanError
from mtu_export.storage import atomic_file

if TYPE_CHECKING:
    from mtu_export.bench.comparison import Change, Outcome, Pair


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier record.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The later record.")],
    as_json: Json = False,
) -> None:
    """Say what became slower or worse from one benchmark record to another of the same device.

    A difference counts beyond noise, which the rounds of both records tell. Exit 1: something is
    slower, fails or is worse in dB, bytes or memory; 2: the records, or some of what both have
    measured, cannot be compared.
    """
    from mtu_export.bench import comparison, record

    outcome = comparison.compare(record.read(before), record.read(after))
    if as_json:
        print_json(outcome.to_json())
    else:
        _show(outcome)
    raise typer.Exit(outcome.exit_code)


def _show(outcome: Outcome) -> None:
    head = ["bundle", "kind", "task", "part", "engine", "B / A", "interval", "verdict", ""]
    table(head, [_line(pair) for pair in outcome.pairs])
    endings = {
        0: "no regression",
        1: "regression: " + _names([p for p in outcome.pairs if p.regression]),
        2: "no verdict on "
        + (_names([p for p in outcome.pairs if p.doubtful]) or "any pair: nothing measured twice"),
    }
    print(plain(endings[outcome.exit_code]))


def _names(pairs: list[Pair]) -> str:
    return ", ".join(f"{p.bundle} {p.key[0]} {p.key[4]}/{p.key[5]}" for p in pairs)


def _line(pair: Pair) -> list[str]:
    kind, task, part, engine = pair.key[0], *pair.key[4:6], pair.key[7]
    ratio = f"{pair.latency.ratio:.3f}" if pair.latency else ""
    interval = f"{pair.latency.low:.3f} to {pair.latency.high:.3f}" if pair.latency else ""
    notes = [pair.reason] if pair.reason else []
    notes += [_change(change) for change in pair.changes]
    return [pair.bundle, kind, task, part, engine, ratio, interval, pair.verdict, "; ".join(notes)]


def _change(change: Change) -> str:
    form = "{:.1f}" if change.what.startswith("dB") else "{:,.0f}"
    worse = " (worse)" if change.worse else ""
    return f"{change.what} {form.format(change.before)} → {form.format(change.after)}{worse}"


def report(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD.json", help="Benchmark records.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="Page to write.")
    ],
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE.md", help="The same as Markdown.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE.csv", help="The same numbers as CSV.")
    ] = None,
    force: Force = False,
) -> None:
    """Write one self-contained page of benchmark records, with answers, plots and tables."""
    from mtu_export.bench import report as reports

    wanted = [(output, reports.html), (markdown, reports.markdown), (csv, reports.csv)]
    files = [(path, write) for path, write in wanted if path is not None]
    for path, _ in files:
        if not path.parent.is_dir():
            raise PlanError(f"{path}: there is no folder {str(path.parent)!r}")
        if path.is_dir() or path.is_symlink():
            raise PlanError(f"{path} is a folder or a link; name a file")
        if path.exists() and not force:
            raise OutputExists(path)
    document = reports.load(records)
    for path, write in files:
        with atomic_file(path) as private:
            private.write_text(write(document), "utf-8")
    for path, _ in files:
        print(plain(str(path)))
