"""How far one model is from another, tensor by tensor.

Chavhan et al., "Upcycling Text-to-Image Diffusion Models for Multi-Task Capabilities", ICML 2025,
Fig. 2. Weights are memory-mapped and read in chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtu_export import checkpoint
from mtu_export.models import natural_order
from mtu_export.models.analysis import BACKBONE, Source
from mtu_export.spec import MissingWeights, PlanError
from mtu_export.spec.protocols import Place

if TYPE_CHECKING:
    import torch

_BLOCK = r".+\.transformer_blocks\.\d+"
_KINDS = tuple(
    (re.compile(rf"({layer})\.{rest}"), kind)
    for layer, rest, kind in (
        (_BLOCK, r"ff\.", "ffn"),
        (_BLOCK, r"attn1\.", "self attention"),
        (_BLOCK, r"attn2\.", "cross attention"),
        (_BLOCK, r"norm\d\.", "norm"),
        (r".+\.attentions\.\d+", "", "projection in/out"),
        (r".+\.resnets\.\d+", "", "resnet"),
        (r".+\.(?:down|up)samplers\.\d+", "", "down/upsampling"),
        (r"conv_in|conv_norm_out|conv_out", "", "convolution in/out"),
        (r"time_embedding|add_embedding", "", "time embedding"),
    )
)
"""Layer and kind of a stock UNet's tensor, by its name; the first row that fits holds."""
_CHUNK = 2**22
"""Values that are compared at a time: 32 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """‖θ_f − θ_p‖ and ‖θ_p‖ (Frobenius, float64) over the tensors of one layer and kind."""

    layer: str
    kind: str
    deviation: float
    reference: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far one model is from another: rows and sums by kind, the greatest first.

    ``left_out`` names every tensor that was not compared, with the reason.
    """

    rows: Sequence[Row]
    kinds: Sequence[Row]
    left_out: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Values of ``one`` against their equals of ``other``: (begin, begin there, count) on axis."""

    one: str
    other: str
    layer: str
    kind: str
    axis: int = 0
    runs: tuple[tuple[int, int, int], ...] = ()


def deviation(one: Source, other: Source) -> Deviation:
    """Deviation of ``one`` from ``other`` (MTU paper, Fig. 2), tensor by tensor.

    Models of one layout compare tensors of the same name. Experts against a dense model stand
    where upcycling takes them from: expert i against its value rows, gate rows and down columns,
    and its down bias against the whole dense one, so that the dense bias counts once an expert.
    Task norms and input convolutions stand against the dense ones, once a task. Raises
    ``PlanError`` for two different architectures and ``MissingWeights`` for NaN or Inf, or where
    tensors do not fit their config.
    """
    for source in (one, other):
        if source.family is not None:  # reads the routers alone, and checks every shape
            source.family.expert_weights(source.config, source.headers)
    if one.family is other.family:
        pairs, left_out = _same(one, other)
    elif one.family is None or other.family is None:
        mtu, dense = (one, other) if other.family is None else (other, one)
        pairs, left_out = _against_dense(mtu, dense)
        pairs = pairs if mtu is one else [_turned(pair) for pair in pairs]
    else:
        raise _different("their families have no tensors in common")
    sums: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        total = sums.setdefault((pair.layer, pair.kind), [0.0, 0.0, 0])
        for a, b in _pieces(one, other, pair):
            total[0] += float((a - b).square().sum())
            total[1] += float(b.square().sum())
            total[2] += a.numel()
        if not math.isfinite(total[0] + total[1]):
            raise MissingWeights(f"tensor {pair.one!r} or {pair.other!r} holds NaN or Inf")
    by_kind: dict[tuple[str, str], list[float]] = {}
    for (_, kind), numbers in sums.items():
        total = by_kind.setdefault(("", kind), [0.0, 0.0, 0])
        total[:] = [sum(row) for row in zip(total, numbers, strict=True)]
    return Deviation(rows=_ranked(sums), kinds=_ranked(by_kind), left_out=tuple(left_out))


def _ranked(sums: Mapping[tuple[str, str], Sequence[float]]) -> tuple[Row, ...]:
    rows = (
        Row(
            layer=layer,
            kind=kind,
            deviation=math.sqrt(squares),
            reference=math.sqrt(reference),
            parameters=int(count),
        )
        for (layer, kind), (squares, reference, count) in sums.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.deviation))


def _pieces(one: Source, other: Source, pair: _Pair) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Equal parts of both tensors of a pair in float64, a chunk of rows at a time."""
    a, b = checkpoint.tensor(one.headers, pair.one), checkpoint.tensor(other.headers, pair.other)
    a, b = (x.reshape(1) if x.dim() == 0 else x for x in (a, b))
    for begin, there, count in pair.runs or ((0, 0, a.shape[pair.axis]),):
        left, right = a.narrow(pair.axis, begin, count), b.narrow(pair.axis, there, count)
        step = max(1, _CHUNK // max(1, math.prod(left.shape[1:])))
        for row in range(0, left.shape[0], step):
            yield left[row : row + step].double(), right[row : row + step].double()


def _turned(pair: _Pair) -> _Pair:
    runs = tuple((there, begin, count) for begin, there, count in pair.runs)
    return _Pair(
        one=pair.other, other=pair.one, layer=pair.layer, kind=pair.kind, axis=pair.axis, runs=runs
    )


def _row_of(name: str, place: Place) -> tuple[str, str]:
    """Layer and kind of a tensor: by its name in a stock UNet, else by its part of the method."""
    for pattern, kind in _KINDS if place.stock else ():
        match = pattern.match(place.stock or "")
        if match:
            return match[1], kind
    block = re.match(rf"({_BLOCK})\.", name)
    layer = block[1] if block else name.rpartition(".")[0] or name
    return layer, "other" if place.kind == BACKBONE else place.kind


def _different(reason: str) -> PlanError:
    return PlanError(f"the two models are of different architectures: {reason}")


def _may_differ(source: Source, name: str) -> bool:
    """Whether models of one architecture may differ in a tensor: the input's width, own parts."""
    return name.startswith("conv_in.") or source.place(name).kind != BACKBONE


def _same(one: Source, other: Source) -> tuple[list[_Pair], list[tuple[str, str]]]:
    """Pairs of one layout: tensors of the same name and shape."""
    pairs, left_out = [], []
    for name in {**one.headers, **other.headers}:
        if name in one.headers and name in other.headers:
            shapes = one.headers[name].shape, other.headers[name].shape
            if one.place(name).by_task and shapes[0][1:] == shapes[1][1:]:
                runs, reason = _task_rows(one, other)
                layer, kind = _row_of(name, one.place(name))
                if runs:
                    pairs.append(_Pair(one=name, other=name, layer=layer, kind=kind, runs=runs))
                if reason:
                    left_out.append((name, reason))
                continue
            if shapes[0] == shapes[1]:
                layer, kind = _row_of(name, one.place(name))
                pairs.append(_Pair(one=name, other=name, layer=layer, kind=kind))
                continue
            reason = f"another shape: {list(shapes[0])} and {list(shapes[1])}"
        else:
            reason = "the other has none" if name in one.headers else "in the other alone"
        if not _may_differ(one, name):
            raise _different(f"{name!r} ({reason})")
        left_out.append((name, reason))
    return pairs, left_out


def _task_rows(one: Source, other: Source) -> tuple[tuple[tuple[int, int, int], ...], str]:
    """Rows of the tasks that both have, by name, and which tasks only one has."""
    mine, theirs = (
        [task.name for task in checkpoint.tasks(source.config)] for source in (one, other)
    )
    runs = tuple((mine.index(n), theirs.index(n), 1) for n in mine if n in theirs)
    single = [name for name in (*mine, *theirs) if (name in mine) != (name in theirs)]
    return runs, f"rows of tasks that one alone has: {', '.join(single)}" if single else ""


def _against_dense(mtu: Source, dense: Source) -> tuple[list[_Pair], list[tuple[str, str]]]:
    """Pairs of a family's tensors and those of a stock UNet that they stand for."""
    pairs, left_out = [], []
    groups: dict[str, list[tuple[str, Place]]] = {}
    for name in sorted(mtu.headers, key=natural_order):
        place = mtu.place(name)
        if place.stock is None:
            left_out.append((name, "a dense UNet has none"))
        else:
            groups.setdefault(place.stock, []).append((name, place))
    for stock in dense.headers:
        if stock not in groups:
            raise _different(f"{stock!r} is in the dense one alone")
    for stock, members in groups.items():
        place = members[0][1]
        if stock not in dense.headers:
            raise _different(f"the dense one has no {stock!r}")
        have, axis, halves = dense.headers[stock].shape, place.axis, place.halves
        if axis is None:
            for name, _ in members:
                shape = mtu.headers[name].shape
                if shape == have:
                    layer, kind = _row_of(name, place)
                    pairs.append(_Pair(one=name, other=stock, layer=layer, kind=kind))
                elif _may_differ(mtu, name):
                    left_out.append((name, f"another shape: {list(shape)} and {list(have)}"))
                else:
                    raise _different(f"{name!r} ({list(shape)} and {list(have)})")
            continue
        shapes = [mtu.headers[name].shape for name, _ in members]
        counts = [shape[axis] // halves for shape in shapes]
        covered = [*shapes[0][:axis], halves * sum(counts), *shapes[0][axis + 1 :]]
        if covered != list(have):
            reason = f"experts together are no dense width: {covered} and {list(have)}"
            left_out += [(name, reason) for name, _ in members]
            continue
        for i, (name, _) in enumerate(members):
            begin, own = sum(counts[:i]), counts[i]
            runs = tuple((h * own, h * sum(counts) + begin, own) for h in range(halves))
            layer, kind = _row_of(name, place)
            pairs.append(_Pair(one=name, other=stock, layer=layer, kind=kind, axis=axis, runs=runs))
    return pairs, left_out
