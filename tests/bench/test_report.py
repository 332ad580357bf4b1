"""The report: what it answers, what it never mixes, and text that stays text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bench import record, report
from mtu_export.bench.record import Work
from mtu_export.bench.report import Document, paper, plots, tables
from mtu_export.bench.report.figures import figures
from mtu_export.bench.report.groups import groups
from mtu_export.bench.report.plots import Mark, Point
from mtu_export.bench.report.tables import Column, Table
from mtu_export.cli import app
from mtu_export.spec import OutputExists, PlanError
from tests.bench.records import (
    device,
    host_run,
    hostile,
    measured,
    phone_run,
    rounds_of,
    run,
    unmeasured,
    web_run,
)
from tests.support.tools import require

VOID = {"meta"}


@pytest.fixture(scope="module")
def whole() -> Document:
    """A host, an emulated phone, and a browser of which WebGPU is emulated."""
    runs = [("phone.json", phone_run()), ("host.json", host_run()), ("web.json", web_run())]
    return report.of_runs(runs)


class Page(HTMLParser):
    """Elements, attributes and texts of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.code: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.code if self.open[-1:] in (["script"], ["style"]) else self.texts).append(data)


# ------------------------------------------------------------------------------------- answers


def test_answers(whole: Document) -> None:
    sentences = {a.question: [f.sentence for f in a.findings] for a in whole.answers}
    (cost,) = sentences["What does MTU cost against a single-task model?"]
    assert re.fullmatch(
        r"MTU takes 0\.9\d to 1\.0\d times the time of the single-task model "
        r"\(rounds 0\.9\d to 1\.\d\d\)\.",
        cost,
    )
    (fold,) = sentences["What does folding the router save?"]
    assert fold.startswith("Folded, MTU takes 0.8")
    (int8,) = sentences["What does int8 bring?"]
    assert int8.startswith("int8 has 0.26 times the bytes, 0.5")
    assert int8.endswith("at worst 55.4 dB instead of 128.3 dB.")
    (sharing,) = sentences["What does one bundle for several tasks save?"]
    assert sharing == (
        "One denoiser for 4 tasks has 0.28 times the bytes of one for each, 0.29 times the "
        "memory, and takes 4.00 ms to another task instead of 181 ms."
    )


def test_what_a_record_lacks_is_not_measured() -> None:
    document = report.of_runs([("one.json", run(measured(rounds_of([1.0], [1.0]))))])
    assert [(a.findings, a.none) for a in document.answers] == [([], "Not measured.")] * 5
    assert report.markdown(document).count("Not measured.") == 5


def test_what_failed_says_why() -> None:
    failure = unmeasured("failed", "out of memory", kind="dense")
    document = report.of_runs([("one.json", run(failure))])
    assert document.answers[0].none == "Not measured: ONNX int8 failed, out of memory."


def test_figures_of_an_answer_are_those_of_the_record() -> None:
    host = host_run()
    document = report.of_runs([("host.json", host)])
    ratios = [c.ratio for c in host.comparisons if c.baseline == "dense"]
    (finding,) = document.answers[0].findings
    assert [row[2] for row in finding.table.rows] == pytest.approx(ratios)


def test_an_emulator_answers_nothing() -> None:
    host = host_run()
    emulated = host.model_copy(update={"device": device(emulated=True)})
    document = report.of_runs([("host.json", emulated)])
    assert [a.findings for a in document.answers] == [[]] * 5


# ------------------------------------------------------------------------------- what is mixed


def test_groups_are_never_mixed(whole: Document) -> None:
    assert [(s.title, s.emulated) for s in whole.sections] == [
        ("a machine (host)", False),
        ("a browser (browser, WASM)", False),
        (
            "a loopback device (phone over adb, glibc 2.36 (not the kernels of an app))",
            True,
        ),
        ("a browser (browser, WebGPU)", True),
    ]
    for section in whole.sections:
        group = section.group
        ways = {(m.provider, m.emulated) for m in group.measured if group.provider}
        assert len(ways) <= 1


def test_emulated_times_are_in_no_plot(whole: Document) -> None:
    for section in whole.sections:
        titles = [figure.title for figure in figures(section.group)]
        timed = [title for title in titles if title.startswith("Time")]
        assert (timed == []) is section.emulated
        if section.emulated:
            (latency,) = [t for t in section.tables if t.title == "Latency"]
            assert latency.caption.startswith("Emulated: these times are no speeds.")


def test_records_of_one_device_have_their_own_titles() -> None:
    runs = [("bench_one.json", host_run()), ("bench_two.json", host_run(1))]
    titles = [section.title for section in report.of_runs(runs).sections]
    assert titles == ["a machine (host): bench_one", "a machine (host): bench_two"]


def test_a_browsers_comparisons_stay_with_their_provider() -> None:
    web = web_run()
    compared = host_run().comparisons[0]
    both = [compared.model_copy(update={"provider": name}) for name in ("wasm", "webgpu")]
    web = web.model_copy(update={"comparisons": tuple(both)})
    for group in groups([("web.json", web)]):
        assert [c.provider for c in group.comparisons] == [group.provider]


