"""Plots as inline SVG: widths are shares of the column, heights and type pixels.

So a plot fits any screen and its type keeps its size. Colours are classes of ``page.css``. Every
number of a plot is in a table too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtu_export.bench.report.markup import Markup, element, join
from mtu_export.bench.report.tables import Form, scale_of, shown

Place = Callable[[float], float]
"""Where a value lies, 0 to 1."""
_ROW, _LABEL, _BAR, _AXIS = 38, 12, 19, 26
"""Pixels: of a row, down to its label and to its bar, and of the axis below."""
_HEIGHT = 8
_SCATTER, _LEFT, _RIGHT = 260, 9.0, 97.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A row of a plot: a label, its value, what it consists of, and the values of its rounds."""

    label: str
    value: float
    style: str = "bundle"
    parts: Sequence[tuple[str, float]] = ()
    rounds: Sequence[float] = ()
    note: str = ""


def bars(title: str, marks: Sequence[Mark], form: Form) -> Markup:
    """Horizontal bars from zero; dots are the rounds, a line their range."""
    largest = max((v for m in marks for v in (m.value, *m.rounds)), default=0.0)
    ticks = _ticks(0, largest or 1)
    end = max(ticks[-1], largest) * 1.02 or 1
    rows = []
    for number, mark in enumerate(marks):
        top = number * _ROW
        left = 0.0
        pieces: list[Markup] = []
        for style, value in mark.parts or [(mark.style, mark.value)]:
            width = 100 * value / end
            pieces.append(
                element("rect", x=_p(left), y=top + _BAR, width=_p(width), height=_HEIGHT,
                        class_=f"bar {style}")
            )  # fmt: skip
            left += width
        note = mark.note or shown(mark.value, form)
        rows.append(_row(mark, top, note, [*pieces, *_rounds(mark.rounds, top, lambda v: v / end)]))
    axis = _axis(ticks, lambda v: v / end, len(marks), form)
    return _plot(title, len(marks) * _ROW + _AXIS, join(*axis, *rows))


