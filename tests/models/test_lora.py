"""LoRAs as diffusers and PEFT run them: the reference keeps them apart, ours folds them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from mtu_export.bundle.metrics import psnr
from mtu_export.models import lora
from mtu_export.testing import architectures, loras
from mtu_export.testing.campaigns.loras import encode, make_text, make_unet, pipeline, predict

FLOOR_DB = 90.0
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: diffusers cannot run a LoRA to compare with",
)
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
ATTENTION = [
    f"{BLOCK}.{attn}.{leaf}"
    for attn in ("attn1", "attn2")
    for leaf in ("to_q", "to_k", "to_v", "to_out.0")
]


def run_by_diffusers(pipe: Any, files: Sequence[tuple[Path, float]]) -> None:
    for number, (file, _) in enumerate(files):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{number}")
    names = [f"a{number}" for number in range(len(files))]
    pipe.set_adapters(names, [scale for _, scale in files])


def fold(components: dict[str, nn.Module], files: Sequence[tuple[Path, float]]) -> lora.Report:
    return lora.apply(components, [(lora.read(file), scale) for file, scale in files])


def compare_unet(
    files: Sequence[tuple[Path, float]], architecture: str = "tiny", floor: float = FLOOR_DB
) -> lora.Report:
    """Ours against diffusers on one UNet; the LoRA must also do something."""
    theirs = make_unet(architecture)
    ours, plain = copy.deepcopy(theirs), predict(theirs)
    xl = architecture == "tiny-sdxl"
    text_2 = make_text(CLIPTextModelWithProjection) if xl else None
    run_by_diffusers(pipeline(theirs, make_text(CLIPTextModel), text_2), files)
    report = fold({"unet": ours}, files)
    want = predict(theirs).numpy()
    assert psnr(want, plain.numpy()) < 60
    likeness = psnr(want, predict(ours).numpy())
    print(f"{likeness:.1f} dB")
    assert likeness >= floor
    return report


@needs_peft
@pytest.mark.parametrize("wrapper", ["", "base_model.model."])
def test_peft_names_of_every_layer(tmp_path: Path, wrapper: str) -> None:
    """Linear, 1 x 1 and 3 x 3 convolutions, first and last: every layer that has a matrix."""
    unet = make_unet()
    paths = loras.layers(unet)
    assert {"conv_in", "conv_out", f"{BLOCK}.ff.net.0.proj"} <= set(paths)
    pairs = loras.pairs(unet, paths)
    file = loras.write(tmp_path / "reference.safetensors", loras.peft(pairs))
    wrapped = loras.write(tmp_path / "ours.safetensors", loras.peft(pairs, wrapper=wrapper))
    report = compare_unet([(file, 0.7)])
    assert report.changed == {"unet": len(paths)}
    one, two = make_unet(), make_unet()
    fold({"unet": one}, [(file, 1.0)])
    fold({"unet": two}, [(wrapped, 1.0)])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@needs_peft
def test_old_diffusers_names(tmp_path: Path) -> None:
    unet = make_unet()
    linear = [p for p in loras.layers(unet) if isinstance(unet.get_submodule(p), nn.Linear)]
    tensors = loras.old_diffusers(loras.pairs(unet, linear))
    assert any("processor.to_out_lora.down" in name for name in tensors)
    file = loras.write(tmp_path / "old.safetensors", tensors)
    assert compare_unet([(file, 1.0)]).changed == {"unet": len(linear)}


@needs_peft
@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
def test_kohya_names_with_alphas(tmp_path: Path, alpha: float | None) -> None:
    """What kohya trains: attention and feed-forward layers, resnets, down- and upsampling."""
    unet = make_unet()
    paths = [p for p in loras.layers(unet) if p not in ("conv_in", "conv_out")]
    file = tmp_path / "kohya.safetensors"
    loras.write(file, loras.kohya(loras.pairs(unet, paths), alpha=alpha))
    assert compare_unet([(file, 0.8)]).changed == {"unet": len(paths)}


@needs_peft
def test_ranks_and_alphas_of_each_layer(tmp_path: Path) -> None:
    unet = make_unet()
    tensors = loras.kohya(loras.pairs(unet, ATTENTION, rank=2), alpha=1.0)
    others = [f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"]
    tensors |= loras.kohya(loras.pairs(unet, others, rank=5, seed=1), alpha=3.0)
    compare_unet([(loras.write(tmp_path / "a.safetensors", tensors), 1.5)])


@needs_peft
def test_several_adapters_with_scales(tmp_path: Path) -> None:
    unet = make_unet()
    paths = loras.layers(unet)
    half = loras.pairs(unet, paths[::2], rank=3, seed=1)
    kohya = [p for p in paths[5:] if not p.startswith("conv_")]
    adapters = [
        (loras.peft(loras.pairs(unet, paths)), 0.5),
        (loras.peft(half), -0.75),
        (loras.kohya(loras.pairs(unet, kohya, rank=2, seed=2), alpha=1.0), 1.25),
    ]
    files = [
        (loras.write(tmp_path / f"{i}.safetensors", tensors), scale)
        for i, (tensors, scale) in enumerate(adapters)
    ]
    report = compare_unet(files)
    assert report.changed == {"unet": len(paths)}
    assert [folded.scales.default for folded in report.folded] == [0.5, -0.75, 1.25]
    layers = [folded.layers["unet"] for folded in report.folded]
    assert layers == [len(paths), len(half), len(kohya)]


@needs_peft
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = loras.kohya(loras.pairs(make_unet(), ATTENTION), alpha=2.0)
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    compare_unet([(loras.write(tmp_path / "half.safetensors", stored), 1.0)])


CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "peft_type": "LORA"}


@needs_peft
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"to_q": 3, r"attn2\.to_k": 16, "^down_blocks.*to_v": 1, "o_q": 77}},
        {"alpha_pattern": {f"{BLOCK}.attn1.to_q": 2}},
    ],
    ids=["alpha", "rslora", "patterns", "path"],
)
def test_lora_config_in_the_header(tmp_path: Path, more: dict[str, Any]) -> None:
    pairs = loras.pairs(make_unet(), ATTENTION)
    config = {f"unet.{key}": value for key, value in {**CONFIG, **more}.items()}
    file = loras.write(tmp_path / "c.safetensors", loras.peft(pairs), config)
    compare_unet([(file, 0.9)])


@needs_peft
def test_rank_pattern_and_an_adapter_that_diffusers_saved(tmp_path: Path) -> None:
    from peft import LoraConfig

    theirs = make_unet()
    ours = copy.deepcopy(theirs)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_k": 5, "conv1": 1},
        target_modules=["to_q", "to_k", "conv1", "proj_in", "ff.net.0.proj"],
        init_lora_weights=False,
    )
    theirs.add_adapter(config, adapter_name="x")
    theirs.save_lora_adapter(tmp_path, adapter_name="x")
    report = fold({"unet": ours}, [(tmp_path / "pytorch_lora_weights.safetensors", 1.0)])
    assert report.changed["unet"] > 20
    assert psnr(predict(theirs).numpy(), predict(ours).numpy()) >= FLOOR_DB


@needs_peft
def test_a_folder_that_peft_saved(tmp_path: Path) -> None:
    """Its alpha is in ``adapter_config.json``, not in the file."""
    from peft import LoraConfig, get_peft_model

    unet = make_unet()
    ours = copy.deepcopy(unet)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["to_q"], init_lora_weights=False)
    theirs: Any = get_peft_model(unet, config)  # type: ignore[arg-type]
    theirs.save_pretrained(tmp_path)
    fold({"unet": ours}, [(tmp_path / "adapter_model.safetensors", 1.0)])
    assert psnr(predict(theirs.base_model.model).numpy(), predict(ours).numpy()) >= FLOOR_DB


FIRST_NAMES = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_1_attn1_to_q": (
        "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    ),
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_1_1_transformer_blocks_0_attn2_to_out_0": (
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"
    ),
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_3_0_out_layers_3": "up_blocks.1.resnets.1.conv2",
}
"""Names in a file of kohya's SDXL training, for the layers of the tiny SDXL."""


