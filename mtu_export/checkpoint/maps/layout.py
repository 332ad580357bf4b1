"""Arrange source tensors as a map says, by name and shape alone.

Problems are collected, not raised, so that a dry run shows how far a map goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtu_export.checkpoint.maps.mapping import Join, Map, Rule
from mtu_export.checkpoint.weights import Header

Shape = tuple[int, ...]
_DTYPES = ("F32", "F16", "BF16", "F64")
_MOST_PARTS = 512
SHOWN = 3
"""Names in one line; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One source tensor, or a slice of it, that goes into one target tensor.

    ``part`` is (axis, start, stop) after squeeze and transpose; ``whole`` says that the axis stays.
    ``shape`` is that before the join, ``value`` what the join's hole holds.
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
        """The rule's operations as text, in the order in which they apply."""
        rule, operations = self.rule, []
        if rule.squeeze is not None:
            operations.append(f"squeeze {list(rule.squeeze)}")
        if rule.transpose is not None:
            operations.append(f"transpose {list(rule.transpose)}")
        if self.part is not None:
            axis, start, stop = self.part
            operations.append(
                f"axis {axis} [{start}:{stop}]" if self.whole else f"axis {axis} [{start}]"
            )
        if rule.swap_halves is not None:
            operations.append(f"swap halves of axis {rule.swap_halves}")
        if rule.join is not None:
            operations.append(f"{rule.join.kind} on axis {rule.join.axis} as {self.value}")
        return tuple(operations)


@dataclass(frozen=True, kw_only=True)
class TargetTensor:
    """One tensor of the target, made of pieces, or filled with ``constant``."""

    name: str
    shape: Shape
    dtype: str
    pieces: tuple[Piece, ...] = ()
    constant: int | None = None


