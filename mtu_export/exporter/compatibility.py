"""Whether the parts of a checkpoint fit together, by their configs and headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import pipeline_files
from mtu_export.checkpoint.layout import PipelineLayout, source_folder, tokenizer_folder
from mtu_export.spec import CheckpointError, Plan, shown

_HIDDEN_SIZE, _PROJECTION_DIM = 512, 512
"""Defaults of transformers' ``CLIPTextConfig``."""
_SIZES = 6
"""Numbers of SDXL's ``time_ids``, each embedded separately."""


def require_compatible_parts(plan: Plan, components: Sequence[str]) -> None:
    """Refuse parts that do not belong together; ``components`` are all that will be run.

    Each tokenizer must belong to its text encoder. The widths of the text encoders must add up to
    the UNet's cross attention, those of the pooled output and the embedded sizes to SDXL's
    projection, and VAE and UNet must have the same latent channels. Every part must be of a
    supported class, with exactly the tensors that its config asks for. Raises ``CheckpointError``
    and ``MissingWeights``.
    """
    layout = PipelineLayout.read(plan.checkpoint, plan.config)
    pipeline_files.refuse_refiner(plan.checkpoint)
    if "unet" in components:
        _check_text_width(plan, layout, components)
        if any(name.startswith("vae_") for name in components):
            _check_latent_channels(plan)
    for name in components:
        if name.startswith("text_encoder"):
            _check_tokenizer(plan, name)
    _check_parts(plan, components)


def _config(plan: Plan, part: str) -> dict[str, Any]:
    return checkpoint.read_json(plan.checkpoint / part / "config.json")


def _check_tokenizer(plan: Plan, encoder: str) -> None:
    from mtu_export.bundle import source_tokenizer, tokenizer

    folder = plan.checkpoint / tokenizer_folder(encoder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{plan.checkpoint} has {encoder}/ but no {folder.name}/ to go with it"
        )
    source = source_tokenizer.read(folder)
    try:
        tokenizer.matches(source, _config(plan, encoder))
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not the tokenizer of {encoder}/: {error}") from None


def _check_text_width(plan: Plan, layout: PipelineLayout, components: Sequence[str]) -> None:
    """Compare the UNet's text inputs with the widths of the text encoders that are present."""
    encoders = [name for name in layout.text_encoders if name in components]
    widths = [_config(plan, name).get("hidden_size", _HIDDEN_SIZE) for name in encoders]
    expected = plan.config.get("cross_attention_dim")
    numbers = [width for width in widths if type(width) is int]
    complete = len(encoders) == len(layout.text_encoders)
    if len(numbers) < len(widths) or (complete and sum(numbers) != expected):
        total = " + ".join(shown(width) for width in widths)
        raise CheckpointError(
            f"{' and '.join(encoders)} give {total} numbers per token; the UNet's "
            f"cross_attention_dim is {shown(expected)}"
        )
    if layout.is_sdxl and "text_encoder_2" in encoders:
        _check_pooled_width(plan)


def _check_pooled_width(plan: Plan) -> None:
    """SDXL projects the pooled text and six embedded sizes, concatenated."""
    config = _config(plan, "text_encoder_2")
    path = plan.checkpoint / "model_index.json"
    index = checkpoint.read_json(path) if path.is_file() else {}
    classes = config.get("architectures") or index.get("text_encoder_2")
    projected = isinstance(classes, list) and "CLIPTextModelWithProjection" in classes
    name = "projection_dim" if projected else "hidden_size"
    pooled = config.get(name, _PROJECTION_DIM if projected else _HIDDEN_SIZE)
    size = plan.config["addition_time_embed_dim"]
    expected = plan.config["projection_class_embeddings_input_dim"]
    if type(pooled) is not int or pooled + _SIZES * size != expected:
        raise CheckpointError(
            f"text_encoder_2 gives a pooled text of {shown(pooled)} numbers ({name}); with "
            f"{_SIZES} x {size} (addition_time_embed_dim) the UNet's "
            f"projection_class_embeddings_input_dim must be their sum, it is {expected}"
        )


def _check_latent_channels(plan: Plan) -> None:
    latent = _config(plan, "vae").get("latent_channels", 4)
    ends = [plan.config["in_channels"], plan.config["out_channels"]]
    conditioning = [
        entry.channels for task in plan.tasks for entry in task.conditioning if entry.encodes_image
    ]
    if {*ends, *conditioning} != {latent}:
        raise CheckpointError(
            f"vae/config.json: latent_channels {shown(latent)}; the UNet has {ends[0]} in and "
            f"{ends[1]} out, and its conditioning {conditioning or 'none'}"
        )


def _check_parts(plan: Plan, components: Sequence[str]) -> None:
    """Refuse a text encoder or VAE of another class, odd configs and tensors that do not fit."""
    folders = dict.fromkeys(source_folder(name) for name in components if name != "unet")
    if folders:
        from mtu_export.models import stock

        for folder in folders:
            stock.check_part(plan.checkpoint, folder)
