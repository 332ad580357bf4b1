"""The deviation of one model's weights from another's, tensor by tensor.

Chavhan et al., "Upcycling Text-to-Image Diffusion Models for Multi-Task Capabilities", ICML 2025,
Fig. 2. Weights are memory-mapped and read in chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mtu_export import checkpoint
from mtu_export.models.pipeline.anatomy import BACKBONE, Anatomy
from mtu_export.models.pipeline.names import natural_order
from mtu_export.models.pipeline.places import Place
from mtu_export.spec import MissingWeights, PlanError
from mtu_export.spec.model import Deviation, LayerDeviation

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
"""(pattern, kind): the layer and kind of a stock UNet's tensor by name; the first match holds."""
_CHUNK = 2**22
"""Number of values compared at a time: 32 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Tensor names to compare; ``runs`` holds (begin, begin in the reference, count) along axis."""

    name: str
    reference: str
    layer: str
    kind: str
    axis: int = 0
    runs: tuple[tuple[int, int, int], ...] = ()


def deviation(model: Anatomy, reference: Anatomy) -> Deviation:
    """Deviation of ``model`` from ``reference`` (MTU paper, Fig. 2), tensor by tensor.

    Models of the same family compare tensors of the same name. Against a dense model, each expert
    is compared with what upcycling made it from: its value rows, gate rows and down columns, and
    the whole down bias, so that the dense bias counts once per expert. Task norms and input
    convolutions are compared with the dense ones, once per task. Raises ``PlanError`` for
    different architectures, and ``MissingWeights`` for NaN, Inf or tensors that do not fit their
    config.
    """
    for source in (model, reference):
        source.validate()
    if bool(model.layout) is bool(reference.layout):
        pairs, left_out = _pair_same_family(model, reference)
    else:
        mtu, dense = (model, reference) if model.layout else (reference, model)
        pairs, left_out = _pair_with_dense(mtu, dense)
        pairs = pairs if mtu is model else [_swapped(pair) for pair in pairs]
    sums: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        total = sums.setdefault((pair.layer, pair.kind), [0.0, 0.0, 0])
        for a, b in _chunks(model, reference, pair):
            total[0] += float((a - b).square().sum())
            total[1] += float(b.square().sum())
            total[2] += a.numel()
        if not math.isfinite(total[0] + total[1]):
            raise MissingWeights(f"tensor {pair.name!r} or {pair.reference!r} holds NaN or Inf")
    by_kind: dict[tuple[str, str], list[float]] = {}
    for (_, kind), layer_sums in sums.items():
        total = by_kind.setdefault(("", kind), [0.0, 0.0, 0])
        total[:] = [sum(terms) for terms in zip(total, layer_sums, strict=True)]
    return Deviation(layers=_ranked(sums), kinds=_ranked(by_kind), left_out=tuple(left_out))


def _ranked(sums: Mapping[tuple[str, str], Sequence[float]]) -> tuple[LayerDeviation, ...]:
    deviations = (
        LayerDeviation(
            layer=layer,
            kind=kind,
            deviation=math.sqrt(squares),
            reference=math.sqrt(reference),
            parameters=int(count),
        )
        for (layer, kind), (squares, reference, count) in sums.items()
    )
    return tuple(sorted(deviations, key=lambda layer: -layer.deviation))