def ratios(title: str, marks: Sequence[Mark], band: float) -> Markup:
    """Ratios around 1.00 with the range of their rounds; ``band`` is the expected share."""
    values = [v for m in marks for v in (m.value, *m.rounds)]
    low = min([1 - 2 * band, *values])
    high = max([1 + 2 * band, *values])
    margin = 0.04 * (high - low)
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return (value - low) / (high - low)

    left = 100 * place(1 - band)
    width = 100 * place(1 + band) - left
    rows = []
    for number, mark in enumerate(marks):
        top = number * _ROW
        y, end = top + _BAR - 4, top + _BAR + _HEIGHT + 4
        at, one = _p(100 * place(mark.value)), _p(100 * place(1))
        content = [
            element("rect", x=_p(left), y=y, width=_p(width), height=end - y, class_="band"),
            element("line", x1=one, x2=one, y1=y, y2=end, class_="one"),
            *_rounds(mark.rounds, top, place),
            element("line", x1=at, x2=at, y1=y + 2, y2=end - 2, class_="median"),
        ]
        rows.append(_row(mark, top, mark.note, content))
    axis = _axis(_ticks(low, high), place, len(marks), "number")
    return _plot(title, len(marks) * _ROW + _AXIS, join(*axis, *rows))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a scatter plot."""

    label: str
    x: float
    y: float
    style: str = "bundle"


def scatter(title: str, points: Sequence[Point], x_form: Form, y_form: Form) -> Markup:
    """Points with their labels; x is logarithmic, both axes span the points."""
    xs = [math.log(point.x) for point in points]
    left, right = min(xs) - 0.25, max(xs) + 0.25
    ys = _ticks(0, max(point.y for point in points) * 1.05)
    top_y = max(ys[-1], *(point.y for point in points)) or 1.0

    def x_of(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log(value) - left) / (right - left)

    def y_of(value: float) -> float:
        return _SCATTER - 10 - (_SCATTER - 24) * value / top_y

    drawn = [
        join(
            element("line", x1=_p(_LEFT), x2="100%", y1=_n(y_of(y)), y2=_n(y_of(y)), class_="grid"),
            element("text", _tick(y), x=0, y=_n(y_of(y) + 4), class_="tick"),
        )
        for y in ys
    ]
    for x in _log_ticks(math.exp(left), math.exp(right)):
        at = _p(x_of(x))
        drawn.append(element("line", x1=at, x2=at, y1=10, y2=_SCATTER - 10, class_="grid"))
        drawn.append(
            element("text", _named(x, x, x_form), x=at, y=_SCATTER + 6, class_="tick middle")
        )
    places = _apart([y_of(point.y) + 4 for point in points], 20)
    for point, y in zip(points, places, strict=True):
        name = f"{point.label}: {shown(point.x, x_form)}, {shown(point.y, y_form)}"
        dx, side = (-10, "label end") if x_of(point.x) > 55 else (10, "label")
        drawn.append(
            element(
                "g",
                element("title", name),
                element("circle", cx=_p(x_of(point.x)), cy=_n(y_of(point.y)), r=5,
                        class_=f"point {point.style}"),
                element("text", point.label, x=_p(x_of(point.x)), y=_n(y), dx=dx, class_=side),
            )
        )  # fmt: skip
    return _plot(title, _SCATTER + 12, join(*drawn))


# ----------------------------------------------------------------------------------- the pieces


def _plot(title: str, height: float, content: Markup) -> Markup:
    return element(
        "svg", element("title", title), content, width="100%", height=_n(height), role="img",
        aria_label=title, class_="plot",
    )  # fmt: skip


def _row(mark: Mark, top: float, note: str, content: Sequence[Markup]) -> Markup:
    return element(
        "g",
        element("title", f"{mark.label}: {note}"),
        element("text", mark.label, x=0, y=top + _LABEL, class_="label"),
        element("text", note, x="100%", y=top + _LABEL, class_="value end"),
        *content,
    )


def _rounds(values: Sequence[float], top: float, place: Place) -> list[Markup]:
    """A line from the lowest round to the highest, and a dot for each."""
    if not values:
        return []
    y = top + _BAR + _HEIGHT / 2
    ends = [_p(100 * place(end)) for end in (min(values), max(values))]
    line = element("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="range")
    dots = [element("circle", cx=_p(100 * place(v)), cy=y, r=2.5, class_="round") for v in values]
    return [line, *dots]


def _axis(ticks: Sequence[float], place: Place, rows: int, form: Form) -> list[Markup]:
    """Grid lines beside the bars of each row, so that none crosses a label, and their values."""
    largest = max(map(abs, ticks), default=1.0)
    drawn = []
    for tick in ticks:
        share = place(tick)
        if not -1e-9 <= share <= 1 + 1e-9:
            continue
        at = _p(100 * share)
        side = "" if share < 0.04 else " end" if share > 0.96 else " middle"
        name = _named(tick, largest, form)
        for row in range(rows):
            y = row * _ROW + _BAR
            drawn.append(element("line", x1=at, x2=at, y1=y - 4, y2=y + _HEIGHT + 4, class_="grid"))
        drawn.append(element("text", name, x=at, y=rows * _ROW + 16, class_=f"tick{side}"))
    return drawn


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high, about ``count`` of them."""
    step = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(step))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = max(first, math.floor(high / step + 1e-9))
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; of many the powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [n * 10.0**p for p in powers for n in (1, 2, 5) if low <= n * 10.0**p <= high]
    return ticks if len(ticks) <= 5 else [t for t in ticks if f"{t:e}"[0] == "1"]


def _apart(places: Sequence[float], lowest: float, gap: float = 15.0) -> list[float]:
    """Label positions at least ``gap`` from each other: first upwards, then down into the plot."""
    result = list(places)
    order = sorted(range(len(places)), key=lambda i: -places[i])
    last = math.inf
    for index in order:
        last = result[index] = min(places[index], last - gap)
    last = lowest - gap
    for index in reversed(order):
        last = result[index] = max(result[index], last + gap)
    return result


def _named(value: float, largest: float, form: Form) -> str:
    """A tick in the unit of the largest one."""
    factor, unit, _ = scale_of(form, [largest])
    return f"{value / factor:g} {unit}".strip() if value else "0"


def _tick(value: float) -> str:
    return f"{value:g}"


def _p(share: float) -> str:
    return f"{share:.2f}%"


def _n(pixels: float) -> str:
    return f"{pixels:.1f}"
