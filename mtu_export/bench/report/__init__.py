"""A report of benchmark records: one HTML page, Markdown and CSV with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtu_export.bench import record
from mtu_export.bench.record import Run
from mtu_export.bench.report import page, text
from mtu_export.bench.report.document import Document, document

__all__ = ["Document", "csv", "document", "html", "load", "markdown"]


def load(paths: Sequence[Path]) -> Document:
    """The report of record files; raises ``PlanError`` at the first that is none."""
    return of_runs([(path.name, record.read(path)) for path in paths])


def of_runs(runs: Sequence[tuple[str, Run]]) -> Document:
    """The report of records, each with the name of its file."""
    return document(runs)


html = page.page
markdown = text.markdown
csv = text.rows
