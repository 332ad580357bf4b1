"""A dense pipeline as a model: nothing is folded, its UNet is exported as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.model import PipelineModel
from mtu_export.models.sd import tasks
from mtu_export.spec import LivePart, StockPipeline, Task

if TYPE_CHECKING:
    from torch import nn

_NOT_FOLDED = (
    "The source is a dense UNet: it has no experts, and nothing was folded. Its weights are those "
    "of the source."
)
_NO_CHECKER = "The source's safety checker is left out."
_DISTILLED_SCALE = 8.5
"""The guidance scale that diffusers' LCM pipelines use by default."""


class StableDiffusionModel(PipelineModel):
    """A pipeline folder with a dense UNet."""

    def __init__(self, folder: Folder) -> None:
        whole = (folder / "unet").is_dir()
        config = unet_config.read((folder / "unet" if whole else folder) / "config.json")
        path = folder / "model_index.json"
        index = checkpoint.read_json(path) if path.is_file() else {}
        able = tasks.of(folder, config, index)
        self.input_channels = config["in_channels"]
        notes = [_NOT_FOLDED]
        checker = index.get("safety_checker")
        if isinstance(checker, list) and any(checker):
            notes.append(_NO_CHECKER)
        latent = config["in_channels"] - able[0].channels
        super().__init__(
            "sd", folder, {**config, "in_channels": latent}, able, (able[0].name,), tuple(notes)
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The UNet's config, for the manifest."""
        return self.stock_unet(self.tasks[0])

    @property
    def has_task_graphs(self) -> bool:
        """False: text-to-image and image-to-image run the same graph."""
        return False

    def stock_unet(self, task: Task) -> Mapping[str, Any]:
        """The UNet's own config."""
        stock = {key: value for key, value in self.unet.items() if not key.startswith("_")}
        return {
            **stock,
            "in_channels": self.input_channels,
            "_class_name": unet_config.CLASS_SUFFIX,
        }

    @property
    def guidance_scale(self) -> float | None:
        """LCM's default scale, where the UNet embeds it."""
        return None if self.unet.get("time_cond_proj_dim") is None else _DISTILLED_SCALE

    def stock_pipeline(self, task: Task) -> StockPipeline | None:
        """The pipeline class; None for a UNet that takes the scale, which others feed embedded."""
        return None if self.guidance_scale is not None else super().stock_pipeline(task)

    def load_unet(self) -> LivePart:
        """The UNet, with the tensors that its config asks for."""
        from mtu_export.models.pipeline import live, unet

        return live.UNet(
            unet.load(self.folder / self.unet_folder, self.stock_unet(self.tasks[0])),
            self.latent.factor,
            lambda module, task, latent, batch: unet.unet_graph(
                module,
                self.unet,
                channels=self.input_channels,
                batch=batch,
                latent=latent,
            ),
            None,
        )

    def outline_of(self, channels: int) -> nn.Module:
        """The UNet on the meta device, whatever task it does."""
        from mtu_export.models.pipeline import unet

        return unet.outline(self.stock_unet(self.tasks[0]))