def test_failed_and_not_run_are_shown_with_their_reasons(whole: Document) -> None:
    (table,) = [t for t in whole.sections[0].tables if t.title == "Failed and not run"]
    assert [row[-2:] for row in table.rows] == [
        ["failed", "the toolchain's int8 fails: Could not find an op for aten::silu_"],
        ["not run", "Core ML needs macOS 15"],
    ]


# --------------------------------------------------------------------------------- the formats


def test_every_format_has_every_number(whole: Document) -> None:
    texts = Page(report.html(whole)).texts
    markdown = report.markdown(whole)
    lines = list(csv.DictReader(io.StringIO(report.csv(whole))))
    every = [t for s in whole.sections for t in s.tables] + [whole.paper]
    every += [f.table for a in whole.answers for f in a.findings]
    assert sum(len(table.rows) for table in every) > 100
    for table in every:
        assert table.caption in texts
        for raw, cells in zip(table.rows, table.cells, strict=True):
            assert set(cells) <= set(texts)
            assert " | ".join(cell.replace("_", r"\_") for cell in cells) in markdown
            for column, value in zip(table.columns, raw, strict=True):
                if column.form != "text" and value is not None:
                    assert any(
                        line["quantity"] == column.name and float(line["value"]) == value
                        for line in lines
                        if line["table"] == table.title
                    )


def test_the_page_loads_nothing(whole: Document) -> None:
    html = report.html(whole)
    page = Page(html)
    links = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "srcset", "action", "data", "style") or name.startswith("on")
    ]
    assert links == ["#s1", "#s2", "#s3", "#s4"]
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [v for _, name, v in page.attributes if name == "content" and "default" in str(v)]
    hashes = {
        base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code
    }
    assert len(hashes) == 2
    assert set(re.findall(r"'sha256-([^']+)'", str(policy))) == hashes
    assert str(policy).startswith("default-src 'none'; ")
    assert "unsafe" not in str(policy)


def test_tables_and_plots_are_named(whole: Document) -> None:
    page = Page(report.html(whole))
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.tags.count("title") > page.tags.count("svg")
    named = [a for a in page.attributes if a[:2] == ("svg", "aria-label")]
    assert len(named) == page.tags.count("svg") > 0


HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</style></title></table><svg onload=alert(1)>",
    "&lt;b&gt; &amp;",
    "| **bold** | [x](http://example.org) ![y](z)",
    "https://example.org www.example.org a@example.org",
    "=HYPERLINK(1)",
    "# heading\n- list\r\n\t\x1b[31m",
    "\u202egnp.exe\u0000",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_record_stays_text(text: str) -> None:
    calm = report.of_runs([("a.json", hostile("calm"))])
    document = report.of_runs([(text, hostile(text))])
    shown = "".join(c if c.isprintable() else "?" for c in text)
    page, expected = Page(report.html(document)), Page(report.html(calm))
    assert page.tags == expected.tags
    assert [a[:2] for a in page.attributes] == [a[:2] for a in expected.attributes]
    assert shown in page.texts
    assert not any(c in report.html(document) for c in "\u202e\x00\x1b")
    markdown = report.markdown(document)
    assert len(markdown.splitlines()) == len(report.markdown(calm).splitlines())
    assert "<" not in markdown
    assert not re.search(r"(?<!\\)[\[\]`]|://|@|www\.", markdown)
    columns = [re.findall(r"(?<!\\)\|", line) for line in markdown.splitlines()]
    assert columns == [
        re.findall(r"(?<!\\)\|", line) for line in report.markdown(calm).splitlines()
    ]
    for line in csv.reader(io.StringIO(report.csv(document))):
        assert not any(re.match(r"[=+@]|-(?![\d.])", cell) for cell in line)


# --------------------------------------------------------------------------- tables and the paper


def test_a_column_has_one_unit_and_the_same_decimals() -> None:
    table = Table(
        title="t",
        caption="c",
        columns=(Column("name"), Column("time", "seconds"), Column("size", "bytes")),
        rows=[["a", 0.0312, 4_400_000], ["b", 0.5, 17_200_000], ["c", None, 0]],
    )
    assert table.head == ["name", "time (ms)", "size (MB)"]
    assert table.cells == [["a", "31", "4.4"], ["b", "500", "17.2"], ["c", "–", "0.0"]]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.00123, "seconds", "1.23 ms"),
        (12.0, "seconds", "12.0 s"),
        (3e-7, "seconds", "0.300 µs"),
        (869_444_341, "bytes", "869 MB"),
        (12, "bytes", "12 B"),
        (0.677e12, "flops", "677.0 GFLOPs"),
        (999.0, "decibels", "equal"),
        (61.44, "decibels", "61.4 dB"),
        (0.25, "share", "25 %"),
        (None, "seconds", "–"),
        (0, "seconds", "0"),
    ],
)
def test_values_with_units(value: Any, form: tables.Form, text: str) -> None:
    assert tables.shown(value, form).removesuffix(" dB" if text == "equal" else "") == text


@settings(deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), max_size=8), st.sampled_from(["number", "seconds"]))
def test_any_number_is_shown(values: list[float], form: tables.Form) -> None:
    table = Table(title="t", caption="c", columns=(Column("x", form),), rows=[[v] for v in values])
    assert len(table.cells) == len(values)


