"""What a checkpoint is made of, measured: parameters, FLOPs, expert weights, deviation.

Knows no family: what is a family's own comes from its ``LAYOUT``, ``outline`` and
``expert_weights``. Reads headers, and of the weights only what a measure needs, memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint, models
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.spec import Cost, MissingWeights, PlanError
from mtu_export.spec.protocols import Family, Place

if TYPE_CHECKING:
    import torch

    from mtu_export.graph.capture import Graph

BACKBONE = "backbone"
_STOCK = Place(".*", BACKBONE)
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
_BY_TASK = "task_embedding."
"""Tensors with a row a task: rows are compared by the task's name."""
_WAY = ("down", "mid", "up")
_CHUNK = 2**22
"""Values that are compared at a time: 32 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A UNet on disk: its config and tensor headers. ``family`` is null for a dense stock one."""

    folder: Path
    config: Mapping[str, Any]
    found: Mapping[str, checkpoint.Header]
    family: Family | None

    def place(self, name: str) -> Place:
        """Part of the method of a tensor, and its name in a stock UNet (null: it has none)."""
        for row in self.family.LAYOUT if self.family else ():
            match = re.fullmatch(row.pattern, name)
            if match:
                stock = match.expand(row.stock) if row.stock else None
                # with stacked norms a block has the stock norm beside those of the tasks
                stock = None if stock in self.found else stock
                return Place(row.pattern, row.kind, stock, row.axis, row.halves)
        return Place(_STOCK.pattern, BACKBONE, name)


def read(folder: Path, *, dense: bool = False) -> Source:
    """The UNet of a checkpoint; with ``dense`` also a stock UNet or pipeline folder."""
    home = folder / "unet"
    if dense and not home.is_dir() and (folder / "config.json").is_file():
        home = folder
    if dense and (home / "config.json").is_file():
        config = checkpoint.read_json(home / "config.json")
        if config.get("_class_name") == checkpoint.CLASS_SUFFIX:
            found = checkpoint.headers(home)
            return Source(folder=folder, config=config, found=found, family=None)
    config = checkpoint.read_config(folder)
    found = checkpoint.headers(folder / "unet")
    family = models.load(checkpoint.family(config))
    return Source(folder=folder, config=config, found=found, family=family)


def parameters(source: Source) -> dict[str, int]:
    """Parameters by part of the method, from the headers."""
    rows = source.family.LAYOUT if source.family else ()
    kinds = dict.fromkeys((BACKBONE, *(row.kind for row in rows)), 0)
    for name, header in source.found.items():
        kinds[source.place(name).kind] += math.prod(header.shape)
    return kinds


def expert_weights(source: Source) -> dict[str, list[list[float]]]:
    """w of every task by block: [T][N], from the stored routers; blocks as data pass them.

    Raises ``MissingWeights`` where the tensors on disk do not fit the config or are not finite.
    """
    assert source.family is not None
    rows = source.family.expert_weights(source.config, source.found)
    for path, weights in rows.items():
        if not bool(weights.isfinite().all()):
            raise MissingWeights(f"{path}: its router or the task embedding holds NaN or Inf")
    order = sorted(
        rows, key=lambda path: (_WAY.index(path.partition("_")[0]), models.natural_order(path))
    )
    return {path: rows[path].tolist() for path in order}


