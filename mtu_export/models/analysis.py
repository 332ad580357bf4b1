"""Figures of a checkpoint: parameters, FLOPs and expert weights.

What differs between families comes from their ``LAYOUT``, ``outline`` and ``expert_weights``.
Reads tensor headers, and memory-maps only the weights that a figure needs.
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
"""First words of block paths, in the order in which data flows through the UNet."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A UNet on disk: its config and tensor headers. ``family`` is None for a stock UNet."""

    folder: Path
    config: Mapping[str, Any]
    headers: Mapping[str, checkpoint.Header]
    family: Family | None

    def place(self, name: str) -> Place:
        """The part of the method that a tensor belongs to, and its stock name or None."""
        for place in self.family.LAYOUT if self.family else ():
            match = re.fullmatch(place.pattern, name)
            if match:
                stock = match.expand(place.stock) if place.stock else None
                # with stacked norms, a block has the stock norm as well as those of the tasks
                return replace(place, stock=None if stock in self.headers else stock)
        return replace(_STOCK, stock=name)


def read(folder: Path, *, dense: bool = False) -> Source:
    """The UNet of a checkpoint; ``dense`` also allows a stock UNet or pipeline folder."""
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
    """The config keys that a family adds to a stock UNet's, without the tasks."""
    defaults = {"task_norm": "replace"}
    keys = [key for key in checkpoint.MTU_KEYS if key not in ("mtu_format", "tasks")]
    return {key: source.config.get(key, defaults.get(key)) for key in keys}


def parameters(source: Source) -> dict[str, int]:
    """Number of parameters by part of the method, from the headers."""
    places = source.family.LAYOUT if source.family else ()
    kinds = dict.fromkeys((BACKBONE, *(place.kind for place in places)), 0)
    for name, header in source.headers.items():
        kinds[source.place(name).kind] += math.prod(header.shape)
    return kinds


def expert_weights(source: Source) -> dict[str, list[list[float]]]:
    """Expert weights w of every task, [T][N] by block in data order, from the stored routers.

    Raises ``MissingWeights`` where the tensors on disk do not fit the config or are not finite.
    """
    assert source.family is not None
    weights = source.family.expert_weights(source.config, source.headers)
    for path, by_task in weights.items():
        if not bool(by_task.isfinite().all()):
            raise MissingWeights(f"{path}: its router or the task embedding holds NaN or Inf")
    return {path: weights[path].tolist() for path in sorted(weights, key=data_order)}


def data_order(path: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key of a block: data order; blocks that no stock UNet has come last, by name."""
    side = path.partition("_")[0]
    rank = _DATA_ORDER.index(side) if side in _DATA_ORDER else len(_DATA_ORDER)
    return rank, models.natural_order(path)


def image_size(
    source: Source, height: int | None, width: int | None
) -> tuple[tuple[int, int] | None, tuple[int, int], str]:
    """Image size, latent size and "" by the rules of an export; else None, (0, 0) and the reason.

    A size that the user asked for is refused as in an export, with ``PlanError``.
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
    """Parameters and FLOPs of one pass of each task's folded UNet at batch 1; reads no weights.

    ``latent`` is height and width. The whole UNet is counted once and only its first convolution
    per width, because tasks differ in nothing else. Raises ``CheckpointError``.
    """
    from mtu_export.graph.capture import Graph
    from mtu_export.models.unet import unet_graph
    from mtu_export.spec import TensorSpec

    assert source.family is not None
    in_channels = source.config["in_channels"]
    tasks = checkpoint.tasks(source.config)
    widths = {task.name: in_channels + task.channels for task in tasks}
    conv_costs: dict[int, Cost] = {}
    base, whole = 0, None
    for channels in dict.fromkeys(widths.values()):
        unet = source.family.outline(source.config, source.headers, channels)
        if whole is None:
            graph = unet_graph(unet, source.config, channels=channels, batch=1, latent=latent)
            whole, base = _cost(graph), channels
        sample = TensorSpec(name="sample", shape=(1, channels, *latent))
        conv = unet.get_submodule("conv_in")
        conv_costs[channels] = _cost(Graph(module=conv, inputs=(sample,), outputs=()))
    assert whole is not None
    return {name: _exchange(whole, conv_costs[n], conv_costs[base]) for name, n in widths.items()}


def _exchange(whole: Cost, added: Cost, removed: Cost) -> Cost:
    """``whole + added − removed``, field by field."""
    keys = ("parameters", "flops_conv_linear", "flops_total")
    return Cost(**{k: getattr(whole, k) + getattr(added, k) - getattr(removed, k) for k in keys})


def _cost(graph: Graph) -> Cost:
    import torch

    from mtu_export.graph import capture
    from mtu_export.models.unet import as_checkpoint_error

    with as_checkpoint_error(), torch.device("meta"):
        return capture.cost(graph)


def short(layer: str) -> str:
    """A layer's path with diffusers' words abbreviated: ``down.1.attn.0.block.0``."""
    for long, brief in (
        ("_blocks", ""),
        ("mid_block", "mid"),
        ("attentions", "attn"),
        ("transformer", "block"),
        ("resnets", "resnet"),
    ):
        layer = layer.replace(long, brief)
    return layer
