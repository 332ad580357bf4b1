"""What one safetensors file holds, by the names of its tensors: a model, or what to do with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mtu_export.checkpoint import Header
from mtu_export.spec import CheckpointError

UNET = "model.diffusion_model."
_SDXL_TEXT, _SD_TEXT = "conditioner.embedders.", "cond_stage_model."
_REFINER = 2560
"""Numbers that SDXL's refiner adds to its time embedding; the base model adds 2816."""
_OTHERS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "a LoRA",
        ("lora_unet_", "lora_te", ".lora_", ".lora.", "hada_w1", "lokr_w", "dora_scale"),
        "name the model with -m and this file with --lora",
    ),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding."), "it is not supported"),
    ("an IP-Adapter", ("ip_adapter.", "image_proj."), "it is not supported"),
    (
        "a textual inversion embedding",
        ("emb_params", "string_to_param", "clip_l", "clip_g"),
        "name the model with -m and this file with --embedding",
    ),
    ("Stable Diffusion 3", ("joint_blocks.",), "it is not supported"),
    ("Flux", ("double_blocks.", "single_blocks."), "it is not supported"),
    (
        "a UNet in diffusers' names",
        ("down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"),
        "name its folder, with the config.json beside it",
    ),
    (
        "a VAE",
        ("encoder.down.", "decoder.up.", "first_stage_model.", "encoder.down_blocks."),
        "name the model with -m and this file with --vae",
    ),
    (
        "a tiny VAE (TAESD)",
        ("encoder.layers.", "decoder.layers.", "taesd_"),
        "name the model with -m and this file with --vae",
    ),
    (
        "a CLIP text encoder",
        ("text_model.", "cond_stage_model.", "resblocks."),
        "name the model with -m and the encoder's folder with --text-encoder",
    ),
)
"""Other files that people name with -m: what they are, parts of their names, what to do.

The UNet's names in diffusers are also those of a VAE's blocks, so they come as whole names."""


def architecture(file: Path, headers: Mapping[str, Header]) -> str:
    """``"sd1"``, ``"sd2"`` or ``"sdxl"``, by names and shapes.

    1.x projects into its attention by convolutions, 2.x by matrices; SDXL embeds sizes too.
    Raises ``CheckpointError`` for any other file, and says what it is.
    """
    if not any(name.startswith(UNET) for name in headers):
        raise CheckpointError(_other(file, headers))
    texts = [p for p in (_SD_TEXT, _SDXL_TEXT) if any(name.startswith(p) for name in headers)]
    if len(texts) > 1:
        raise CheckpointError(
            f"{file} holds two models: it has text encoders of SD ({_SD_TEXT}*) and of SDXL "
            f"({_SDXL_TEXT}*)"
        )
    own = (UNET, "first_stage_model.", *texts)
    kinds = [kind for kind, _, _ in _named(n for n in headers if not n.startswith(own))]
    if kinds:
        raise CheckpointError(f"{file} holds two models: beside Stable Diffusion, {kinds[0]}")
    for what, parts, _ in _OTHERS:
        if any(name.startswith(tuple(f"{UNET}{part}" for part in parts)) for name in headers):
            raise CheckpointError(f"{file} is {what}: it is not supported")
    added = headers.get(f"{UNET}label_emb.0.0.weight")
    projections = [h for n, h in headers.items() if n.endswith(".1.proj_in.weight")]
    if added is None:
        conv = not projections or len(projections[0].shape) == 4
        return "sd1" if conv else "sd2"
    if any(name.startswith("conditioner.embedders.0.model.") for name in headers) or (
        added.shape[-1] == _REFINER
    ):
        raise CheckpointError(
            f"{file} is SDXL's refiner, which is not supported, only its base model"
        )
    if any(name.startswith(_SD_TEXT) for name in headers):
        raise CheckpointError(
            f"{file} is Stable Diffusion 2.x unCLIP (label_emb without SDXL's text encoders): it "
            "is not supported"
        )
    return "sdxl"


def _named(names: Iterable[str]) -> list[tuple[str, tuple[str, ...], str]]:
    """The entries of other files that names belong to, the first first."""
    every = list(names)
    return [entry for entry in _OTHERS if any(part in n for part in entry[1] for n in every)]


def _other(file: Path, headers: Mapping[str, Header]) -> str:
    kinds = _named(headers)
    if kinds:
        what, _, cure = kinds[0]
        return f"{file} is {what}, not a whole model: {cure}"
    names = ", ".join(repr(name[:80]) for name in list(headers)[:10])
    return (
        f"{file} is no model that is known here: it has no {UNET}*; its first tensors are "
        f"{names or 'none'}"
    )
