"""Write docs/devices.md from the records that users have sent.

    python benchmarks/devices.py

A record is `benchmarks/evidence/NAME.json`, as `mtu-export bench` writes it on real hardware, with
its checks. One that is damaged, emulated or without a check is refused, and nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mtu_export.bench import record
from mtu_export.bench.record import Measurement, Run
from mtu_export.bench.report import text
from mtu_export.bench.report.groups import device_facts, model_of
from mtu_export.bench.report.tables import Column, Table, Value
from mtu_export.spec import MtuExportError, PlanError

HERE = Path(__file__).parent
EVIDENCE = HERE / "evidence"
PAGE = HERE.parent / "docs" / "devices.md"
COMMAND = "mtu-export bench BUNDLE --device adb -o evidence-<device>.json      # an iPhone: ios"
EMPTY = "Nobody has sent a record yet: no file of this project is known to have run on a phone."
COLUMNS = (
    Column("bundle"),
    Column("file"),
    Column("task"),
    Column("part"),
    Column("engine"),
    Column("threads", "count"),
    Column("median", "seconds"),
    Column("worst PSNR", "decibels"),
    Column("verdict"),
)


def read(folder: Path) -> list[tuple[str, Run]]:
    """The records of a folder, by name; raises ``PlanError`` at one that proves nothing."""
    runs = [(path.name, record.read(path)) for path in sorted(folder.glob("*.json"))]
    for name, run in runs:
        if run.device.emulated or any(m.emulated for m in run.measurements):
            raise PlanError(f"{name}: an emulator is no evidence of a device")
        if not any(m.checks for m in run.measurements):
            raise PlanError(f"{name}: no check; measure with the goldens")
    return runs


def _row(m: Measurement) -> list[Value]:
    engine = f"{m.engine.name} {m.engine.version}" if m.engine else None
    if engine and m.provider != "cpu":
        engine += f", {m.provider}"
    worst = min((check.psnr_db for check in m.checks), default=None)
    verdict = f"{m.status}: {m.reason}" if m.status != "measured" else "not checked"
    if m.status == "measured" and m.checks:
        verdict = "ok" if all(check.passed for check in m.checks) else "below the floor"
    median = m.latency.median if m.latency else None
    what = [m.bundle.name, model_of(m), m.task, m.part, engine, m.threads]
    return [*what, median, worst, verdict]


def page(runs: Sequence[tuple[str, Run]]) -> str:
    """docs/devices.md."""
    lines = [
        "# Devices",
        "",
        "Made by `python benchmarks/devices.py` from `benchmarks/evidence/`: records of real "
        "devices that users have sent, with dB against PyTorch measured there. One command makes "
        "a record:",
        "",
        "```",
        COMMAND,
        "```",
        "",
        "Read it before you send it: it holds the device's model, system and versions, and what "
        "was measured. Then add it to `benchmarks/evidence/` and run `make devices`.",
        "",
    ]
    if not runs:
        lines += [EMPTY, ""]
    for name, run in runs:
        facts = [f"{key} {text.escaped(value)}" for key, value in device_facts(run.device)[1:]]
        caption = f"Record {name} of {run.created}, mtu-export {run.mtu_export} {run.commit or ''}"
        table = Table(
            title=run.device.model,
            caption=caption.strip() + ".",
            columns=COLUMNS,
            rows=[_row(m) for m in run.measurements],
        )
        heading = f"## {text.escaped(table.title)}"
        caption = text.escaped(table.caption)
        lines += [heading, "", f"{caption} Its {', '.join(facts)}.", "", *text.grid(table), ""]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the page."""
    try:
        PAGE.write_text(page(read(EVIDENCE)), "utf-8")
    except MtuExportError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
