"""Figures of a UNet on disk: parameters and FLOPs, from its config and tensor headers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint
from mtu_export.models.pipeline.places import Place
from mtu_export.spec import Cost, Task, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from mtu_export.graph.capture import Graph

BACKBONE = "backbone"
_STOCK = Place(".*", BACKBONE)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A UNet on disk: its config, tensor headers, and the places of tensors that no stock one has.

    ``tasks`` are the rows of tensors that have one for each task; ``validate`` refuses tensors that
    do not fit the config.
    """

    config: Mapping[str, Any]
    headers: Mapping[str, checkpoint.Header]
    layout: Sequence[Place] = ()
    tasks: tuple[str, ...] = ()
    validate: Callable[[], object] = lambda: None

    def place(self, name: str) -> Place:
        """The part of the method that a tensor belongs to, and its stock name or None."""
        for place in self.layout:
            match = re.fullmatch(place.pattern, name)
            if match:
                stock = match.expand(place.stock) if place.stock else None
                # with stacked norms, a block has the stock norm as well as those of the tasks
                return replace(place, stock=None if stock in self.headers else stock)
        return replace(_STOCK, stock=name)

    def parameters(self) -> dict[str, int]:
        """Number of parameters by part of the method, from the headers."""
        kinds = dict.fromkeys((BACKBONE, *(place.kind for place in self.layout)), 0)
        for name, header in self.headers.items():
            kinds[self.place(name).kind] += math.prod(header.shape)
        return kinds

    @property
    def dtypes(self) -> list[str]:
        """The dtypes of its tensors."""
        return sorted({header.dtype for header in self.headers.values()})


def costs(
    config: Mapping[str, Any],
    tasks: Sequence[Task],
    latent: tuple[int, int],
    outline: Callable[[int], nn.Module],
) -> dict[str, Cost]:
    """Parameters and FLOPs of one pass of each task's exported UNet at batch 1; reads no weights.

    ``latent`` is height and width; ``outline`` makes the UNet of a number of input channels on the
    meta device. The whole UNet is counted once and only its first convolution per width, because
    tasks differ in nothing else. Raises ``CheckpointError``.
    """
    from mtu_export.graph.capture import Graph
    from mtu_export.models.pipeline.unet import unet_graph

    widths = {task.name: config["in_channels"] + task.channels for task in tasks}
    conv_costs: dict[int, Cost] = {}
    base, whole = 0, None
    for channels in dict.fromkeys(widths.values()):
        unet = outline(channels)
        if whole is None:
            graph = unet_graph(unet, config, channels=channels, batch=1, latent=latent)
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
    from mtu_export.models.pipeline.unet import as_checkpoint_error

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
