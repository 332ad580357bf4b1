"""Dense Stable Diffusion pipelines: 1.x, 2.x, SDXL, InstructPix2Pix, inpainting, distilled ones."""

from __future__ import annotations

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.spec import Family, Model

UNET_CLASS = "UNet2DConditionModel"
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)


class StableDiffusion:
    """The family of dense ``UNet2DConditionModel`` pipelines."""

    classes = (*PIPELINES, UNET_CLASS)

    def claims(self, folder: Folder) -> bool:
        """Whether index and UNet name classes of the family.

        A folder without an index is claimed too, and so is that of a UNet alone.
        """
        index = folder / "model_index.json"
        path = folder / "unet" / "config.json"
        if not path.is_file() and not index.is_file():
            path = folder / "config.json"
        if not path.is_file() or checkpoint.read_json(path).get("_class_name") != UNET_CLASS:
            return False
        if not index.is_file():
            return True
        return checkpoint.read_json(index).get("_class_name") in PIPELINES

    def open(self, folder: Folder) -> Model:
        """Read the JSON of a pipeline folder."""
        from mtu_export.models.sd.model import StableDiffusionModel

        return StableDiffusionModel(folder)


FAMILY: Family = StableDiffusion()
