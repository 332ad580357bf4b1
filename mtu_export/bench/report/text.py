"""The report as Markdown and as CSV: the numbers of its tables."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from mtu_export.bench.report.document import Document
from mtu_export.bench.report.markup import printable
from mtu_export.bench.report.tables import NOTHING, Table

_MARKS = re.compile(r"([\\`*_{}\[\]#|~])")
_HARMLESS = (
    ("<", "&lt;"),
    (">", "&gt;"),
    ("://", "&#58;//"),
    ("@", "&#64;"),
    ("www.", "www&#46;"),
)
_FORMULA = ("=", "+", "-", "@")


def markdown(document: Document) -> str:
    """GitHub's Markdown; no text of a record can be a mark, a link or HTML in it."""
    lines = [f"# {escaped(document.title)}", "", escaped(document.made), ""]
    for answer in document.answers:
        lines += [f"**{escaped(answer.question)}**", ""]
        for f in answer.findings:
            lines += [f"{escaped(f.sentence)} *{escaped(f.where)}*", "", *grid(f.table), ""]
        if not answer.findings:
            lines += [escaped(answer.none), ""]
    lines += _table(document.paper, "## ")
    for section in document.sections:
        lines += [f"## {escaped(section.marked)}", ""]
        lines += [f"Note: {escaped(note)}\n" for note in section.notes]
        lines += [", ".join(f"{name} {escaped(value)}" for name, value in section.facts) + ".", ""]
        for table in section.tables:
            lines += _table(table, "### ")
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(table: Table, level: str) -> Iterable[str]:
    yield from (f"{level}{escaped(table.title)}", "", escaped(table.caption), "")
    yield from grid(table)
    yield ""


def grid(table: Table) -> Iterable[str]:
    """A table alone, without title and caption."""
    yield "| " + " | ".join(escaped(name) for name in table.head) + " |"
    ruler = ("---" if column.form == "text" else "---:" for column in table.columns)
    yield "|" + "|".join(ruler) + "|"
    for cells in table.cells:
        yield "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def escaped(text: str) -> str:
    """Text of Markdown that says what it is."""
    text = _MARKS.sub(r"\\\1", printable(text).replace("&", "&amp;"))
    for mark, harmless in _HARMLESS:
        text = text.replace(mark, harmless)
    return text


def rows(document: Document) -> str:
    """CSV, a line for each number: where it stands, its quantity, unit and full value.

    ``row`` are the row's texts. What a spreadsheet would take for a formula gets an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("section", "emulated", "table", "row", "quantity", "value", "unit", "shown"))
    findings = [f for answer in document.answers for f in answer.findings]
    places = [(f.where, False, f.table) for f in findings]
    places += [("", False, document.paper)]
    places += [(s.title, s.emulated, table) for s in document.sections for table in s.tables]
    for section, emulated, table in places:
        for line in _numbers(table):
            where = (section, "yes" if emulated else "no", table.title)
            writer.writerow(_harmless(str(cell)) for cell in (*where, *line))
    return out.getvalue()


def _numbers(table: Table) -> Iterable[tuple[str, str, str | float, str, str]]:
    forms = [column.form for column in table.columns]
    for raw, cells in zip(table.rows, table.cells, strict=True):
        pairs = zip(cells, forms, strict=True)
        name = " / ".join(cell for cell, form in pairs if form == "text" and cell != NOTHING)
        if "text" not in forms or all(form == "text" for form in forms):
            yield name, "", "", "", ""
            continue
        for index, column in enumerate(table.columns):
            value = raw[index]
            if column.form != "text" and value is not None:
                base = {"seconds": "s", "bytes": "B", "flops": "FLOPs", "decibels": "dB"}
                shown = f"{cells[index]} {table.units[index]}".strip()
                yield name, column.name, value, base.get(column.form, ""), shown


def _harmless(cell: str) -> str:
    cell = printable(cell)
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return cell
