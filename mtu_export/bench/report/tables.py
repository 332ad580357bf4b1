"""Tables of a report: raw values in columns of one unit each, shown alike in every format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Value = str | int | float | bool | None
"""None is what was not measured."""
Form = Literal["text", "seconds", "bytes", "flops", "count", "decibels", "ratio", "share", "number"]
NOTHING = "–"
_SCALES: dict[Form, tuple[tuple[float, str], ...]] = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "flops": ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1.0, "FLOPs")),
    "count": ((1.0, ""),),
    "decibels": ((1.0, "dB"),),
    "ratio": ((1.0, ""),),
    "share": ((0.01, "%"),),
    "number": ((1.0, ""),),
}
_FIXED: dict[Form, int] = {"count": 0, "decibels": 1, "ratio": 3, "share": 0}
_DIGITS: dict[Form, int] = {"flops": 4}
_EXACT_DB = 999.0
"""How records write the PSNR of equal tensors."""


@dataclass(frozen=True)
class Column:
    """A heading and what its values are."""

    name: str
    form: Form = "text"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of raw values; ``caption`` is a sentence on what the table shows."""

    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    @property
    def units(self) -> list[str]:
        """The unit of each column, "" where it has none."""
        return [scale[1] for scale in self._scales]

    @property
    def head(self) -> list[str]:
        """Headings with units."""
        pairs = zip(self.columns, self.units, strict=True)
        return [f"{column.name} ({unit})" if unit else column.name for column, unit in pairs]

    @property
    def cells(self) -> list[list[str]]:
        """Every value as text, all of a column with the same unit and decimals."""
        formats = list(zip(self.columns, self._scales, strict=True))
        return [
            [_cell(value, column.form, *scale) for value, (column, scale) in zip(row, formats)]  # noqa: B905
            for row in self.rows
        ]

    @property
    def _scales(self) -> list[tuple[float, str, int]]:
        """Of each column; columns of seconds, bytes or FLOPs have one unit together."""
        by_column = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        forms: list[Form] = [column.form for column in self.columns]
        together: dict[Form, list[Value]] = {}
        for form, values in zip(forms, by_column, strict=True):
            together.setdefault(form, []).extend(values)
        return [
            scale_of(form, together[form] if len(_SCALES.get(form, ())) > 1 else values)
            for form, values in zip(forms, by_column, strict=True)
        ]


def scale_of(form: Form, values: Sequence[Value]) -> tuple[float, str, int]:
    """Factor, unit and decimals that suit the values: three digits of the middle one or more."""
    if form == "text":
        return 1.0, "", 0
    numbers = sorted(abs(v) for v in values if isinstance(v, int | float) and v)
    if not numbers:
        return 1.0, "", 0
    middle = numbers[len(numbers) // 2]
    factor, unit = next((pair for pair in _SCALES[form] if middle >= pair[0]), _SCALES[form][-1])
    digits = _DIGITS.get(form, 3) - 1
    decimals = _FIXED.get(form, min(3, max(0, digits - math.floor(math.log10(middle / factor)))))
    return factor, unit, 0 if unit == "B" else decimals


def shown(value: Value, form: Form) -> str:
    """One value with its unit, for a sentence or a plot."""
    factor, unit, decimals = scale_of(form, [value])
    text = _cell(value, form, factor, unit, decimals)
    return f"{text} {unit}" if unit and value is not None else text


def _cell(value: Value, form: Form, factor: float, unit: str, decimals: int) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, str | bool):
        return str(value)
    if form == "decibels" and value >= _EXACT_DB:
        return "equal"
    text = f"{value / factor:,.{decimals}f}"
    return "0" if value and not float(text.replace(",", "")) and not decimals else text
