"""What a dense pipeline can do: its UNet's input channels decide, not its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.spec import CheckpointError, Conditioning, Guidance, Task

_UNSCALED = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
)
"""Pipelines whose image latent is not scaled, but for CosXL.

Source: diffusers, ``pipeline_stable_diffusion_instruct_pix2pix.py`` and its SDXL twin."""
_DISTILLED = ("LCMScheduler", "TCDScheduler")
"""Schedulers of models that run few steps without guidance."""
_FEW_STEPS = 4
IMG2IMG_STRENGTH = 0.8
"""The default of diffusers' ``StableDiffusionImg2ImgPipeline``."""


def of(folder: Folder, config: Mapping[str, Any], index: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a UNet, the default one first; raises ``CheckpointError`` for other channels.

    4 channels: ``t2i`` and ``img2img``; 8: ``edit``; 9: ``fill`` (mask and masked image).
    """
    latent, channels = config["out_channels"], config["in_channels"]
    is_sdxl = config.get("addition_embed_type") == "text_time"
    few = _is_distilled(folder, config)
    steps = _FEW_STEPS if few else (50 if is_sdxl else 20)
    text = Guidance(kind="none") if few else Guidance(kind="text", text=5.0 if is_sdxl else 7.5)
    image = Conditioning(kind="image_latent", channels=latent, scaled=_scaled(index))
    mask = Conditioning(kind="mask", channels=1)
    masked = Conditioning(kind="masked_image_latent", channels=latent)
    both = Guidance(kind="text_image", text=10.0, image=1.5) if is_sdxl else None
    both = both or Guidance(kind="text_image", text=7.5, image=1.5)
    if channels == latent:
        plain = Task(name="t2i", index=0, conditioning=(), guidance=text, steps=steps)
        start = Task(
            name="img2img",
            index=1,
            conditioning=(),
            guidance=text,
            steps=steps,
            strength=IMG2IMG_STRENGTH,
        )
        return (plain, start)
    if channels == 2 * latent:
        return (Task(name="edit", index=0, conditioning=(image,), guidance=both, steps=steps),)
    if channels == 2 * latent + 1:
        conditioning = (mask, masked)
        return (Task(name="fill", index=0, conditioning=conditioning, guidance=text, steps=steps),)
    raise CheckpointError(
        f"unet/config.json: in_channels {channels} with a latent of {latent}; legal: {latent} "
        f"(t2i, img2img), {2 * latent} (edit), {2 * latent + 1} (fill)"
    )


def _scaled(index: Mapping[str, Any]) -> bool:
    return index.get("_class_name") not in _UNSCALED or index.get("is_cosxl_edit") is True


def _is_distilled(folder: Folder, config: Mapping[str, Any]) -> bool:
    """Whether the model is made for few steps without guidance.

    Its UNet embeds the guidance scale, its scheduler is one of distilled models, or its timesteps
    are spaced as SD Turbo's and SDXL Turbo's are: trailing, with Euler. A zero terminal SNR, which
    models with guidance have, is trailing as well, and predicts v.
    """
    if config.get("time_cond_proj_dim") is not None:
        return True
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = checkpoint.read_json(path) if path.is_file() else {}
    kind = scheduler.get("_class_name")
    if kind in _DISTILLED:
        return True
    is_euler = kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    is_trailing = is_euler and scheduler.get("timestep_spacing") == "trailing"
    return is_trailing and scheduler.get("prediction_type", "epsilon") == "epsilon"
