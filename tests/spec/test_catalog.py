"""Rows: the scheme of each part of an export, and parts that fit their UNets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtu_export import targets
from mtu_export.checkpoint.layout import VAE_SCALE_FACTOR, vae_scale_factor
from mtu_export.spec import KeepFloat
from mtu_export.spec.catalog import SCHEMES, scheme_of
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
    scheme: str, target: str, upcast: bool, names: tuple[str, ...]
) -> None:
    mine = KeepFloat(pattern="mid_block.*", why="asked for", required=True)
    exported = replace(SCHEMES[scheme], overrides=(mine, *SCHEMES[scheme].overrides))
    config = {"force_upcast": True} if upcast else {}
    half = targets.load(target).info.float16_vae
    parts = ("unet", "text_encoder_2", "vae_decoder")
    schemes = [scheme_of(part, exported, config, float16_vae=half) for part in parts]
    assert tuple(of_part.name for of_part in schemes) == names
    assert schemes[0] == exported
    assert mine not in schemes[1].overrides or scheme != "int8"


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
