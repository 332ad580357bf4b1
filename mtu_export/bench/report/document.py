"""What a report says, apart from how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mtu_export.bench.record import Run
from mtu_export.bench.report import paper, sections
from mtu_export.bench.report.answers import Answer, answers
from mtu_export.bench.report.groups import Group, device_facts, groups
from mtu_export.bench.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """One group: facts of its device and run, and its tables."""

    title: str
    group: Group
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]

    @property
    def emulated(self) -> bool:
        """Whether an emulator ran it."""
        return self.group.emulated

    @property
    def marked(self) -> str:
        """The title, with the mark of what is emulated, for formats without other marks."""
        return f"{self.title}: emulated" if self.emulated else self.title


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    made: str
    answers: Sequence[Answer]
    paper: Table
    sections: Sequence[Section]


def document(runs: Sequence[tuple[str, Run]]) -> Document:
    """The report of records, each with the name of its file."""
    ordered = groups(runs)
    emulated = sum(group.emulated for group in ordered)
    count = f"{len(runs)} record" + ("" if len(runs) == 1 else "s")
    made = f"Made by mtu-export report from {count}."
    if emulated:
        made += " What an emulator ran stands at the end, by itself, and answers nothing."
    return Document(
        title="Benchmark report",
        made=made,
        answers=answers(ordered),
        paper=paper.table(paper.counted(ordered)),
        sections=[_section(group) for group in ordered],
    )


def _time(created: str) -> str:
    """A time as people write it; what is none as it stands."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _section(group: Group) -> Section:
    run = group.run
    notes = list(run.notes)
    if group.emulated:
        notes.insert(0, "An emulator ran this: results are checked, times are no speeds.")
    if any(m.before and m.before.throttled for m in group.measurements):
        notes.append("Some measurements began on a device that had not cooled down.")
    versions = {f"{r.name} {r.version}" for m in group.measured for r in (m.runner, m.engine) if r}
    facts = [
        *device_facts(run.device),
        ("measured", _time(run.created)),
        ("mode", run.mode),
        ("mtu-export", f"{run.mtu_export} {run.commit or ''}".strip()),
        ("runner and engines", ", ".join(sorted(versions))),
        ("record", group.file),
    ]
    return Section(
        title=group.title,
        group=group,
        notes=notes,
        facts=[(name, value) for name, value in facts if value],
        tables=sections.tables(group),
    )
