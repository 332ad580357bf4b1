"""Whether the parts of a checkpoint fit together, by their configs and headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline.layout import PipelineLayout, source_folder
from mtu_export.spec import CheckpointError, Task, shown

_HIDDEN_SIZE, _PROJECTION_DIM = 512, 512
"""Defaults of transformers' ``CLIPTextConfig``."""
_SIZES = 6
"""Numbers of SDXL's ``time_ids``, each embedded separately."""


def require_compatible_parts(
    folder: Folder,
    config: Mapping[str, Any],
    layout: PipelineLayout,
    tasks: Sequence[Task],
    parts: Collection[str],
) -> None:
    """Refuse parts that do not belong together; ``parts`` are all that will be run.

    The widths of the text encoders must add up to the UNet's cross attention, those of the pooled
    output and the embedded sizes to SDXL's projection, and VAE and UNet must have the same latent
    channels. Every part must be of a supported class, with exactly the tensors that its config asks
    for. ``config`` is the UNet's. Raises ``CheckpointError`` and ``MissingWeights``.
    """
    _Parts(folder, config, layout, tasks).check(parts)


@dataclass(frozen=True)
class _Parts:
    folder: Folder
    unet: Mapping[str, Any]
    layout: PipelineLayout
    tasks: Sequence[Task]

    def check(self, parts: Collection[str]) -> None:
        if "unet" in parts:
            _check_text_width(self, self.layout, parts)
            if any(name.startswith("vae_") for name in parts):
                _check_latent_channels(self)
        _check_parts(self, parts)


def _config(parts: _Parts, name: str) -> dict[str, Any]:
    return checkpoint.read_json(parts.folder / name / "config.json")


def _check_text_width(parts: _Parts, layout: PipelineLayout, names: Collection[str]) -> None:
    """Compare the UNet's text inputs with the widths of the text encoders that are present."""
    encoders = [name for name in layout.text_encoders if name in names]
    widths = [_config(parts, name).get("hidden_size", _HIDDEN_SIZE) for name in encoders]
    expected = parts.unet.get("cross_attention_dim")
    numbers = [width for width in widths if type(width) is int]
    complete = len(encoders) == len(layout.text_encoders)
    if len(numbers) < len(widths) or (complete and sum(numbers) != expected):
        total = " + ".join(shown(width) for width in widths)
        raise CheckpointError(
            f"{' and '.join(encoders)} give {total} numbers per token; the UNet's "
            f"cross_attention_dim is {shown(expected)}"
        )
    if layout.is_sdxl and "text_encoder_2" in encoders:
        _check_pooled_width(parts)


def _check_pooled_width(parts: _Parts) -> None:
    """SDXL projects the pooled text and six embedded sizes, concatenated."""
    config = _config(parts, "text_encoder_2")
    path = parts.folder / "model_index.json"
    index = checkpoint.read_json(path) if path.is_file() else {}
    classes = config.get("architectures") or index.get("text_encoder_2")
    projected = isinstance(classes, list) and "CLIPTextModelWithProjection" in classes
    name = "projection_dim" if projected else "hidden_size"
    pooled = config.get(name, _PROJECTION_DIM if projected else _HIDDEN_SIZE)
    size = parts.unet["addition_time_embed_dim"]
    expected = parts.unet["projection_class_embeddings_input_dim"]
    if type(pooled) is not int or pooled + _SIZES * size != expected:
        raise CheckpointError(
            f"text_encoder_2 gives a pooled text of {shown(pooled)} numbers ({name}); with "
            f"{_SIZES} x {size} (addition_time_embed_dim) the UNet's "
            f"projection_class_embeddings_input_dim must be their sum, it is {expected}"
        )


def _check_latent_channels(parts: _Parts) -> None:
    latent = _config(parts, "vae").get("latent_channels", 4)
    ends = [parts.unet["in_channels"], parts.unet["out_channels"]]
    conditioning = [
        entry.channels for task in parts.tasks for entry in task.conditioning if entry.encodes_image
    ]
    if {*ends, *conditioning} != {latent}:
        raise CheckpointError(
            f"vae/config.json: latent_channels {shown(latent)}; the UNet has {ends[0]} in and "
            f"{ends[1]} out, and its conditioning {conditioning or 'none'}"
        )


def _check_parts(parts: _Parts, names: Collection[str]) -> None:
    """Refuse a text encoder or VAE of another class, odd configs and tensors that do not fit."""
    folders = dict.fromkeys(source_folder(name) for name in names if name != "unet")
    if folders:
        from mtu_export.models.pipeline import stock

        for folder in folders:
            stock.check_part(parts.folder, folder)
