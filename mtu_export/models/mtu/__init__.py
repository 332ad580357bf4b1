"""MTU checkpoints: a UNet whose feed-forwards are experts, mixed by a router that sees the task.

Chavhan et al., "Upcycling Text-to-Image Diffusion Models for Multi-Task Capabilities", ICML 2025.
"""

from __future__ import annotations

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.spec import Family, Model

CLASS = "MTUUNet2DConditionModel"


class MTU:
    """The family of checkpoint format 1."""

    classes = (CLASS,)

    def claims(self, folder: Folder) -> bool:
        """Whether the UNet's config names the class, or has a version of the format."""
        path = folder / "unet" / "config.json"
        if not path.is_file():
            return False
        config = checkpoint.read_json(path)
        return config.get("_class_name") == CLASS or "mtu_format" in config

    def open(self, folder: Folder) -> Model:
        """Read the JSON of a checkpoint."""
        from mtu_export.models.mtu.model import MTUModel

        return MTUModel(folder)


FAMILY: Family = MTU()