@dataclass(kw_only=True)
class Layout:
    """The tensors that a map makes of a source, and the problems, one line each.

    ``misfit``: source -> number of its rule, and why the rule does not fit. ``clashes``: target ->
    why its pieces do not make one tensor.
    """

    tensors: dict[str, TargetTensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    misfit: dict[str, tuple[int, str]] = field(default_factory=dict)
    clashes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Misfit(Exception):
    """A rule does not fit the tensor that its pattern matches."""


def listed(names: Iterable[str]) -> str:
    """The first names, quoted and shortened, and how many more there are."""
    every = list(names)
    shown = ", ".join(repr(name[:200]) for name in every[:SHOWN])
    return shown + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def first_of(lines: Sequence[str]) -> list[str]:
    """The first of several lines of one kind, and how many more there are."""
    more = f" (and {len(lines) - 1} more like this)" if len(lines) > 1 else ""
    return [lines[0] + more] if lines else []


# ------------------------------------------------------------------------------------- arranging


def arrange(tensor_map: Map, headers: Mapping[str, Header], tasks: Sequence[str]) -> Layout:
    """Apply to every tensor the first rule that takes it; ``tasks`` are in the config's order."""
    layout = Layout()
    pieces: dict[str, list[Piece]] = {}
    used: set[int] = set()
    for name, header in headers.items():
        dropped = [i for i, drop in enumerate(tensor_map.drop) if drop.match(name) is not None]
        used.update(-1 - i for i in dropped[:1])
        if dropped:
            layout.dropped.append(name)
            continue
        for number, rule in enumerate(tensor_map.rules):
            held = rule.pattern.match(name)
            if held is not None:
                used.add(number)
                try:
                    for piece in _pieces(tensor_map, rule, name, held, header):
                        pieces.setdefault(piece.target, []).append(piece)
                except _Misfit as misfit:
                    layout.misfit[name] = number, str(misfit)
                break
        else:
            layout.leftover.append(name)
    for target, parts in pieces.items():
        try:
            layout.tensors[target] = _joined(target, parts, headers, tasks)
        except _Misfit as misfit:
            layout.clashes[target] = str(misfit)
    lines: dict[int, list[str]] = {}
    for name, (number, why) in layout.misfit.items():
        line = f"rules[{number}] does not fit {name[:200]!r}: {why}"
        lines.setdefault(number, []).append(line)
    for similar in lines.values():
        layout.problems += first_of(similar)
    layout.problems += first_of([f"{name[:200]!r}: {why}" for name, why in layout.clashes.items()])
    _unused(tensor_map, used, layout)
    return layout


def _unused(tensor_map: Map, used: set[int], layout: Layout) -> None:
    patterns = [(f"rules[{i}]", rule.pattern.text, i) for i, rule in enumerate(tensor_map.rules)]
    patterns += [(f"drop[{i}]", drop.text, -1 - i) for i, drop in enumerate(tensor_map.drop)]
    layout.problems += [
        f"{where} takes no tensor: {text!r}" for where, text, key in patterns if key not in used
    ]


def _pieces(
    tensor_map: Map, rule: Rule, name: str, held: Mapping[str, str], header: Header
) -> list[Piece]:
    if header.dtype not in _DTYPES:
        raise _Misfit(f"dtype {header.dtype} is not one of {', '.join(_DTYPES)}")
    values = {key: _translated(tensor_map, key, text) for key, text in held.items()}
    shape = _squeezed(rule, header.shape)
    if rule.transpose is not None:
        if len(rule.transpose) != len(shape):
            raise _Misfit(f"transpose names {len(rule.transpose)} axes, shape is {list(shape)}")
        shape = tuple(shape[axis] for axis in rule.transpose)
    pieces: list[Piece] = []
    for number, part, cut in _parts(rule, shape):
        inside = dict(values)
        if rule.split is not None:
            inside[rule.split.name] = _translated(tensor_map, rule.split.name, str(number))
        if rule.swap_halves is not None and _extent(cut, rule.swap_halves) % 2:
            raise _Misfit(f"axis {rule.swap_halves} of {list(cut)} has no halves")
        pieces += [
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
    return pieces


def _translated(tensor_map: Map, key: str, text: str) -> str:
    table = tensor_map.values.get(key)
    if table is None:
        return text
    if text not in table:
        raise _Misfit(f"values.{key} has no {text[:80]!r}; it has: {', '.join(table)}")
    return table[text]


def _squeezed(rule: Rule, shape: Shape) -> Shape:
    axes = rule.squeeze or ()
    for axis in axes:
        if _extent(shape, axis) != 1:
            raise _Misfit(f"axis {axis} of {list(shape)} is not of extent 1")
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


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
    target: str, pieces: list[Piece], headers: Mapping[str, Header], tasks: Sequence[str]
) -> TargetTensor:
    dtypes = sorted({headers[piece.source].dtype for piece in pieces})
    join = pieces[0].rule.join
    if join is None or any(piece.rule is not pieces[0].rule for piece in pieces):
        if len(pieces) > 1:
            raise _Misfit(f"made more than once: by {listed(piece.source for piece in pieces)}")
        only = pieces[0]
        return TargetTensor(name=target, shape=only.shape, dtype=dtypes[0], pieces=(only,))
    ordered = _ordered(join, pieces, tasks)
    if len(dtypes) > 1:
        raise _Misfit(f"joined from tensors of several dtypes: {', '.join(dtypes)}")
    shape = _joined_shape(join, ordered)
    return TargetTensor(name=target, shape=shape, dtype=dtypes[0], pieces=ordered)


def _ordered(join: Join, pieces: list[Piece], tasks: Sequence[str]) -> tuple[Piece, ...]:
    """The pieces in the order of the join: named, by number, or that of the tasks."""
    by_value: dict[str, Piece] = {}
    for piece in pieces:
        value = str(piece.value)
        if value in by_value:
            both = listed([by_value[value].source, piece.source])
            raise _Misfit(f"{join.kind} has {join.by} {value!r} twice: {both}")
        by_value[value] = piece
    if join.order is not None:
        order = join.order
    elif all(value.isdecimal() for value in by_value):
        order = tuple(str(i) for i in range(len(by_value)))
    elif all(value in tasks for value in by_value):
        order = tuple(tasks)
    else:
        raise _Misfit(
            f"{join.kind} by {join.by!r} needs an 'order': {listed(by_value)} are neither numbers "
            "nor tasks"
        )
    missing = [value for value in order if value not in by_value]
    extra = [value for value in by_value if value not in order]
    if missing or extra:
        reasons = [f"lacks {listed(missing)}"] if missing else []
        reasons += [f"has {listed(extra)} too"] if extra else []
        raise _Misfit(f"{join.kind} by {join.by!r} {' and '.join(reasons)}")
    return tuple(by_value[value] for value in order)


def _joined_shape(join: Join, pieces: Sequence[Piece]) -> Shape:
    first, axis = pieces[0].shape, join.axis
    if join.kind == "stack":
        same = all(piece.shape == first for piece in pieces)
        if not same or axis > len(first):
            raise _Misfit(f"cannot stack on axis {axis}: {[list(piece.shape) for piece in pieces]}")
        return (*first[:axis], len(pieces), *first[axis:])
    rest = {(piece.shape[:axis], piece.shape[axis + 1 :]) for piece in pieces}
    if len(rest) > 1 or any(axis >= len(piece.shape) for piece in pieces):
        raise _Misfit(f"cannot concat on axis {axis}: {[list(piece.shape) for piece in pieces]}")
    return (*first[:axis], sum(piece.shape[axis] for piece in pieces), *first[axis + 1 :])