@needs_peft
def test_kohya_sdxl_block_names(tmp_path: Path) -> None:
    unet = make_unet("tiny-sdxl")
    pairs = {name: loras.pair(unet.get_submodule(p), 4, 0) for name, p in FIRST_NAMES.items()}
    file = loras.write(tmp_path / "xl.safetensors", loras.kohya(pairs, alpha=2.0))
    assert compare_unet([(file, 1.0)], "tiny-sdxl").changed == {"unet": len(pairs)}


@pytest.mark.parametrize("architecture", ["sdxl", "tiny-sdxl"])
def test_every_first_name_is_that_of_diffusers(architecture: str) -> None:
    """All layers of SDXL: their names in kohya's files come back from diffusers' converter."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_unet_lora_key,
        _maybe_map_sgm_blocks_to_diffusers,
    )

    from mtu_export.models.lora.model import Names

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(
            dict(architectures.ARCHITECTURES[architecture])
        )
    names = Names("unet", unet)
    first = ("input_blocks", "middle_block", "output_blocks", "time_embed_", "label_emb", "out_2")
    layers = {flat: next(iter(layer.values())).path for flat, layer in names.flat.items()}
    own = set(loras.layers(unet))
    paths = {flat: p for flat, p in layers.items() if flat.startswith(first) and p in own}
    assert set(paths.values()) == own
    for flat, path in paths.items():
        key = f"lora_unet_{flat}.lora_down.weight"
        (mapped,) = _maybe_map_sgm_blocks_to_diffusers({key: 0}, unet.config)
        converted = _convert_unet_lora_key(mapped).replace(".processor", "")
        converted = converted.replace(".to_out_lora", ".to_out.0.lora").replace("_lora.", ".lora.")
        assert converted == f"{path}.lora.down.weight", flat
    literal = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "input_blocks_8_1_proj_out": "down_blocks.2.attentions.1.proj_out",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    }
    if architecture == "sdxl":
        assert {flat: paths[flat] for flat in literal} == literal


TEXT = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
TEXT = [f"encoder.layers.{i}.{leaf}" for i in range(2) for leaf in (*TEXT, "mlp.fc1", "mlp.fc2")]


def text_pairs(text: Any, old: bool, seed: int = 0) -> dict[str, loras.Pair]:
    """Rows with ``text_model`` in their names, as files have them, or as the model has them."""
    stem = "text_model." if hasattr(text, "text_model") else ""
    pairs = loras.pairs(text, [stem + path for path in TEXT], seed=seed)
    return {
        ("text_model." if old else "") + path.removeprefix(stem): r for path, r in pairs.items()
    }


@needs_peft
@pytest.mark.parametrize("names", ["peft", "peft-new", "linear-layer", "kohya"])
def test_text_encoder(tmp_path: Path, names: str) -> None:
    theirs = make_text(CLIPTextModel)
    ours, plain = copy.deepcopy(theirs), encode(theirs)
    pairs = text_pairs(theirs, old=names != "peft-new")
    tensors = loras.peft(pairs, "text_encoder")
    if names == "kohya":
        tensors = loras.kohya(pairs, "lora_te_", alpha=2.0)
    elif names == "linear-layer":
        swap = {"lora_A": "lora_linear_layer.down", "lora_B": "lora_linear_layer.up"}
        for old, new in swap.items():
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    file = loras.write(tmp_path / "t.safetensors", tensors)
    run_by_diffusers(pipeline(make_unet(), theirs), [(file, 0.6)])
    unet = make_unet()
    report = fold({"unet": unet, "text_encoder": ours}, [(file, 0.6)])
    assert report.changed == {"text_encoder": len(TEXT)}
    want = encode(theirs).numpy()
    assert psnr(want, plain.numpy()) < 60
    assert psnr(want, encode(ours).numpy()) >= FLOOR_DB


@needs_peft
def test_sdxl_with_both_text_encoders(tmp_path: Path) -> None:
    unet = make_unet("tiny-sdxl")
    one, two = make_text(CLIPTextModel), make_text(CLIPTextModelWithProjection)
    ours = {name: copy.deepcopy(m) for name, m in
            {"unet": unet, "text_encoder": one, "text_encoder_2": two}.items()}  # fmt: skip
    tensors = loras.kohya({"middle_block_1_proj_in": loras.pair(
        unet.get_submodule("mid_block.attentions.0.proj_in"), 4, 5)}, alpha=1.0)  # fmt: skip
    tensors |= loras.kohya(text_pairs(one, True), "lora_te1_", alpha=1.0)
    tensors |= loras.kohya(text_pairs(two, True, seed=1), "lora_te2_", alpha=1.0)
    file = loras.write(tmp_path / "xl.safetensors", tensors)
    run_by_diffusers(pipeline(unet, one, two), [(file, 1.0)])
    report = fold(ours, [(file, 1.0)])
    assert report.changed == {"unet": 1, "text_encoder": 12, "text_encoder_2": 12}
    assert not report.unused
    assert psnr(predict(unet).numpy(), predict(ours["unet"]).numpy()) >= FLOOR_DB
    for name, text in (("text_encoder", one), ("text_encoder_2", two)):
        assert psnr(encode(text).numpy(), encode(ours[name]).numpy()) >= FLOOR_DB
