"""The graph of one task whose router runs: experts stay apart, e_τ is an input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mtu_export.graph import fold
from mtu_export.graph.capture import Graph
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu.experts import ActiveTask, Expert, StackedNorm, transformer_blocks
from mtu_export.models.mtu.layout import EMBEDDING
from mtu_export.models.mtu.network import MTUUNet2DConditionModel
from mtu_export.models.pipeline.unet import UNetGraph, XLUNetGraph, unet_graph
from mtu_export.spec import Specialised, Task, TensorSpec


class _Routed(UNetGraph):
    """A UNet whose feed-forwards are routed by an embedding that it takes as its last input."""

    def __init__(self, unet: nn.Module, active: ActiveTask, task: str) -> None:
        super().__init__(unet)
        self.active, self.task = active, task

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        task_embedding: Tensor,
    ) -> Tensor:
        """As :class:`UNetGraph`, with task_embedding [1, d_task] in addition."""
        with self.active.run(self.task, task_embedding):
            return super().forward(sample, timestep, encoder_hidden_states)


class _RoutedXL(XLUNetGraph):
    """:class:`_Routed` of SDXL."""

    def __init__(self, unet: nn.Module, active: ActiveTask, task: str) -> None:
        super().__init__(unet)
        self.active, self.task = active, task

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        task_embedding: Tensor,
    ) -> Tensor:
        """As :class:`XLUNetGraph`, with task_embedding [1, d_task] in addition."""
        with self.active.run(self.task, task_embedding):
            return super().forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids)


class UNet:
    """The live UNet as a part; each task's module is made once, and shares its tensors."""

    def __init__(self, module: MTUUNet2DConditionModel, factor: int) -> None:
        self.module, self.factor = module, factor
        self._separate: dict[str, nn.Module] = {}

    def graph(
        self, task: Task, size: tuple[int, int], batch: int, module: nn.Module | None = None
    ) -> Graph:
        """The graph of a task."""
        if task.name not in self._separate:
            self._separate[task.name] = separate(self.module, task)
        config: Any = self.module.config
        graph = unet_graph(
            self._separate[task.name],
            config,
            channels=config["in_channels"] + task.channels,
            batch=batch,
            latent=(size[0] // self.factor, size[1] // self.factor),
        )
        routed = _RoutedXL if isinstance(graph.module, XLUNetGraph) else _Routed
        embedding = TensorSpec(name=EMBEDDING, shape=(1, config["task_embedding_dim"]))
        module = routed(self._separate[task.name], self.module.active, task.name).eval()
        return replace(graph, module=module, inputs=(*graph.inputs, embedding))

    def specialise(self, tasks: Sequence[Task]) -> Mapping[str, Specialised] | None:
        """None: the live module is exported."""
        return None


def separate(live: MTUUNet2DConditionModel, task: Task) -> UNet2DConditionModel:
    """A stock UNet with one task's input convolution and norms and with the routed experts.

    Experts are stock feed-forwards, for the rewrites. It shares all tensors with ``live``.
    """
    config: Any = live.config
    channels = config["in_channels"] + task.channels
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(mtu_config.stock_config(config, channels))
    kept = {id(tensor): tensor for tensor in (*live.parameters(), *live.buffers())}
    kept |= {id(live.active): live.active}  # deepcopy's memo: these are not copied
    own: Any = ("task_embedding", "conv_in")
    for name, child in live.named_children():
        if name not in own:
            setattr(unet, name, copy.deepcopy(child, kept.copy()))
    unet.conv_in = live.conv_in.of(task.name)  # type: ignore[operator]
    for _, block in transformer_blocks(unet):
        norm: Any = block.norm3
        block.norm3 = norm.of(task.name)
        if isinstance(norm, StackedNorm):
            block.norm3 = nn.Sequential(norm.stock(), block.norm3)  # type: ignore[assignment]
        experts: Any = block.ff.experts
        block.ff.experts = nn.ModuleList(_feed_forward(expert) for expert in experts)
    return unet.eval()


def _feed_forward(expert: Expert) -> nn.Module:
    return fold.feed_forward(expert.proj, expert.out.weight, expert.out.bias)
