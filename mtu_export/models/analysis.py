"""Measures of a checkpoint: parameters, FLOPs, expert weights.

What differs between families comes from their ``LAYOUT``, ``outline`` and ``expert_weights``.
Reads tensor headers, and of the weights only what a measure needs, memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint, models
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.spec import Cost, MissingWeights, PlanError
from mtu_export.spec.protocols import Family, Place

if TYPE_CHECKING:
    from mtu_export.graph.capture import Graph

BACKBONE = "backbone"
_STOCK = Place(".*", BACKBONE)
_DATA_ORDER = ("down", "mid", "up")
"""Beginnings of block paths, in the order in which data pass them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A UNet on disk: its config and tensor headers. ``family`` is None for a dense stock one."""

    folder: Path
    config: Mapping[str, Any]
    headers: Mapping[str, checkpoint.Header]
    family: Family | None

    def place(self, name: str) -> Place:
        """Part of the method of a tensor, and its name in a stock UNet (None: it has none)."""
        for place in self.family.LAYOUT if self.family else ():
            match = re.fullmatch(place.pattern, name)
            if match:
                stock = match.expand(place.stock) if place.stock else None
                # with stacked norms a block has the stock norm beside those of the tasks
                return replace(place, stock=None if stock in self.headers else stock)
        return replace(_STOCK, stock=name)


def read(folder: Path, *, dense: bool = False) -> Source:
    """The UNet of a checkpoint; with ``dense`` also a stock UNet or pipeline folder."""
    unet = folder / "unet"
    if dense and not unet.is_dir() and (folder / "config.json").is_file():
        unet = folder
    if dense and (unet / "config.json").is_file():
        config = checkpoint.read_json(unet / "config.json")
        if config.get("_class_name") == checkpoint.CLASS_SUFFIX:
            headers = checkpoint.headers(unet)
            return Source(folder=folder, config=config, headers=headers, family=None)
    config = checkpoint.read_config(folder)
    headers = checkpoint.headers(folder / "unet")
    family = models.load(checkpoint.family(config))
    return Source(folder=folder, config=config, headers=headers, family=family)


def family_config(source: Source) -> dict[str, Any]:
    """What a checkpoint's config says beside a stock UNet's keys and its tasks."""
    defaults = {"task_norm": "replace"}
    keys = [key for key in checkpoint.MTU_KEYS if key not in ("mtu_format", "tasks")]
    return {key: source.config.get(key, defaults.get(key)) for key in keys}


def parameters(source: Source) -> dict[str, int]:
    """Parameters by part of the method, from the headers."""
    places = source.family.LAYOUT if source.family else ()
    kinds = dict.fromkeys((BACKBONE, *(place.kind for place in places)), 0)
    for name, header in source.headers.items():
        kinds[source.place(name).kind] += math.prod(header.shape)
    return kinds


def expert_weights(source: Source) -> dict[str, list[list[float]]]:
    """w of every task by block: [T][N], from the stored routers; blocks as data pass them.

    Raises ``MissingWeights`` where the tensors on disk do not fit the config or are not finite.
    """
    assert source.family is not None
    weights = source.family.expert_weights(source.config, source.headers)
    for path, by_task in weights.items():
        if not bool(by_task.isfinite().all()):
            raise MissingWeights(f"{path}: its router or the task embedding holds NaN or Inf")
    return {path: weights[path].tolist() for path in sorted(weights, key=_data_order)}


def _data_order(path: str) -> tuple[int, list[tuple[int, str]]]:
    """Sorts blocks as data pass them; those of no stock UNet come last, by name."""
    way = path.partition("_")[0]
    rank = _DATA_ORDER.index(way) if way in _DATA_ORDER else len(_DATA_ORDER)
    return rank, models.natural_order(path)


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
        unet = source.family.outline(source.config, source.headers, channels)
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