def test_the_papers_columns() -> None:
    work = Work(
        bytes=1, parameters=868_900_000, flops_conv_linear=677_000_000_000, flops_total=803 * 10**9
    )
    large = {"height": 512, "width": 512}
    rounds = rounds_of([1.0])
    document = report.of_runs([("a.json", run(measured(rounds, work=work, bundle=large)))])
    lines = [row for row in document.paper.rows if row[0] == "MTU SD 1.5, N = 4"]
    assert lines == [
        ["MTU SD 1.5, N = 4", "paper", 0.68e12, None, 869e6],
        ["MTU SD 1.5, N = 4", "ours, bundle", 677e9, 803e9, 868_900_000],
    ]
    others = [row[1] for row in document.paper.rows if row[0] != "MTU SD 1.5, N = 4"]
    assert others == ["paper", "ours: not measured"] * 3
    small = report.of_runs([("a.json", run(measured(rounds, work=work)))])
    assert paper.counted([s.group for s in small.sections]) == []


# --------------------------------------------------------------------------------------- plots


def numbers(svg: str, tag: str, attribute: str, style: str) -> list[float]:
    found = re.findall(rf"<{tag} [^>]*>", svg)
    number = re.compile(rf'{attribute}="([-\d.]+)%?"')
    return [float(number.findall(one)[0]) for one in found if style in one]


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_bars_are_as_long_as_their_values(values: list[float]) -> None:
    svg = plots.bars("t", [Mark(label="m", value=v) for v in values], "seconds")
    widths = numbers(svg, "rect", "width", "bar bundle")
    scale = max(values) / max(widths)
    assert widths == pytest.approx([v / scale for v in values], abs=0.011)
    assert max(widths) <= 100


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_ratios_lie_in_the_order_of_their_values(values: list[float]) -> None:
    marks = [Mark(label="m", value=v, rounds=(v * 0.9, v * 1.1)) for v in values]
    svg = plots.ratios("t", marks, 0.03)
    places = numbers(svg, "line", "x1", 'class="median"')
    one = numbers(svg, "line", "x1", 'class="one"')[0]
    for value, place in zip(values, places, strict=True):
        assert 0 <= place <= 100
        assert (place > one) == (value > 1) or math.isclose(place, one, abs_tol=0.02)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1, 1e12), st.floats(0, 150)), min_size=1, max_size=8),
)
def test_points_and_labels_stay_within_the_plot(points: list[tuple[float, float]]) -> None:
    svg = plots.scatter("t", [Point(label="p", x=x, y=y) for x, y in points], "bytes", "decibels")
    assert all(9 <= x <= 97 for x in numbers(svg, "circle", "cx", "point"))
    assert all(0 <= y <= 260 for y in numbers(svg, "circle", "cy", "point"))
    labels = sorted(numbers(svg, "text", " y", "dx="))
    assert labels[0] >= 0
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(labels))


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_are_few_and_within(low: float, span: float) -> None:
    ticks = plots._ticks(low, low + span)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(ticks)


# ---------------------------------------------------------------------------- the command line


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    names = ("report.html", "report.md", "report.csv")
    page, markdown, rows = (tmp_path / name for name in names)
    source = tmp_path / "host.json"
    record.write(host_run(), source)
    words = ["report", str(source), "-o", str(page), "--markdown", str(markdown), "--csv"]
    assert not app([*words, str(rows)], standalone_mode=False)
    assert capsys.readouterr().out.split() == [str(page), str(markdown), str(rows)]
    document = report.load([source])
    assert page.read_text("utf-8") == report.html(document)
    assert markdown.read_text("utf-8") == report.markdown(document)
    assert rows.read_text("utf-8") == report.csv(document)
    with pytest.raises(OutputExists):
        app([*words, str(rows)], standalone_mode=False)
    assert not app([*words, str(rows), "--force"], standalone_mode=False)


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": "1.0"}', "utf-8")
    words = ["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "report.html")]
    with pytest.raises(PlanError, match=r"a\.json is no benchmark record"):
        app(words, standalone_mode=False)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_a_browser_takes_the_page(whole: Document, tmp_path: Path) -> None:
    """Style and script pass the page's own policy: the script has made its buttons."""
    browser = require("chromium")
    (tmp_path / "report.html").write_text(report.html(whole), "utf-8")
    switches = (
        "no-sandbox",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-gpu",
        "enable-logging=stderr",
    )
    flags = [f"--{name}" for name in ("headless", *switches)]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert '<button type="button">' in done.stdout
    assert "Content Security Policy" not in done.stderr


# -------------------------------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    sheet = (Path(report.__file__).parent / "page.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
    for text in ("text", "soft", "accent", "warn"):
        for ground in ("ground", "sheet"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["mark-text"], colours["mark"]) >= 4.5
    for mark in ("accent", "dense", "unfolded", "plain", "single"):
        assert contrast(colours[mark], colours["ground"]) >= 3, mark
    assert contrast(colours["accent"], colours["accent-soft"]) >= 2.5
