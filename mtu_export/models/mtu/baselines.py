"""What an MTU export is compared with: its UNet unfolded, and a dense UNet of random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.mtu.layout import EMBEDDING
from mtu_export.models.mtu.model import MTUModel
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import KeepFloat, LivePart, PartSpec, StockPipeline, Task
from mtu_export.spec.flow import Constant, Flow, Value

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

_ROUTER = KeepFloat(pattern=r".+\.ff\.router\..+", why="router")
_UNFOLDED = "The UNet is not folded: its router runs in each pass, on the task's embedding."
_DENSE = "The UNet is a dense one of this size with random weights: it shows cost, not pictures."
_SEED = 0


class UnfoldedModel(MTUModel):
    """A checkpoint of format 1 whose experts stay apart; the task's embedding is a constant.

    It is an input of the graph, so that no toolchain and no runtime folds the router.
    """

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self.notes = (_UNFOLDED, *checkpoint.notes(folder))

    @cached_property
    def _parts(self) -> tuple[PartSpec, ...]:
        return tuple(
            replace(part, keep_float=(*part.keep_float, _ROUTER)) if part.name == UNET else part
            for part in super()._parts
        )

    def flow(self, task: Task) -> Flow:
        """The flow of a task, with its embedding."""
        flow = super().flow(task)
        embedding = Value(sources=(Constant(kind="constant", name=_constant(task)),))
        calls = (
            call.model_copy(update={"inputs": {**call.inputs, EMBEDDING: embedding}})
            if call.part == UNET
            else call
            for call in flow.calls
        )
        return flow.model_copy(update={"calls": tuple(calls)})

    def constants(self, task: Task, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Those of the folded task, and e_τ."""
        headers = checkpoint.headers(self.folder / self.unet_folder)
        rows = checkpoint.tensor(headers, f"{EMBEDDING}.weight")
        embedding = rows[task.index : task.index + 1].float().numpy().copy()
        return {**super().constants(task, size), _constant(task): embedding}

    def load_unet(self) -> LivePart:
        """The UNet with its live router."""
        from mtu_export.models.mtu import network, unfolded

        return unfolded.UNet(network.load(self.folder), self.latent.factor)

    def outline(self, part: str, task: Task) -> nn.Module:
        """The UNet of a task with its router, on the meta device."""
        from mtu_export.models.mtu import network, unfolded

        headers = checkpoint.headers(self.folder / self.unet_folder)
        return unfolded.separate(network.meta_model(self.unet, headers), task)

    def stock_pipeline(self, task: Task) -> StockPipeline | None:
        """None: no stock UNet has experts."""
        return None


def _constant(task: Task) -> str:
    return f"{EMBEDDING}/{task.name}"


class DenseModel(MTUModel):
    """The stock UNet that a folded task is, with seeded random weights; the rest as in MTU."""

    def __init__(self, folder: Folder, task: Task) -> None:
        super().__init__(folder)
        self.task, self.notes = task, (_DENSE, *checkpoint.notes(folder))

    def load_unet(self) -> LivePart:
        """A stock UNet of random weights."""
        from mtu_export.models.pipeline import live, unet

        def build(module: nn.Module, task: Task, latent: tuple[int, int], batch: int) -> Any:
            config = self.stock_unet(task)
            channels = config["in_channels"]
            return unet.unet_graph(module, config, channels=channels, batch=batch, latent=latent)

        module = unet.random(self.stock_unet(self.task), _SEED)
        return live.UNet(module, self.latent.factor, build, None)

    def outline_of(self, channels: int) -> nn.Module:
        """The stock UNet on the meta device."""
        from mtu_export.models.pipeline import unet

        return unet.outline(self.stock_unet(self.task))