def image_size(
    source: Source, height: int | None, width: int | None
) -> tuple[tuple[int, int] | None, tuple[int, int], str]:
    """Image and latent sizes by the rules of an export; why there is none in the third place.

    What the user asks for is refused as an export refuses it (``PlanError``).
    """
    layout = PipelineLayout.read(source.folder, source.config)
    factor = layout.vae_scale_factor
    try:
        size = layout.image_size(height, width)
    except PlanError as error:
        if height is not None or width is not None:
            raise
        native = source.config.get("sample_size")
        reason = "give --height and --width" if native is None else str(error)
        return None, (0, 0), reason
    return size, (size[0] // factor, size[1] // factor), ""


def costs(source: Source, latent: tuple[int, int]) -> dict[str, Cost]:
    """Parameters and FLOPs of each task's folded UNet, one pass of batch 1; reads no weights.

    ``latent`` is height and width. The whole UNet is counted once: tasks differ in the width of
    its first convolution alone, which is counted for each. Raises ``CheckpointError``.
    """
    from mtu_export.graph.capture import Graph
    from mtu_export.models.unet import unet_graph
    from mtu_export.spec import TensorSpec

    assert source.family is not None
    rows = checkpoint.tasks(source.config)
    widths = {task.name: source.config["in_channels"] + task.channels for task in rows}
    first: dict[int, Cost] = {}
    base, whole = 0, None
    for channels in dict.fromkeys(widths.values()):
        unet = source.family.outline(source.config, source.found, channels)
        if whole is None:
            graph = unet_graph(unet, source.config, channels=channels, batch=1, latent=latent)
            whole, base = _cost(graph), channels
        sample = TensorSpec(name="sample", shape=(1, channels, *latent))
        conv = unet.get_submodule("conv_in")
        first[channels] = _cost(Graph(module=conv, inputs=(sample,), outputs=()))
    assert whole is not None
    return {name: _sum(whole, first[n], first[base]) for name, n in widths.items()}


def _sum(whole: Cost, more: Cost, less: Cost) -> Cost:
    """``whole + more − less``, number by number."""
    keys = ("parameters", "flops_conv_linear", "flops_total")
    return Cost(**{k: getattr(whole, k) + getattr(more, k) - getattr(less, k) for k in keys})


def _cost(graph: Graph) -> Cost:
    import torch

    from mtu_export.graph import capture
    from mtu_export.models.unet import as_checkpoint_error

    with as_checkpoint_error(), torch.device("meta"):
        return capture.cost(graph)


# ----------------------------------------------------------------------------------- deviation


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
            source.family.expert_weights(source.config, source.found)
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
    a, b = checkpoint.tensor(one.found, pair.one), checkpoint.tensor(other.found, pair.other)
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
    for name in {**one.found, **other.found}:
        if name in one.found and name in other.found:
            shapes = one.found[name].shape, other.found[name].shape
            if name.startswith(_BY_TASK) and shapes[0][1:] == shapes[1][1:]:
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
            reason = "the other has none" if name in one.found else "in the other alone"
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
    for name in sorted(mtu.found, key=models.natural_order):
        place = mtu.place(name)
        if place.stock is None:
            left_out.append((name, "a dense UNet has none"))
        else:
            groups.setdefault(place.stock, []).append((name, place))
    for stock in dense.found:
        if stock not in groups:
            raise _different(f"{stock!r} is in the dense one alone")
    for stock, members in groups.items():
        place = members[0][1]
        if stock not in dense.found:
            raise _different(f"the dense one has no {stock!r}")
        have, axis, halves = dense.found[stock].shape, place.axis, place.halves
        if axis is None:
            for name, _ in members:
                shape = mtu.found[name].shape
                if shape == have:
                    layer, kind = _row_of(name, place)
                    pairs.append(_Pair(one=name, other=stock, layer=layer, kind=kind))
                elif _may_differ(mtu, name):
                    left_out.append((name, f"another shape: {list(shape)} and {list(have)}"))
                else:
                    raise _different(f"{name!r} ({list(shape)} and {list(have)})")
            continue
        shapes = [mtu.found[name].shape for name, _ in members]
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


def short(layer: str) -> str:
    """A layer's path without the words that all paths share: ``down.1.attn.0.block.0``."""
    for long, brief in (
        ("_blocks", ""),
        ("mid_block", "mid"),
        ("attentions", "attn"),
        ("transformer", "block"),
        ("resnets", "resnet"),
    ):
        layer = layer.replace(long, brief)
    return layer
