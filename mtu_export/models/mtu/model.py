"""An MTU checkpoint as a model: a pipeline whose UNet is folded for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu.layout import LAYOUT
from mtu_export.models.pipeline.anatomy import Anatomy
from mtu_export.models.pipeline.model import PipelineModel
from mtu_export.models.pipeline.names import natural_order
from mtu_export.spec import LivePart, MissingWeights, Model, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

_DATA_ORDER = ("down", "mid", "up")
"""First words of block paths, in the order in which data flows through the UNet."""
_SIZES = ("num_experts", "task_embedding_dim", "router_hidden_dim")


class MTUModel(PipelineModel):
    """A checkpoint of format 1."""

    def __init__(self, folder: Folder) -> None:
        config = mtu_config.read_config(folder)
        tasks = mtu_config.tasks(config)
        default = (tasks[0].name,) if len(tasks) == 1 else ()
        super().__init__("mtu", folder, config, tasks, default)

    @property
    def config(self) -> Mapping[str, Any]:
        """The stock UNet's config, and the sizes of experts and routers."""
        stock = mtu_config.stock_config(self.unet, self.unet["in_channels"])
        return {**stock, **{key: self.unet[key] for key in _SIZES}}

    def stock_unet(self, task: Task) -> Mapping[str, Any]:
        """The stock UNet that a task is, once it is folded."""
        return mtu_config.stock_config(self.unet, self.unet["in_channels"] + task.channels)

    def load_unet(self) -> LivePart:
        """The UNet with its live router."""
        from mtu_export.models.mtu import network
        from mtu_export.models.pipeline import live

        return live.UNet(
            network.load(self.folder),
            self.latent.factor,
            lambda unet, task, latent, batch: network.graph(unet, self.unet, task, latent, batch),
            network.specialise,  # type: ignore[arg-type]
        )

    def unfolded(self) -> Model | None:
        """The same checkpoint with its router in the graph."""
        from mtu_export.models.mtu.baselines import UnfoldedModel

        return UnfoldedModel(self.folder)

    def dense(self, task: Task) -> Model | None:
        """A stock UNet of random weights in place of the experts."""
        from mtu_export.models.mtu.baselines import DenseModel

        return DenseModel(self.folder, task)

    def outline_of(self, channels: int) -> nn.Module:
        """The folded UNet of a number of input channels, on the meta device."""
        from mtu_export.models.mtu import network

        return network.outline(self.unet, checkpoint.headers(self.folder / "unet"), channels)

    def anatomy(self) -> Anatomy:
        """The UNet's tensors, and the part of the method that each belongs to."""
        return replace(
            super().anatomy(),
            layout=LAYOUT,
            tasks=tuple(task.name for task in self.tasks),
            validate=self._expert_weights,  # reads only the routers, and checks every shape
        )

    def describe(self, height: int | None, width: int | None) -> dict[str, Any]:
        """As of any pipeline, and the weights of the experts by block and task."""
        defaults = {"task_norm": "replace"}
        keys = [key for key in mtu_config.MTU_KEYS if key not in ("mtu_format", "tasks")]
        return {
            **super().describe(height, width),
            "config": {key: self.unet.get(key, defaults.get(key)) for key in keys},
            "expert weights": [
                {"layer": layer, "tasks": {task.name: by_task[task.index] for task in self.tasks}}
                for layer, by_task in self.expert_weights().items()
            ],
        }

    def expert_weights(self) -> dict[str, list[list[float]]]:
        """Expert weights w of every task, [T][N] by block in data order, from the stored routers.

        Raises ``MissingWeights`` where the tensors on disk do not fit the config or are not finite.
        """
        weights = self._expert_weights()
        for path, by_task in weights.items():
            if not bool(by_task.isfinite().all()):
                raise MissingWeights(f"{path}: its router or the task embedding holds NaN or Inf")
        return {path: weights[path].tolist() for path in sorted(weights, key=data_order)}

    def _expert_weights(self) -> dict[str, Tensor]:
        from mtu_export.models.mtu import network

        return network.expert_weights(self.unet, checkpoint.headers(self.folder / "unet"))


def data_order(path: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key of a block: data order; blocks that no stock UNet has come last, by name."""
    side = path.partition("_")[0]
    rank = _DATA_ORDER.index(side) if side in _DATA_ORDER else len(_DATA_ORDER)
    return rank, natural_order(path)
