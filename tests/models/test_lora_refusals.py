"""What a LoRA may not be: one line that names it, and no weight changed."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtu_export.models import lora
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import CheckpointError, MtuExportError, PlanError
from mtu_export.testing import architectures, loras

STEM = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = torch.ones(2, 64, 1, 1), torch.ones(64, 2, 1, 1)
PAIR = {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP}
NAMED = {
    "unet.mid_block.attentions.0.proj_in.lora_A.weight": DOWN,
    "unet.mid_block.attentions.0.proj_in.lora_B.weight": UP,
}
OTHER = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture(scope="module")
def stock() -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES["tiny"]))
    assert isinstance(unet, UNet2DConditionModel)
    return unet


def refused(act: Callable[[], object], error: type[MtuExportError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def read_refused(file: Path) -> str:
    text = refused(lambda: lora.read(file))
    assert str(file) in text
    return text


# -------------------------------------------------------------------------------------- files


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["x.bin", "x.ckpt", "x.pt", "x.pth", "x.pkl", "x.safetensors"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    trap, file = tmp_path / "trap", tmp_path / name
    file.write_bytes(pickle.dumps(Trap(trap)))
    assert "is a pickle" in read_refused(file)
    assert not trap.exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    other = tmp_path / "lora.gguf"
    other.write_bytes(b"GGUF")
    folder = tmp_path / "d.safetensors"
    folder.mkdir()
    for file in (other, folder, tmp_path / "missing.safetensors"):
        assert "is not a .safetensors file" in read_refused(file)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a whole safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{", "not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensor"),
    ],
)
def test_damaged_headers(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    assert reason in read_refused(file)


@pytest.mark.parametrize("cut", [1, 100, 600])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    file = loras.write(tmp_path / "x.safetensors", PAIR)
    file.write_bytes(file.read_bytes()[:-cut])
    assert "not a whole safetensors file" in read_refused(file)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    config = {"unet.r": 2, "unet.lora_alpha": 2}
    whole = bytearray(loras.write(folder / "whole.safetensors", NAMED, config).read_bytes())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, header + 64))] = data.draw(st.integers(0, 255))
    file = folder / "damaged.safetensors"
    file.write_bytes(whole)
    try:
        lora.read(file)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "NaN or Inf"),
        (float("inf"), "NaN or Inf"),
        (float("-inf"), "NaN or Inf"),
        (-2e6, "values above 1e+06"),
    ],
)
@pytest.mark.parametrize("name", [f"{STEM}.lora_up.weight", f"{STEM}.alpha"])
def test_values_that_are_no_weights(tmp_path: Path, name: str, value: float, reason: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in PAIR.items()}
    tensors[f"{STEM}.alpha"] = torch.tensor(2.0)
    tensors[name].view(-1)[0] = value
    text = read_refused(loras.write(tmp_path / "x.safetensors", tensors))
    assert f"tensor {name!r} holds {reason}" in text


# -------------------------------------------------------------------------------------- tensors

METHODS = {
    "IA3": f"{STEM}.on_input",
    "IA3 ": "unet.mid_block.attentions.0.proj_in.ia3_l",
    "OFT": f"{STEM}.oft_blocks",
    "OFT ": f"{STEM}.boft_R",
    "AdaLoRA": "unet.mid_block.attentions.0.proj_in.lora_E",
    "GLoRA": f"{STEM}.a1.weight",
    "VeRA": "unet.mid_block.attentions.0.proj_in.vera_lambda_b",
    "replacement": f"{STEM}.set_weight",
    "embedding": "text_encoder.token_embedding.lora_embedding_A",
    "biases": "unet.mid_block.attentions.0.proj_in.lora_A.bias",
    "biases ": f"{STEM}.bias_indices",
    "textual inversion": "bundle_emb.word.string_to_param",
    "textual inversion ": "<word>",
    "textual inversion  ": "clip_g",
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str) -> None:
    name = METHODS[method]
    text = read_refused(loras.write(tmp_path / "x.safetensors", {**PAIR, name: torch.ones(3)}))
    assert repr(name) in text
    assert method.strip() in text
    assert "legal: lora_A and lora_B" in text


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"unet.x.weight": UP}, "'unet.x.weight' is not part of a LoRA"),
        ({"unet.x.lora_A.weight": UP.int()}, "has dtype 'I32'"),
        ({"unet.x.lora_A.weight": UP.to(torch.float8_e4m3fn)}, "has dtype 'F8_E4M3'; legal:"),
        ({"unet.x.lora_A.weight": UP[:0]}, "is empty"),
        ({"unet.x.lora_A.weight": DOWN}, "layer 'x' of unet has no up matrix"),
        ({"unet.x.lora_B.weight": DOWN}, "layer 'x' of unet has no down matrix"),
        ({f"{OTHER}.alpha": torch.tensor(1.0)}, "has no matrix, only alpha"),
        ({f"{STEM}.alpha": torch.ones(2)}, "alpha has shape [2], needs one number"),
        ({f"{STEM}.lora_up.weight": torch.ones(64, 3, 1, 1)}, "ranks differ: down [2, 64, 1, 1]"),
        ({f"{STEM}.lora_up.weight": torch.ones(64, 2, 3, 3)}, "is not a product of matrices"),
        ({f"{STEM}.lora_up.weight": torch.ones(128)}, "is not a product of matrices"),
        ({f"{STEM}.lora_mid.weight": torch.ones(2, 3, 3, 3)}, "ranks differ"),
        ({f"{STEM}.lora_mid.weight": torch.ones(2, 2)}, "is not a product of matrices"),
        (
            {f"{STEM}.lora_A.weight": DOWN},
            "down of layer 'mid_block_attentions_0_proj_in' appears twice",
        ),
    ],
)
def test_tensors_that_make_no_layer(
    tmp_path: Path, tensors: Mapping[str, Tensor], reason: str
) -> None:
    assert reason in read_refused(loras.write(tmp_path / "x.safetensors", {**PAIR, **tensors}))


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    tensors = {**NAMED, "unet.mid_block.attentions.0.proj_in.lora.down.weight": DOWN}
    assert "are the same tensor" in read_refused(loras.write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alphas_as_trainers_store_them(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensors = {**PAIR, f"{STEM}.alpha": torch.full(shape, 1, dtype=dtype)}
    (layer,) = lora.read(loras.write(tmp_path / "x.safetensors", tensors)).layers
    assert layer.factor == 0.5


# -------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"r": 3}, "has rank 2, its LoraConfig says 3"),
        ({"rank_pattern": {"proj_in": 4}}, "has rank 2, its LoraConfig says 4"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"r": None}, "r must be a number, got None"),
        ({"r": True}, "r must be a number, got True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
        ({"lora_alpha": 1e9}, "lora_alpha must be a number"),
        ({"use_dora": True}, "has no magnitude, its LoraConfig says use_dora"),
        ({"use_dora": "yes"}, "use_dora must be true or false, got 'yes'"),
        ({"use_qalora": True}, "use_qalora is True; legal:"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"peft_type": "LOHA"}, "alpha must be a number, got None"),
        ({"peft_type": "OFT"}, "peft_type is 'OFT'; legal: 'LORA', 'LOHA', 'LOKR'"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA']; legal:"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"to_q": "x"}}, "to_q must be a number"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern '(' is not a usable pattern"),
        (
            {"rank_pattern": {"(.?){60}x" + str(i): 1 for i in range(1300)}},
            "rank_pattern has too many long patterns",
        ),
        ({"alpha_pattern": {r"(a)\1": 1}}, "is not a usable pattern: invalid escape"),
    ],
)
def test_lora_configs_that_are_refused(
    tmp_path: Path, more: Mapping[str, Any], reason: str
) -> None:
    config = {f"unet.{k}": v for k, v in {"r": 2, "lora_alpha": 4, **more}.items()}
    assert reason in read_refused(loras.write(tmp_path / "x.safetensors", NAMED, config))


def test_an_alpha_that_contradicts_the_config(tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.proj_in"
    tensors = {**NAMED, f"{stem}.alpha": torch.tensor(3.0)}
    file = tmp_path / "x.safetensors"
    assert lora.read(loras.write(file, tensors)).layers[0].factor == 1.5
    config = {"unet.r": 2, "unet.lora_alpha": 4}
    assert "alpha 3 contradicts the LoraConfig" in read_refused(loras.write(file, tensors, config))
    config["unet.lora_alpha"] = 3
    assert lora.read(loras.write(file, tensors, config)).layers[0].factor == 1.5


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.r": 2, "unet.r": 3}', "[" * 100_000])
def test_a_config_that_is_no_json(tmp_path: Path, text: str) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "x.safetensors"
    save_file({k: v.clone() for k, v in NAMED.items()}, file, {"lora_adapter_metadata": text})
    assert "lora_adapter_metadata" in read_refused(file)


def test_the_config_of_a_peft_folder(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name.removeprefix('unet.')}": t for name, t in NAMED.items()}
    file = loras.write(tmp_path / "adapter_model.safetensors", tensors)
    config = {"r": 2, "lora_alpha": 6, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert lora.read(file).layers[0].factor == 3
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 0}), "utf-8")
    text = refused(lambda: lora.read(file))
    assert "adapter_config.json: r must be a positive integer" in text


# -------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            loras.kohya({f"mid_block.x.{i}": (DOWN, UP) for i in range(5)}),
            "no such layer: unet mid_block_x_0, unet mid_block_x_1, unet mid_block_x_2 and 2 more",
        ),
        (
            loras.peft({"time_proj": (DOWN, UP)}),
            "no such layer: unet time_proj",
        ),
        (
            loras.peft({"mid_block.resnets.0.conv1": (DOWN, UP)}),
            "unet mid_block.resnets.0.conv1 is of [64, 64, 1, 1], the model's of [64, 64, 3, 3]",
        ),
        (
            loras.kohya({"conv_out": (DOWN, UP)}),
            "unet conv_out is of [64, 64, 1, 1], the model's of [4, 32, 3, 3]",
        ),
        (
            loras.kohya({"middle_block.1.proj_in": (DOWN, UP)}),
            "are the same layer of unet",
        ),
        (NAMED, "are the same layer of unet"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    tmp_path: Path, stock: UNet2DConditionModel, tensors: Mapping[str, Tensor], reason: str
) -> None:
    """A good LoRA first and a good layer first: nothing of them is folded either."""
    before = copy.deepcopy(stock.state_dict())
    good = lora.read(loras.write(tmp_path / "good.safetensors", PAIR))
    bad = lora.read(loras.write(tmp_path / "bad.safetensors", {**PAIR, **tensors}))
    text = refused(lambda: lora.apply({"unet": stock}, [(good, 1.0), (bad, 1.0)]))
    assert str(bad.path) in text
    assert reason in text
    assert all(torch.equal(tensor, before[k]) for k, tensor in stock.state_dict().items())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 100.5])
def test_apply_refuses_scales(tmp_path: Path, stock: UNet2DConditionModel, scale: float) -> None:
    adapter = lora.read(loras.write(tmp_path / "x.safetensors", PAIR))
    text = refused(lambda: lora.apply({"unet": stock}, [(adapter, scale)]), PlanError)
    assert "from -100 to 100" in text


def test_norms_and_embeddings_have_no_lora(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(8, 4)

    tensors = loras.kohya({"token_embedding": (torch.ones(1, 4), torch.ones(8, 1))}, "lora_te_")
    adapter = lora.read(loras.write(tmp_path / "x.safetensors", tensors))
    text = refused(lambda: lora.apply({"text_encoder": Text()}, [(adapter, 1.0)]))
    assert "no such layer: text_encoder token_embedding" in text


def test_a_name_that_could_be_two_layers(tmp_path: Path) -> None:
    """``a.b_c`` and ``a_b.c`` are one name with underscores alone; with dots they are two."""
    module = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"b_c": nn.Linear(2, 2)}),
            "a_b": nn.ModuleDict({"c": nn.Linear(2, 2)}),
        }
    )
    pairs = {"a.b_c": (torch.ones(1, 2), torch.ones(2, 1))}
    flat = lora.read(loras.write(tmp_path / "f.safetensors", loras.kohya(pairs, "lora_te_")))
    text = refused(lambda: lora.apply({"text_encoder": module}, [(flat, 1.0)]))
    assert "no such layer: text_encoder a_b_c" in text
    dotted = lora.read(loras.write(tmp_path / "d.safetensors", loras.peft(pairs, "text_encoder")))
    assert lora.apply({"text_encoder": module}, [(dotted, 1.0)]).changed == {"text_encoder": 1}


def test_components_that_are_not_there_are_counted(
    tmp_path: Path, stock: UNet2DConditionModel
) -> None:
    unet = copy.deepcopy(stock)
    pair = torch.ones(1, 2), torch.ones(2, 1)
    text = loras.kohya({f"text_model.x.{i}": pair for i in range(3)}, "lora_te1_")
    file = loras.write(tmp_path / "both.safetensors", {**PAIR, **text})
    adapter = lora.read(file)
    report = lora.apply({"unet": unet}, [(adapter, 1.0), (adapter, 0.0)])
    assert report.changed == {"unet": 1}
    assert report.unused == {"text_encoder": 6}
    (record,) = lora.identity([(adapter, 1.0)], ["unet"])
    assert record == {
        "name": file.name,
        "sha256": adapter.sha256,
        "scale": 1.0,
        "layers": {"unet": 1},
        "unused": {"text_encoder": 3},
        "forms": {"LoRA": 1},
    }
    alone = lora.read(loras.write(tmp_path / "text.safetensors", text))
    line = refused(lambda: lora.apply({"unet": unet}, [(alone, 1.0)]))
    assert "would change nothing: it is for text_encoder; the model here has: unet" in line


def test_memory_mapped_weights_are_replaced_not_written(tiny: Path, tmp_path: Path) -> None:
    file = next((tiny / "unet").glob("*.safetensors"))
    before = file.read_bytes()
    unet = mtu.load(tiny)
    old = unet.get_parameter("mid_block.attentions.0.proj_in.weight")
    kept = old.clone()
    adapter = lora.read(loras.write(tmp_path / "x.safetensors", PAIR))
    lora.apply({"unet": unet}, [(adapter, 1.0)])
    new = unet.get_parameter("mid_block.attentions.0.proj_in.weight")
    assert new is not old
    assert not new.requires_grad
    assert torch.equal(old, kept)
    torch.testing.assert_close(new, kept + 2)
    assert file.read_bytes() == before
