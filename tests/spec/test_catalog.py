"""Rows: the scheme of each part of an export, and parts that fit their UNets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mtu_export.exporter.options import resolve
from mtu_export.models.pipeline.layout import VAE_SCALE_FACTOR, vae_scale_factor
from mtu_export.testing import vocabulary
from mtu_export.testing.architectures import ARCHITECTURES, PUBLISHED, STOCK_PARTS


@pytest.mark.parametrize(
    ("scheme", "target", "upcast", "names"),
    [
        ("fp32", "onnx", False, ("fp32", "fp32", "fp32")),
        ("fp32", "executorch", True, ("fp32", "fp32", "fp32")),
        ("fp16", "coreml", False, ("fp16", "fp16", "fp16")),
        ("fp16", "coreml", True, ("fp16", "fp16", "fp32")),
        ("int8", "onnx", False, ("int8", "int8", "fp16")),
        ("int8", "coreml", False, ("int8", "int8", "fp16")),
        ("int8", "coreml", True, ("int8", "int8", "fp32")),
        ("int8", "executorch", False, ("int8", "int8", "fp32")),
    ],
)
def test_each_part_has_its_scheme(
    pipeline_sdxl: Path,
    tmp_path: Path,
    scheme: str,
    target: str,
    upcast: bool,
    names: tuple[str, ...],
) -> None:
    folder = Path(shutil.copytree(pipeline_sdxl, tmp_path / "xl"))
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_upcast": upcast}), "utf-8")
    kept = ["mid_block.*"] if scheme == "int8" else []
    plan = resolve(model=folder, target=target, scheme=scheme, task="t2i", keep_float=kept)
    parts = ("unet", "text_encoder_2", "vae_decoder")
    assert tuple(plan.schemes[part].name for part in parts) == names
    patterns = {part: [o.pattern for o in plan.schemes[part].overrides] for part in parts}
    integer = scheme == "int8"
    assert ("mid_block.*" in patterns["unet"], "conv_in" in patterns["unet"]) == (integer, integer)
    assert patterns["text_encoder_2"] == patterns["vae_decoder"] == []


def test_stock_parts_fit_their_unets() -> None:
    for name, parts in STOCK_PARTS.items():
        unet = ARCHITECTURES[name]
        texts = [config for part, config in parts.items() if part.startswith("text_encoder")]
        assert sum(config["hidden_size"] for config in texts) == unet["cross_attention_dim"]
        assert len(texts) == (2 if "xl" in name else 1)
        factor = vae_scale_factor(parts["vae"])
        assert factor == (2 if name == "atom" else VAE_SCALE_FACTOR)
        assert parts["vae"]["latent_channels"] == unet["in_channels"]
        size = 49408 if name in PUBLISHED else vocabulary.SIZE
        assert {config["vocab_size"] for config in texts} == {size}
