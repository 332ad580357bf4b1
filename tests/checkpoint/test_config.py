"""What unet/config.json and other JSON of a checkpoint may say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mtu_export import checkpoint
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.models.pipeline import unet_config
from mtu_export.spec import CheckpointError
from mtu_export.testing import architectures

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_dense_unet_folder_is_told_from_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(
        CheckpointError, match=r"the UNet is dense .* mtu-export upcycle SOURCE OUT"
    ):
        mtu_config.read_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_head_dim", -4),
        ("attention_head_dim", [4, 0]),
        ("sample_size", "16"),
        ("sample_size", [16, True]),
        ("layers_per_block", 1.5),
        ("norm_num_groups", True),
        ("transformer_layers_per_block", [[1, "2"]]),
    ],
)
def test_sizes_are_positive_integers(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: must be a positive integer or a list"):
        unet_config.check_sizes({key: value})


def test_stock_defaults_are_those_of_diffusers() -> None:
    import inspect

    from diffusers import UNet2DConditionModel

    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    for key, value in unet_config.STOCK_DEFAULTS.items():
        default = stock[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": 10**9},
        {"block_out_channels": [10**12]},
        {"block_out_channels": "wide"},
        {"block_out_channels": []},
        {"in_channels": True},
        {"cross_attention_dim": [1, 2]},
        {"num_experts": 10**6},
        {"norm_num_groups": 10**30},
    ],
)
def test_absurd_sizes_are_refused_at_once(unet: Path, change: dict[str, object]) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), "utf-8")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        mtu_config.read_config(unet.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_head_dim": -4}, "attention_head_dim: must be a positive integer"),
        ({"downsample_padding": 10**6}, "does not describe a UNet"),
        ({"norm_eps": "x"}, "norm_eps: must be a number"),
        ({"freq_shift": "x"}, "freq_shift: must be a number"),
        ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos: must be true or false"),
        ({"class_embed_type": "timestep"}, "class_embed_type: must be null; others need an input"),
        ({"num_class_embeds": 10}, "num_class_embeds: must be null; .*, got 10"),
        ({"time_cond_proj_dim": 16}, "time_cond_proj_dim: must be null; others need an input"),
        ({"encoder_hid_dim": 32}, "encoder_hid_dim: must be null; others need an input"),
        ({"dual_cross_attention": True}, "dual_cross_attention: must be false; others need an"),
        ({"addition_embed_type": "text"}, 'must be null or "text_time"; others need an input'),
        ({"addition_embed_type": "text_time"}, "must be the width of the pooled text"),
        ({"layers_per_block": 128, "transformer_layers_per_block": 128}, "absurdly large"),
        ({"_class_name": "x\n" * 9000}, "is not that of an MTU checkpoint"),
    ],
)
def test_what_no_forward_pass_can_run_is_refused_before_weights(
    unet: Path, change: dict[str, object], message: str
) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), "utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        mtu.load(unet.parent)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_output_of_another_shape_is_refused(unet: Path) -> None:
    """The weights fit, the picture does not come out as large as it went in."""
    from safetensors.torch import load_file, save_file

    path = unet / "config.json"
    config = {**json.loads(path.read_text()), "conv_out_kernel": 4}
    path.write_text(json.dumps(config), "utf-8")
    tensors = load_file(unet / WEIGHTS)
    tensors["conv_out.weight"] = torch.zeros(4, 32, 4, 4)
    save_file(tensors, unet / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"its output is \[1, 4, 3, 3\], not"):
        mtu.load(unet.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": 1e999}', "1e999 is not a finite double"),
        ('{"a": NaN}', "NaN is not a finite double"),
        ("{" + '"a": 1' + "0" * 5000 + "}", "cannot be read as JSON"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_json(tmp_path / "x.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("scale", ["x", None, True, -1, 1e30])
def test_a_vae_without_a_scale_is_refused_early(unet: Path, scale: object) -> None:
    (unet.parent / "vae").mkdir()
    text = json.dumps({"scaling_factor": scale})
    (unet.parent / "vae" / "config.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match="scaling_factor must be a positive number"):
        mtu_config.read_config(unet.parent)


def test_what_training_leaves_in_a_config_is_ignored(unet: Path) -> None:
    """As diffusers' EMA writer leaves it."""
    from diffusers import UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    tiny = {**architectures.ARCHITECTURES["tiny"]}
    model = UNet2DConditionModel.from_config(tiny)
    assert isinstance(model, UNet2DConditionModel)
    ema = EMAModel(model.parameters(), model_cls=UNet2DConditionModel, model_config=model.config)
    ema.save_pretrained(str(unet.parent / "ema"))
    written = json.loads((unet.parent / "ema" / "config.json").read_text("utf-8"))
    keys = {key for key in written if not key.startswith("_")} - set(mtu.STOCK_KEYS)
    assert keys == set(unet_config.TRAINING_KEYS) - {"gradient_checkpointing"}
    path = unet / "config.json"
    left = {key: written.get(key, False) for key in unet_config.TRAINING_KEYS}
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **left}), "utf-8")
    mtu.load(unet.parent)
