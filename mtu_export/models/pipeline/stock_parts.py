"""How optimum and diffusers open the exported parts of a pipeline.

They follow ``onnxruntime/modeling_diffusion.py`` of optimum-onnx 0.1.0.
"""

from __future__ import annotations

from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.models.pipeline.layout import TINY_VAE, is_tiny, vae_scale_factor
from mtu_export.spec import StockPart

_LAST, _BEFORE_LAST = "last_hidden_state", "hidden_states.0"
UNET = StockPart(key="unet", library="diffusers", class_name="UNet2DConditionModel")
"""The UNet; its config is the task's."""


def text_encoder(
    folder: Folder, name: str, *, is_sdxl: bool, skip: int = 0, added: int = 0
) -> StockPart:
    """A text encoder.

    From SDXL's, optimum takes all hidden states and reads the last but one. The files hold only
    that one, so their config declares a single layer, and its name is ``hidden_states.0``.
    diffusers checks the shape of the first output, which for SDXL's first encoder must have three
    axes, so there the hidden states are returned twice. ``skip`` layers are left out, ``added``
    tokens have rows.
    """
    config = _config(folder / name)
    for key, change in (("num_hidden_layers", -skip), ("vocab_size", added)):
        if isinstance(config.get(key), int):
            config[key] += change
    if is_sdxl:
        config["num_hidden_layers"] = 1  # as many hidden states as optimum looks for
    second = name.endswith("_2")
    return StockPart(
        key=name,
        library="transformers",
        class_name="CLIPTextModelWithProjection" if second else "CLIPTextModel",
        config=config,
        io_names={"hidden_states": _BEFORE_LAST if is_sdxl else _LAST, "pooled": "text_embeds"},
        repeated={_LAST: _BEFORE_LAST} if is_sdxl and not second else {},
    )


def vae(folder: Folder) -> StockPart:
    """Half of the VAE.

    optimum counts the levels of ``block_out_channels``, which configs of tiny ones may lack.
    """
    config = _config(folder / "vae")
    if is_tiny(config):
        levels = vae_scale_factor(config).bit_length()
        widths = config.get("decoder_block_out_channels", [64] * levels)
        config = {"block_out_channels": widths, **config}
    return StockPart(
        key="vae",
        library="diffusers",
        class_name=TINY_VAE if is_tiny(config) else "AutoencoderKL",
        config=config,
        io_names={"latent": "latent_sample"},
    )


def _config(folder: Folder) -> dict[str, Any]:
    path = folder / "config.json"
    return checkpoint.read_json(path) if path.is_file() else {}
