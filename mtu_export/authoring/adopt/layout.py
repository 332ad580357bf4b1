"""Foreign tensors arranged as those of format 1, by name and shape alone.

What is wrong is collected, not raised, so that a dry run can show how far a map goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtu_export.authoring.adopt.mapping import Join, Map, Rule
from mtu_export.checkpoint import Header

Shape = tuple[int, ...]
_DTYPES = ("F32", "F16", "BF16", "F64")
_MOST_PARTS = 512
SHOWN = 3
"""Names in one line; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One source tensor, or a part of it, on its way to one target.

    ``part`` is (axis, start, stop) after the transposition; ``whole`` says that the axis stays.
    ``shape`` and ``value`` (what the hole of a join holds) are those before the join.
    """

    source: str
    rule: Rule
    target: str
    shape: Shape
    part: tuple[int, int, int] | None = None
    whole: bool = True
    value: str | None = None

    @property
    def operations(self) -> tuple[str, ...]:
        """The rule's operations in words, in the order in which they apply."""
        rule, found = self.rule, []
        if rule.transpose is not None:
            found.append(f"transpose {list(rule.transpose)}")
        if self.part is not None:
            axis, start, stop = self.part
            found.append(
                f"axis {axis} [{start}:{stop}]" if self.whole else f"axis {axis} [{start}]"
            )
        if rule.swap_halves is not None:
            found.append(f"swap halves of axis {rule.swap_halves}")
        if rule.join is not None:
            found.append(f"{rule.join.kind} on axis {rule.join.axis} as {self.value}")
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One tensor of format 1 from its pieces; ``constant`` where it is filled instead."""

    name: str
    shape: Shape
    dtype: str
    pieces: tuple[Piece, ...] = ()
    constant: int | None = None


@dataclass(kw_only=True)
class Layout:
    """What a map makes of a source, and what is wrong with that, line by line.

    ``misfit``: source -> its rule's number and why that does not fit; ``clashes``: target -> why
    its pieces do not make one tensor.
    """

    made: dict[str, Made] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    misfit: dict[str, tuple[int, str]] = field(default_factory=dict)
    clashes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Misfit(Exception):
    """A rule does not fit the tensor that it takes."""


def listed(names: Iterable[str]) -> str:
    """The first names, quoted and cut, and how many more there are."""
    rows = list(names)
    shown = ", ".join(repr(name[:200]) for name in rows[:SHOWN])
    return shown + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def first_of(lines: Sequence[str]) -> list[str]:
    """The first of several lines of one kind, and how many more there are."""
    more = f" (and {len(lines) - 1} more like this)" if len(lines) > 1 else ""
    return [lines[0] + more] if lines else []


# ------------------------------------------------------------------------------------- arranging


def arrange(plan: Map, found: Mapping[str, Header], tasks: Sequence[str]) -> Layout:
    """Every tensor of ``found`` through its first rule; ``tasks`` in the order of the config."""
    layout = Layout()
    pieces: dict[str, list[Piece]] = {}
    used: set[int] = set()
    for name, header in found.items():
        dropped = [i for i, drop in enumerate(plan.drop) if drop.match(name) is not None]
        used.update(-1 - i for i in dropped[:1])
        if dropped:
            layout.dropped.append(name)
            continue
        for number, rule in enumerate(plan.rules):
            held = rule.pattern.match(name)
            if held is not None:
                used.add(number)
                try:
                    for piece in _pieces(plan, rule, name, held, header):
                        pieces.setdefault(piece.target, []).append(piece)
                except _Misfit as misfit:
                    layout.misfit[name] = number, str(misfit)
                break
        else:
            layout.leftover.append(name)
    for target, rows in pieces.items():
        try:
            layout.made[target] = _joined(target, rows, found, tasks)
        except _Misfit as misfit:
            layout.clashes[target] = str(misfit)
    lines: dict[int, list[str]] = {}
    for name, (number, why) in layout.misfit.items():
        line = f"rules[{number}] does not fit {name[:200]!r}: {why}"
        lines.setdefault(number, []).append(line)
    for rows in lines.values():
        layout.problems += first_of(rows)
    layout.problems += first_of([f"{name[:200]!r}: {why}" for name, why in layout.clashes.items()])
    _unused(plan, used, layout)
    return layout


def _unused(plan: Map, used: set[int], layout: Layout) -> None:
    rows = [(f"rules[{i}]", rule.pattern.text, i) for i, rule in enumerate(plan.rules)]
    rows += [(f"drop[{i}]", drop.text, -1 - i) for i, drop in enumerate(plan.drop)]
    layout.problems += [
        f"{where} takes no tensor: {text!r}" for where, text, key in rows if key not in used
    ]


def _pieces(
    plan: Map, rule: Rule, name: str, held: Mapping[str, str], header: Header
) -> list[Piece]:
    if header.dtype not in _DTYPES:
        raise _Misfit(f"dtype {header.dtype} is none of {', '.join(_DTYPES)}")
    values = {key: _translated(plan, key, text) for key, text in held.items()}
    shape = header.shape
    if rule.transpose is not None:
        if len(rule.transpose) != len(shape):
            raise _Misfit(f"transpose names {len(rule.transpose)} axes, shape is {list(shape)}")
        shape = tuple(shape[axis] for axis in rule.transpose)
    found: list[Piece] = []
    for number, part, cut in _parts(rule, shape):
        inside = dict(values)
        if rule.split is not None:
            inside[rule.split.name] = _translated(plan, rule.split.name, str(number))
        if rule.swap_halves is not None and _extent(cut, rule.swap_halves) % 2:
            raise _Misfit(f"axis {rule.swap_halves} of {list(cut)} has no halves")
        found += [
            Piece(
                source=name,
                rule=rule,
                target=target.fill(inside),
                shape=cut,
                part=part,
                whole=len(cut) == len(shape),
                value=values[rule.join.by] if rule.join is not None else None,
            )
            for target in rule.targets
        ]
    return found


def _translated(plan: Map, key: str, text: str) -> str:
    table = plan.values.get(key)
    if table is None:
        return text
    if text not in table:
        raise _Misfit(f"values.{key} has no {text[:80]!r}; it has: {', '.join(table)}")
    return table[text]


def _extent(shape: Shape, axis: int) -> int:
    if axis >= len(shape):
        raise _Misfit(f"shape {list(shape)} has no axis {axis}")
    return shape[axis]


def _parts(rule: Rule, shape: Shape) -> list[tuple[int, tuple[int, int, int] | None, Shape]]:
    """Number, place and shape of every part of a tensor of ``shape``."""
    split = rule.split
    if split is None:
        return [(0, None, shape)]
    axis, extent = split.axis, _extent(shape, split.axis)
    if split.parts is None and split.sizes is None:
        if extent > _MOST_PARTS:
            raise _Misfit(f"axis {axis} of {list(shape)} has more than {_MOST_PARTS} parts")
        rest = (*shape[:axis], *shape[axis + 1 :])
        return [(i, (axis, i, i + 1), rest) for i in range(extent)]
    if split.sizes is not None:
        sizes = split.sizes
    elif split.parts is not None and extent % split.parts == 0:
        sizes = (extent // split.parts,) * split.parts
    else:
        raise _Misfit(f"axis {axis} of {list(shape)} has no {split.parts} equal parts")
    if sum(sizes) != extent:
        raise _Misfit(f"sizes {list(sizes)} do not add up to axis {axis} of {list(shape)}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        (i, (axis, start, start + size), (*shape[:axis], size, *shape[axis + 1 :]))
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def _joined(
    target: str, pieces: list[Piece], found: Mapping[str, Header], tasks: Sequence[str]
) -> Made:
    dtypes = sorted({found[piece.source].dtype for piece in pieces})
    join = pieces[0].rule.join
    if join is None or any(piece.rule is not pieces[0].rule for piece in pieces):
        if len(pieces) > 1:
            raise _Misfit(f"made more than once: by {listed(piece.source for piece in pieces)}")
        return Made(name=target, shape=pieces[0].shape, dtype=dtypes[0], pieces=tuple(pieces))
    rows = _ordered(join, pieces, tasks)
    if len(dtypes) > 1:
        raise _Misfit(f"joined from tensors of several dtypes: {', '.join(dtypes)}")
    return Made(name=target, shape=_joined_shape(join, rows), dtype=dtypes[0], pieces=rows)


def _ordered(join: Join, pieces: list[Piece], tasks: Sequence[str]) -> tuple[Piece, ...]:
    """The pieces in the order of the join: named, by number, or that of the tasks."""
    byvalue: dict[str, Piece] = {}
    for piece in pieces:
        value = str(piece.value)
        if value in byvalue:
            both = listed([byvalue[value].source, piece.source])
            raise _Misfit(f"{join.kind} has {join.by} {value!r} twice: {both}")
        byvalue[value] = piece
    if join.order is not None:
        order = join.order
    elif all(value.isdecimal() for value in byvalue):
        order = tuple(str(i) for i in range(len(byvalue)))
    elif all(value in tasks for value in byvalue):
        order = tuple(tasks)
    else:
        raise _Misfit(
            f"{join.kind} by {join.by!r} needs an 'order': {listed(byvalue)} are neither numbers "
            "nor tasks"
        )
    missing = [value for value in order if value not in byvalue]
    extra = [value for value in byvalue if value not in order]
    if missing or extra:
        words = [f"lacks {listed(missing)}"] if missing else []
        words += [f"has {listed(extra)} too"] if extra else []
        raise _Misfit(f"{join.kind} by {join.by!r} {' and '.join(words)}")
    return tuple(byvalue[value] for value in order)


def _joined_shape(join: Join, rows: Sequence[Piece]) -> Shape:
    first, axis = rows[0].shape, join.axis
    if join.kind == "stack":
        same = all(row.shape == first for row in rows)
        if not same or axis > len(first):
            raise _Misfit(f"cannot stack on axis {axis}: {[list(row.shape) for row in rows]}")
        return (*first[:axis], len(rows), *first[axis:])
    rest = {(row.shape[:axis], row.shape[axis + 1 :]) for row in rows}
    if len(rest) > 1 or any(axis >= len(row.shape) for row in rows):
        raise _Misfit(f"cannot concat on axis {axis}: {[list(row.shape) for row in rows]}")
    return (*first[:axis], sum(row.shape[axis] for row in rows), *first[axis + 1 :])
