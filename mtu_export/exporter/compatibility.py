"""Where the parts of a checkpoint meet, checked on their configs before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint.layout import PipelineLayout, tokenizer_folder
from mtu_export.spec import CheckpointError, Plan, shown


def check(plan: Plan, components: Sequence[str]) -> None:
    """Refuse parts that do not belong together; ``components`` are all that will be run.

    A tokenizer must be that of its text encoder, the text encoders together as wide as the UNet's
    cross attention, and the VAE's latents as wide as the UNet's. Raises ``CheckpointError``.
    """
    encoders = [name for name in components if name.startswith("text_encoder")]
    for name in encoders:
        _check_tokenizer(plan, name)
    if "unet" in components:
        _check_width(plan, encoders)
        if any(name.startswith("vae_") for name in components):
            _check_latent(plan)
    _ = PipelineLayout.read(plan.checkpoint, plan.config).scaling_factor  # refuses a wrong one


def _config(plan: Plan, part: str) -> dict[str, Any]:
    return checkpoint.read_json(plan.checkpoint / part / "config.json")


def _check_tokenizer(plan: Plan, encoder: str) -> None:
    from mtu_export.bundle import source_tokenizer, tokenizer

    home = plan.checkpoint / tokenizer_folder(encoder)
    if not home.is_dir():
        raise CheckpointError(f"{plan.checkpoint} has {encoder}/ but no {home.name}/ to go with it")
    found = source_tokenizer.read(home)
    try:
        tokenizer.matches(found, _config(plan, encoder))
    except CheckpointError as error:
        raise CheckpointError(f"{home} is not the tokenizer of {encoder}/: {error}") from None


def _check_width(plan: Plan, encoders: Sequence[str]) -> None:
    """Words of all encoders are joined; one that is not there cannot be asked."""
    if len(encoders) != len(PipelineLayout(plan.config).text_encoders):
        return
    widths = [_config(plan, name).get("hidden_size", 512) for name in encoders]
    wanted = plan.config.get("cross_attention_dim")
    if not all(type(width) is int for width in widths) or sum(widths) != wanted:
        said = " + ".join(shown(width) for width in widths)
        raise CheckpointError(
            f"{' and '.join(encoders)} make {said} numbers a token; the UNet's "
            f"cross_attention_dim is {shown(wanted)}"
        )


def _check_latent(plan: Plan) -> None:
    channels = _config(plan, "vae").get("latent_channels", 4)
    own = [plan.config["in_channels"], plan.config["out_channels"]]
    rows = [row.channels for task in plan.tasks for row in task.conditioning if row.encodes_image]
    if {*own, *rows} != {channels}:
        raise CheckpointError(
            f"vae/config.json: latent_channels {shown(channels)}; the UNet has {own[0]} in and "
            f"{own[1]} out, and its conditioning {rows or 'none'}"
        )
