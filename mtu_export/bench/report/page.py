"""The report as one HTML page: nothing is loaded from anywhere, and its script only sorts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources

from mtu_export.bench.report.answers import Answer
from mtu_export.bench.report.document import Document, Section
from mtu_export.bench.report.figures import Figure, figures
from mtu_export.bench.report.markup import Markup, element, join
from mtu_export.bench.report.tables import NOTHING, Table, Value


def page(document: Document) -> str:
    """The whole page."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        element("title", document.title),
        element("style", Markup(style)),
    )
    body = element(
        "main",
        element(
            "header",
            element("h1", document.title),
            element("p", document.made, class_="made"),
        ),
        element("section", *map(_answer, document.answers), class_="answers", aria_label="Answers"),
        _contents(document),
        *(_section(number, section) for number, section in enumerate(document.sections, 1)),
        element("section", element("h2", document.paper.title), _table(document.paper)),
    )
    html = element(
        "html", head, element("body", body, element("script", Markup(script))), lang="en"
    )
    return f"<!doctype html>\n{html}\n"


def _resource(name: str) -> str:
    return resources.files("mtu_export.bench.report").joinpath(name).read_text("utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _answer(answer: Answer) -> Markup:
    findings = [
        element(
            "div",
            element("p", f.sentence, class_="finding"),
            element("p", f.where, class_="where"),
            _table(f.table),
        )
        for f in answer.findings
    ]
    content = findings or [element("p", answer.none, class_="none")]
    question = element("h2", answer.question)
    return element("div", question, element("div", *content), class_="answer")


def _contents(document: Document) -> Markup:
    if len(document.sections) < 2:
        return Markup("")
    links = [
        element("li", element("a", section.title, href=f"#s{number}"), _mark(section))
        for number, section in enumerate(document.sections, 1)
    ]
    return element("nav", element("ol", *links), aria_label="Sections")


def _section(number: int, section: Section) -> Markup:
    facts = [element("div", element("dt", n), element("dd", v)) for n, v in section.facts]
    notes = [element("p", note, class_="note") for note in section.notes]
    return element(
        "section",
        element("h2", section.title, _mark(section)),
        *notes,
        element("dl", *facts, class_="facts"),
        element("div", *map(_figure, figures(section.group)), class_="figures"),
        *(join(element("h3", table.title), _table(table)) for table in section.tables),
        id=f"s{number}",
        class_="emulated" if section.emulated else None,
    )


def _mark(section: Section) -> Markup | None:
    return element("span", "emulated", class_="mark") if section.emulated else None


def _figure(figure: Figure) -> Markup:
    legend = [
        element("li", element("i", class_=f"key {style}"), name) for style, name in figure.legend
    ]
    return element(
        "figure",
        element("figcaption", element("b", figure.title), element("span", figure.caption)),
        element("ul", *legend, class_="legend") if len(legend) > 1 else None,
        figure.plot,
    )


# ---------------------------------------------------------------------------------------- tables


def _table(table: Table) -> Markup:
    forms = [column.form for column in table.columns]
    heads = [
        element(
            "th",
            column.name,
            element("span", f" ({unit})", class_="unit") if unit else None,
            scope="col",
            class_=None if column.form == "text" else "number",
        )
        for column, unit in zip(table.columns, table.units, strict=True)
    ]
    rows = [
        element("tr", *_cells(raw, cells, forms))
        for raw, cells in zip(table.rows, table.cells, strict=True)
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", element("span", table.caption)),
            element("thead", element("tr", *heads)),
            element("tbody", *rows),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=table.title,
    )


def _cells(raw: Iterable[Value], cells: Iterable[str], forms: Iterable[str]) -> Iterable[Markup]:
    for index, (value, cell, form) in enumerate(zip(raw, cells, forms, strict=True)):
        if cell == NOTHING and value is None:
            content = element("span", NOTHING, class_="nothing", title="not measured")
        else:
            content = cell
        sort = value if isinstance(value, int | float) and form != "text" else None
        classes = ["number"] if form != "text" else []
        classes += [value.replace(" ", "-")] if value in ("failed", "not run") else []  # type: ignore[union-attr]
        yield element(
            "th" if index == 0 else "td",
            content,
            scope="row" if index == 0 else None,
            data_value=sort,
            class_=" ".join(classes) or None,
        )