def _chunks(
    model: Anatomy, reference: Anatomy, pair: _Pair
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Corresponding values of both tensors of a pair in float64, a few rows at a time."""
    a = checkpoint.tensor(model.headers, pair.name)
    b = checkpoint.tensor(reference.headers, pair.reference)
    a, b = (x.reshape(1) if x.dim() == 0 else x for x in (a, b))
    for begin, reference_begin, count in pair.runs or ((0, 0, a.shape[pair.axis]),):
        left = a.narrow(pair.axis, begin, count)
        right = b.narrow(pair.axis, reference_begin, count)
        step = max(1, _CHUNK // max(1, math.prod(left.shape[1:])))
        for start in range(0, left.shape[0], step):
            yield left[start : start + step].double(), right[start : start + step].double()


def _swapped(pair: _Pair) -> _Pair:
    runs = tuple((second, first, count) for first, second, count in pair.runs)
    return replace(pair, name=pair.reference, reference=pair.name, runs=runs)


def _layer_and_kind(name: str, place: Place) -> tuple[str, str]:
    """Layer and kind of a tensor, by its stock name or else by its part of the method."""
    for pattern, kind in _KINDS if place.stock else ():
        match = pattern.match(place.stock or "")
        if match:
            return match[1], kind
    block = re.match(rf"({_BLOCK})\.", name)
    layer = block[1] if block else name.rpartition(".")[0] or name
    return layer, "other" if place.kind == BACKBONE else place.kind


def _different(reason: str) -> PlanError:
    return PlanError(f"the two models are of different architectures: {reason}")


def _may_differ(source: Anatomy, name: str) -> bool:
    """Whether models of one architecture may differ in a tensor: ``conv_in`` and family tensors."""
    return name.startswith("conv_in.") or source.place(name).kind != BACKBONE


def _pair_same_family(
    model: Anatomy, reference: Anatomy
) -> tuple[list[_Pair], list[tuple[str, str]]]:
    """Pair the tensors of two models of one family by name; also (tensor, reason) left out."""
    pairs, left_out = [], []
    for name in {**model.headers, **reference.headers}:
        if name in model.headers and name in reference.headers:
            shapes = model.headers[name].shape, reference.headers[name].shape
            if model.place(name).by_task and shapes[0][1:] == shapes[1][1:]:
                runs, reason = _task_runs(model, reference)
                layer, kind = _layer_and_kind(name, model.place(name))
                if runs:
                    pairs.append(
                        _Pair(name=name, reference=name, layer=layer, kind=kind, runs=runs)
                    )
                if reason:
                    left_out.append((name, reason))
                continue
            if shapes[0] == shapes[1]:
                layer, kind = _layer_and_kind(name, model.place(name))
                pairs.append(_Pair(name=name, reference=name, layer=layer, kind=kind))
                continue
            reason = f"another shape: {list(shapes[0])} and {list(shapes[1])}"
        else:
            reason = "the other has none" if name in model.headers else "in the other alone"
        if not _may_differ(model, name):
            raise _different(f"{name!r} ({reason})")
        left_out.append((name, reason))
    return pairs, left_out


def _task_runs(model: Anatomy, reference: Anatomy) -> tuple[tuple[tuple[int, int, int], ...], str]:
    """Runs for the tasks that both models have, and a message on those that only one has."""
    left, right = model.tasks, reference.tasks
    runs = tuple((left.index(name), right.index(name), 1) for name in left if name in right)
    single = [name for name in (*left, *right) if (name in left) != (name in right)]
    return runs, f"rows of tasks that one alone has: {', '.join(single)}" if single else ""


def _pair_with_dense(mtu: Anatomy, dense: Anatomy) -> tuple[list[_Pair], list[tuple[str, str]]]:
    """Pair a family's tensors with the stock ones that they come from; also those left out."""
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
            raise _different(f"{stock!r} is in the dense model alone")
    for stock, members in groups.items():
        place = members[0][1]
        if stock not in dense.headers:
            raise _different(f"the dense model has no {stock!r}")
        dense_shape, axis, halves = dense.headers[stock].shape, place.axis, place.halves
        if axis is None:
            for name, _ in members:
                shape = mtu.headers[name].shape
                if shape == dense_shape:
                    layer, kind = _layer_and_kind(name, place)
                    pairs.append(_Pair(name=name, reference=stock, layer=layer, kind=kind))
                elif _may_differ(mtu, name):
                    left_out.append((name, f"another shape: {list(shape)} and {list(dense_shape)}"))
                else:
                    raise _different(f"{name!r} ({list(shape)} and {list(dense_shape)})")
            continue
        shapes = [mtu.headers[name].shape for name, _ in members]
        counts = [shape[axis] // halves for shape in shapes]
        covered = [*shapes[0][:axis], halves * sum(counts), *shapes[0][axis + 1 :]]
        if covered != list(dense_shape):
            reason = f"the experts together are {covered}, the dense layer is {list(dense_shape)}"
            left_out += [(name, reason) for name, _ in members]
            continue
        for i, (name, _) in enumerate(members):
            begin, count = sum(counts[:i]), counts[i]
            runs = tuple((h * count, h * sum(counts) + begin, count) for h in range(halves))
            layer, kind = _layer_and_kind(name, place)
            pairs.append(
                _Pair(name=name, reference=stock, layer=layer, kind=kind, axis=axis, runs=runs)
            )
    return pairs, left_out
