"""Tiny pipelines whose sizes follow the published defaults, and the same models in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu_export.testing import single_files
from mtu_export.testing.dense import write_dense

SIDE = 64
"""Pixels of an image's side."""
_UNET = {"layers_per_block": 2, "norm_num_groups": 32, "sample_size": SIDE // 8}
_VAE = {
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": SIDE,
}
_TEXT = {"hidden_size": 64, "num_attention_heads": 1, "projection_dim": 64}
_SPECS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sd1": ("tiny", {"cross_attention_dim": 64, "attention_head_dim": 8}),
    "sd2": ("tiny-sd2", {"cross_attention_dim": 64, "attention_head_dim": [1, 1]}),
    "sdxl": (
        "tiny-sdxl",
        {
            "cross_attention_dim": 128,
            "attention_head_dim": [1, 1],
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 64 + 6 * 256,
        },
    ),
}
CLASSES = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}
METADATA = {"modelspec.resolution": f"{SIDE}x{SIDE}"}


def pipeline(kind: str, folder: Path, channels: int = 4, **options: Any) -> Path:
    """The folder of a random pipeline: ``kind`` is ``"sd1"``, ``"sd2"`` or ``"sdxl"``."""
    architecture, unet = _SPECS[kind]
    text = {"text_encoder": _TEXT, "text_encoder_2": _TEXT}
    xl = "XL" if kind == "sdxl" else ""
    return write_dense(
        architecture,
        folder,
        pipeline=f"StableDiffusion{xl}{CLASSES[channels]}Pipeline",
        unet={**_UNET, **unet, "in_channels": channels},
        parts={"vae": _VAE, **text},
        **options,
    )


def single(kind: str, place: Path, channels: int = 4, **options: Any) -> tuple[Path, Path]:
    """The folder of a pipeline, and the file of the same model."""
    folder, file = pipeline(kind, place / "folder", channels), place / "model.safetensors"
    metadata = {**METADATA, **options.pop("metadata", {})}
    single_files.write(folder, file, metadata=metadata, **options)
    return folder, file
