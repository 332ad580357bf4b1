"""``AutoencoderTiny`` (TAESD): loaded and run as diffusers does, odd configs refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from mtu_export.bundle.metrics import psnr
from mtu_export.graph import capture
from mtu_export.models.pipeline import stock, stock_parts
from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.spec import CheckpointError

TINY: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 2, 1],
    "num_decoder_blocks": [2, 1, 1],
}


def save(folder: Path, **overrides: Any) -> Path:
    torch.manual_seed(0)
    AutoencoderTiny(**{**TINY, **overrides}).save_pretrained(folder / "vae")  # type: ignore[attr-defined]
    return folder / "vae" / "config.json"


def reconfigure(path: Path, **changes: Any) -> None:
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("act", ["relu", "silu", "gelu"])
def test_the_halves_are_diffusers(act: str, tmp_path: Path) -> None:
    save(tmp_path, act_fn=act)
    theirs: Any = AutoencoderTiny.from_pretrained(tmp_path / "vae")
    vae = stock.load_vae(tmp_path)
    assert isinstance(vae, AutoencoderTiny)
    encoder = stock.vae_encoder_graph(vae, 32, 48)
    decoder = stock.vae_decoder_graph(vae, 32, 48)
    assert decoder.inputs == encoder.outputs
    assert encoder.outputs[0].shape == (1, 4, 8, 12)
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, encoder.inputs[0].shape).astype(np.float32)
    (latent,) = capture.run(encoder, [{"sample": image}])
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(image)).latents.numpy()
    assert psnr(expected, latent["latent"]) > 110
    far = random.normal(0, 4, decoder.inputs[0].shape).astype(np.float32)  # beyond ±3: clamped
    (actual,) = capture.run(decoder, [{"latent": far}])
    with torch.no_grad():
        sample = theirs.decode(torch.from_numpy(far)).sample.numpy()
    assert psnr(sample, actual["sample"]) > 110
    with torch.no_grad():
        unclamped = theirs.decoder.layers(torch.from_numpy(far)).mul(2).sub(1).numpy()
    assert psnr(unclamped, actual["sample"]) < 60
    both = sum(p.numel() for p in vae.parameters())
    assert sum(capture.cost(graph).parameters for graph in (encoder, decoder)) == both


def test_a_published_config_is_enough(tmp_path: Path) -> None:
    """That of TAESD has no ``block_out_channels``, which diffusers' own copies and optimum have."""
    path = save(tmp_path)
    reconfigure(path, block_out_channels=None, scaling_factor=None)
    layout = PipelineLayout.read(tmp_path, {"block_out_channels": [8]})
    assert (layout.vae_scale_factor, layout.scaling_factor, layout.size_step) == (4, 1.0, 4)
    stock.check_part(tmp_path, "vae")
    part = stock_parts.vae(tmp_path)
    assert part.class_name == "AutoencoderTiny"
    assert part.config["block_out_channels"] == [8, 8, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "tanh"}, "act_fn 'tanh' is refused; legal: relu or silu or gelu"),
        ({"upsample_fn": "bilinear"}, "upsample_fn 'bilinear' is refused; legal: nearest"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor 4 is refused; legal: 2"),
        ({"in_channels": 4}, "in_channels must be 3, got 4"),
        ({"shift_factor": 0.5}, "latents are scaled, never shifted"),
        ({"num_encoder_blocks": [1, 2]}, "num_encoder_blocks has 2 levels, encoder_block_out_ch"),
        ({"num_decoder_blocks": [1, 2, 10**4]}, "num_decoder_blocks must be 1 to 128 a level"),
        ({"decoder_block_out_channels": [8, 8, -1]}, "must be an integer from 1"),
        ({"decoder_block_out_channels": [8, 16, 8]}, "must be the same width on every level"),
        (
            {"encoder_block_out_channels": [8, 8], "num_encoder_blocks": [1, 1]},
            "the encoder has 2 levels, the decoder 3",
        ),
        ({"block_out_of_channels": [8]}, "unknown key 'block_out_of_channels'"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "unknown key 'down_block_types'"),
    ],
)
def test_other_configs_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    reconfigure(save(tmp_path), **change)
    with pytest.raises(CheckpointError, match=message) as error:
        stock.check_part(tmp_path, "vae")
    assert "\n" not in str(error.value)
