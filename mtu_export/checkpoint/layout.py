"""Geometry and parts of a pipeline folder, read from its configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.spec import (
    CheckpointError,
    PlanError,
    Task,
)

LATENT_FACTOR = 8
"""Pixels a latent cell where the checkpoint has no VAE that says otherwise."""


_LARGEST = 8192


def needed(task: Task, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The components that a task's loop needs, in the order in which it needs them."""
    xl = config.get("addition_embed_type") == "text_time"
    text = ("text_encoder", "text_encoder_2") if xl else ("text_encoder",)
    encodes = any(entry.kind.endswith("image_latent") for entry in task.conditioning)
    return (
        *(text if task.prompt is None else ()),
        *(("vae_encoder",) if encodes else ()),
        "unet",
        "vae_decoder",
    )


def source_folder(component: str) -> str:
    """The folder of a checkpoint that holds a component."""
    return "vae" if component.startswith("vae_") else component


def latent_factor(folder: Path) -> int:
    """Pixels a latent cell: 2 to the number of the VAE's downsamplings."""
    path = folder / "vae" / "config.json"
    if not path.is_file():
        return LATENT_FACTOR
    blocks = checkpoint.read_json(path).get("block_out_channels")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 6:
        raise CheckpointError(f"{path}: block_out_channels must be a list")
    return 2 ** (len(blocks) - 1)


def size_step(config: Mapping[str, Any], factor: int) -> int:
    """Pixels of which height and width are multiples: one latent cell at the UNet's last level."""
    return factor * 2 ** (len(config["block_out_channels"]) - 1)


def image_size(
    config: Mapping[str, Any], factor: int, height: int | None, width: int | None
) -> tuple[int, int]:
    """Image size in pixels; latents must halve evenly at every level of the UNet."""
    native: Any = config.get("sample_size")
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise CheckpointError("unet/config.json: block_out_channels must be a list")
    sides: list[Any] = native if isinstance(native, list) and len(native) == 2 else [native, native]
    step = size_step(config, factor)
    found = []
    for name, asked, side in (("height", height, sides[0]), ("width", width, sides[1])):
        if asked is None and (not isinstance(side, int) or isinstance(side, bool)):
            raise PlanError(f"the checkpoint has no sample_size; give --{name} in pixels")
        pixels = int(asked if asked is not None else side * factor)
        if not step <= pixels <= _LARGEST or pixels % step:
            raise PlanError(
                f"--{name} must be a multiple of {step} from {step} to {_LARGEST}, got {pixels}"
            )
        found.append(pixels)
    return found[0], found[1]
