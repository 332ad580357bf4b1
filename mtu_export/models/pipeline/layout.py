"""Parts and geometry of a pipeline folder, read from its configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtu_export.checkpoint import Folder
from mtu_export.checkpoint.folder import read_json
from mtu_export.spec import CheckpointError, PlanError, shown

UNET = "unet"
"""The denoiser's part and folder."""
VAE_SCALE_FACTOR = 8
"""Pixels per latent cell where the checkpoint has no VAE that says otherwise."""
TINY_VAE = "AutoencoderTiny"
_TINY_LEVELS = "decoder_block_out_channels"
_MAX_PIXELS = 8192
_MAX_VAE_LEVELS = 6


def source_folder(component: str) -> str:
    """The folder of a checkpoint that holds a component: both halves of a VAE are in ``vae``."""
    return "vae" if component.startswith("vae_") else component


def tokenizer_folder(text_encoder: str) -> str:
    """The folder with the tokenizer of a text encoder."""
    return text_encoder.replace("text_encoder", "tokenizer")


def is_tiny(vae: Mapping[str, Any]) -> bool:
    """Whether a VAE's config is that of an ``AutoencoderTiny`` (TAESD)."""
    return vae.get("_class_name") == TINY_VAE or _TINY_LEVELS in vae


def vae_scale_factor(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell of a VAE with this config: 2 to the number of its downsamplings.

    Raises ``CheckpointError`` where the config's ``block_out_channels``, or those of a tiny one's
    decoder, are no list of 1 to 6.
    """
    key = _TINY_LEVELS if is_tiny(vae) else "block_out_channels"
    levels = vae.get(key, [64] * 4 if is_tiny(vae) else None)  # diffusers' default of a tiny one
    if not isinstance(levels, (list, tuple)) or not 1 <= len(levels) <= _MAX_VAE_LEVELS:
        raise CheckpointError(f"vae/config.json: {key} must be a list")
    return 2 ** (len(levels) - 1)


@dataclass(frozen=True)
class PipelineLayout:
    """Which parts a Stable Diffusion pipeline has, and their sizes.

    ``unet`` and ``vae`` are the contents of their ``config.json``; ``vae`` is None where the
    checkpoint has no VAE.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Folder, unet: Mapping[str, Any]) -> PipelineLayout:
        """The layout of a checkpoint folder, whose UNet config has been read already."""
        path = folder / "vae" / "config.json"
        return cls(unet, read_json(path) if path.is_file() else None)

    @property
    def is_sdxl(self) -> bool:
        """Whether the UNet takes a pooled text embedding and image sizes, as SDXL's does."""
        return self.unet.get("addition_embed_type") == "text_time"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The text encoders whose hidden states are joined for the UNet."""
        return ("text_encoder", "text_encoder_2") if self.is_sdxl else ("text_encoder",)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell."""
        return VAE_SCALE_FACTOR if self.vae is None else vae_scale_factor(self.vae)

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by after the VAE encoder and divided by before the decoder.

        Raises ``CheckpointError`` for what is not a number from 1e-6 to 1e6.
        """
        default = 0.13025 if self.is_sdxl else 0.18215
        vae = self.vae or {}
        factor = vae.get("scaling_factor", 1.0 if is_tiny(vae) else default)
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not is_number or not 1e-6 <= factor <= 1e6:
            raise CheckpointError(
                "vae/config.json: scaling_factor must be a positive number from 1e-6 to 1e6, "
                f"got {shown(factor)}"
            )
        return float(factor)

    @property
    def size_step(self) -> int:
        """Height and width are multiples of this many pixels: a cell of the UNet's last level."""
        levels = self.unet.get("block_out_channels")
        if not isinstance(levels, (list, tuple)) or not levels:
            raise CheckpointError("unet/config.json: block_out_channels must be a list")
        return self.vae_scale_factor * 2 ** (len(levels) - 1)

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, the UNet's ``sample_size`` where none is given.

        Raises ``PlanError`` for a side that is not a multiple of :attr:`size_step`.
        """
        step = self.size_step
        native: Any = self.unet.get("sample_size")
        sides: list[Any] = (
            native if isinstance(native, list) and len(native) == 2 else [native, native]
        )
        size = []
        for name, pixels, cells in (("height", height, sides[0]), ("width", width, sides[1])):
            if pixels is None and (not isinstance(cells, int) or isinstance(cells, bool)):
                raise PlanError(f"the checkpoint has no sample_size; give --{name} in pixels")
            side = int(pixels if pixels is not None else cells * self.vae_scale_factor)
            if not step <= side <= _MAX_PIXELS or side % step:
                raise PlanError(
                    f"--{name} must be a multiple of {step} from {step} to {_MAX_PIXELS}, "
                    f"got {side}"
                )
            size.append(side)
        return size[0], size[1]
