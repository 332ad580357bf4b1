"""Stock parts: loaded as transformers and diffusers load them, and forwards equal to theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mtu_export.bundle.metrics import psnr
from mtu_export.graph import capture
from mtu_export.models.pipeline import stock
from mtu_export.spec import CheckpointError, MissingWeights

TEXT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 24,
    "bos_token_id": 118,
    "eos_token_id": 119,
}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def save_text(folder: Path, kind: type = CLIPTextModel, **overrides: Any) -> Path:
    torch.manual_seed(0)
    model = kind(CLIPTextConfig(**{**TEXT, **overrides}, initializer_factor=5.0))
    model.save_pretrained(folder / "text_encoder")
    return folder / "text_encoder"


def save_vae(folder: Path, **overrides: Any) -> Path:
    torch.manual_seed(0)
    AutoencoderKL(**{**VAE, **overrides}).save_pretrained(folder / "vae")  # type: ignore[attr-defined]
    return folder / "vae"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a part in place."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state = change(state) or state
    save_file(state, file)


def reconfigure(folder: Path, **overrides: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **overrides}))


def ids(*ends: int, length: int = 77) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 117, (1, length)).astype(np.int32)
    for end in ends:
        values[0, end:] = TEXT["eos_token_id"]
    return values


# ------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
def test_text_encoders_load_as_transformers_loads_them(kind: type, tmp_path: Path) -> None:
    folder = save_text(tmp_path, kind)
    expected = kind.from_pretrained(folder)
    loaded = stock.load_text_encoder(tmp_path, "text_encoder")
    assert type(loaded) is kind
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids_ = torch.from_numpy(ids(40))
    assert torch.equal(loaded(ids_)[0], expected(ids_)[0])  # buffers are there too


def test_old_names_and_position_ids_load(tmp_path: Path) -> None:
    """Checkpoints of before transformers 5, as SD 1.5 ships them."""
    folder = save_text(tmp_path)
    expected = stock.load_text_encoder(tmp_path, "text_encoder").state_dict()

    def old(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = {f"text_model.{name}": tensor for name, tensor in state.items()}
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        return state

    rewrite(folder, old)
    loaded = stock.load_text_encoder(tmp_path, "text_encoder").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert CLIPTextModel.from_pretrained(folder).state_dict().keys() == loaded.keys()


def test_the_vae_loads_as_diffusers_loads_it(tmp_path: Path) -> None:
    folder = save_vae(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in state.items():
            for new, before in old.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
            renamed[name] = tensor
        return renamed

    for step in ("new", "old"):
        if step == "old":
            rewrite(folder, change)
        expected: Any = AutoencoderKL.from_pretrained(folder)
        loaded = stock.load_vae(tmp_path).state_dict()
        assert loaded.keys() == expected.state_dict().keys()
        assert all(torch.equal(loaded[name], t) for name, t in expected.state_dict().items())


def test_half_weights_are_widened(tmp_path: Path) -> None:
    folder = save_text(tmp_path)
    rewrite(folder, lambda state: {name: tensor.half() for name, tensor in state.items()})
    loaded = stock.load_text_encoder(tmp_path, "text_encoder")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_weights_that_do_not_fit_are_named(part: str, tmp_path: Path) -> None:
    folder = save_text(tmp_path) if part == "text_encoder" else save_vae(tmp_path)
    (file,) = folder.glob("*.safetensors")
    good, name = file.read_bytes(), sorted(load_file(file))[-1]

    def load() -> None:
        if part == "vae":
            stock.load_vae(tmp_path)
        else:
            stock.load_text_encoder(tmp_path, part)

    for change, message in (
        (lambda s: {k: v for k, v in s.items() if k != name}, f"missing: {name}"),
        (lambda s: {**s, "extra.weight": torch.ones(2)}, r"unknown: extra\.weight"),
        (lambda s: {**s, name: torch.ones(7)}, f"{name} has shape"),
        (lambda s: {**s, name: s[name] * float("nan")}, f"tensor '{name}' holds NaN or Inf"),
    ):
        rewrite(folder, change)
        with pytest.raises(MissingWeights, match=message) as error:
            load()
        assert part in str(error.value)
        file.write_bytes(good)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle: refused"):
        load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel.*legal: CLIPTextModel or"),
        ({"architectures": None}, "says no class"),
        ({"max_position_embeddings": 128}, "must be 77, got 128"),
        ({"hidden_act": "relu"}, "legal: quick_gelu or gelu"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 128"),
        ({"num_attention_heads": 5}, "does not describe a CLIP text encoder"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps must be"),
        ({"eos_token_id": [1, 2]}, "eos_token_id must be an integer"),
    ],
)
def test_other_text_encoders_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    reconfigure(save_text(tmp_path), **change)
    with pytest.raises(CheckpointError, match=message) as error:
        stock.load_text_encoder(tmp_path, "text_encoder")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "VQModel.*legal: AutoencoderKL or AutoencoderTiny"),
        ({"shift_factor": 0.1}, "shift_factor 0.1 is refused"),
        ({"latents_mean": [0.0] * 4}, "latents_mean"),
        ({"in_channels": 4}, "in_channels must be 3"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "must be DownEncoderBlock2D"),
        ({"block_out_channels": [8, -1, 16]}, "block_out_channels must be an integer"),
        ({"norm_num_groups": 3}, "does not describe a VAE"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "unknown key 'auto_map'"),
    ],
)
def test_other_vaes_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    reconfigure(save_vae(tmp_path), **change)
    with pytest.raises(CheckpointError, match=message) as error:
        stock.load_vae(tmp_path)
    assert "\n" not in str(error.value)


def test_the_index_must_agree(tmp_path: Path) -> None:
    save_text(tmp_path)
    index = tmp_path / "model_index.json"
    for names, message in (
        (["transformers", "CLIPTextModelWithProjection"], "name different classes"),
        (["evil_package", "CLIPTextModel"], "legal: CLIPTextModel"),
        ("CLIPTextModel()", "legal: CLIPTextModel"),
    ):
        index.write_text(json.dumps({"text_encoder": names}))
        with pytest.raises(CheckpointError, match=message):
            stock.load_text_encoder(tmp_path, "text_encoder")
    index.write_text(json.dumps({"text_encoder": ["transformers", "CLIPTextModel"]}))
    stock.load_text_encoder(tmp_path, "text_encoder")


@pytest.mark.parametrize("where", ["architectures", "index"])
def test_a_second_text_encoder_has_a_projection(tmp_path: Path, where: str) -> None:
    """diffusers takes SDXL's pooled text from the projection alone."""
    folder = save_text(tmp_path)
    folder.rename(tmp_path / "text_encoder_2")
    if where == "index":
        reconfigure(tmp_path / "text_encoder_2", architectures=None)
        index = {"text_encoder_2": ["transformers", "CLIPTextModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="legal: CLIPTextModelWithProjection"):
        stock.load_text_encoder(tmp_path, "text_encoder_2")
    save_text(tmp_path, CLIPTextModelWithProjection).rename(tmp_path / "projected")
    shutil.rmtree(tmp_path / "text_encoder_2")
    (tmp_path / "projected").rename(tmp_path / "text_encoder_2")
    (tmp_path / "model_index.json").unlink(missing_ok=True)
    assert stock.load_text_encoder(tmp_path, "text_encoder_2").text_projection is not None


def test_loading_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where a config leaves out ids, whose defaults lie outside of its vocabulary."""
    folder = save_text(tmp_path)
    reconfigure(folder, bos_token_id=None, eos_token_id=None)
    save_vae(tmp_path)
    capfd.readouterr()
    stock.load_text_encoder(tmp_path, "text_encoder")
    stock.load_vae(tmp_path)
    assert capfd.readouterr() == ("", "")


# -------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_the_last_hidden_state_is_transformers(act: str, tmp_path: Path) -> None:
    save_text(tmp_path, hidden_act=act)
    module: Any = stock.load_text_encoder(tmp_path, "text_encoder")
    graph = stock.text_encoder_graph(module, module.config, penultimate=False)
    case = {"input_ids": ids(40)}
    (actual,) = capture.run(graph, [case])
    assert [spec.name for spec in graph.outputs] == list(actual)
    assert actual["hidden_states"].shape == graph.outputs[0].shape
    expected = module(torch.from_numpy(case["input_ids"])).last_hidden_state.numpy()
    assert expected.std() > 0.1
    assert psnr(expected, actual["hidden_states"]) > 110


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
@pytest.mark.parametrize("eos", [2, 119])
def test_the_penultimate_state_and_the_pooled_one_are_transformers(
    kind: type, eos: int, tmp_path: Path
) -> None:
    save_text(tmp_path, kind, eos_token_id=eos)
    module: Any = stock.load_text_encoder(tmp_path, "text_encoder")
    graph = stock.text_encoder_graph(module, module.config, penultimate=True, pooled=True)
    alone = stock.text_encoder_graph(module, module.config, penultimate=True)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 119), min_size=77, max_size=77), st.integers(0, 77))
    def same(ids_: list[int], end: int) -> None:
        ids_[end:] = [119] * (77 - end)
        case = {"input_ids": np.array([ids_], np.int32)}
        ((actual,), (short,)) = capture.run(graph, [case]), capture.run(alone, [case])
        expected = module(torch.tensor([ids_]), output_hidden_states=True)
        want = expected.hidden_states[-2].numpy()
        pooled = expected["text_embeds" if hasattr(expected, "text_embeds") else "pooler_output"]
        assert psnr(want, actual["hidden_states"]) > 110
        assert psnr(want, short["hidden_states"]) > 110
        assert psnr(pooled.numpy(), actual["pooled"]) > 110
        assert actual["pooled"].shape == graph.outputs[1].shape

    same()
    assert len(graph.module.layers) == 3  # type: ignore[arg-type]
    assert len(alone.module.layers) == 2  # type: ignore[arg-type]
    last = sum(p.numel() for p in graph.module.layers[2].parameters())  # type: ignore[index]
    assert capture.cost(alone).parameters < capture.cost(graph).parameters - last


@pytest.mark.parametrize("penultimate", [False, True])
@pytest.mark.parametrize("skip", [1, 2])
def test_skipped_layers_are_those_of_transformers(
    penultimate: bool, skip: int, tmp_path: Path
) -> None:
    """Indices of diffusers' ``encode_prompt``: -(N + 1) and the norm, of SDXL -(N + 2)."""
    save_text(tmp_path, CLIPTextModelWithProjection, num_hidden_layers=4)
    module: Any = stock.load_text_encoder(tmp_path, "text_encoder")
    graph, pooled = (
        stock.text_encoder_graph(
            module, module.config, penultimate=penultimate, pooled=pools, skip=skip
        )
        for pools in (False, True)
    )
    case = {"input_ids": ids(40)}
    expected = module(torch.from_numpy(case["input_ids"]), output_hidden_states=True)
    if penultimate:
        want = expected.hidden_states[-(skip + 2)]
    else:
        want = module.text_model.final_layer_norm(expected.hidden_states[-(skip + 1)])
    for each in (graph, pooled):
        actual = capture.run(each, [case])[0]
        assert psnr(want.detach().numpy(), actual["hidden_states"]) > 110
    assert psnr(expected.text_embeds.detach().numpy(), actual["pooled"]) > 110
    assert len(graph.module.layers) == 4 - skip - penultimate  # type: ignore[arg-type]
    assert len(pooled.module.layers) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("convs", [True, False])
def test_the_halves_of_the_vae_are_diffusers(convs: bool, tmp_path: Path) -> None:
    save_vae(tmp_path, use_quant_conv=convs, use_post_quant_conv=convs)
    vae: Any = stock.load_vae(tmp_path)
    encoder = stock.vae_encoder_graph(vae, 32, 48)
    decoder = stock.vae_decoder_graph(vae, 32, 48)
    assert decoder.inputs == encoder.outputs
    assert encoder.outputs[0].shape == (1, 4, 8, 12)
    image = np.random.default_rng(0).uniform(-1, 1, encoder.inputs[0].shape).astype(np.float32)
    (latent,) = capture.run(encoder, [{"sample": image}])
    mode = vae.encode(torch.from_numpy(image)).latent_dist.mode().numpy()
    assert psnr(mode, latent["latent"]) > 110
    (actual,) = capture.run(decoder, [latent])
    sample = vae.decode(torch.from_numpy(mode)).sample.numpy()
    assert psnr(sample, actual["sample"]) > 110
    both = sum(p.numel() for p in vae.parameters())
    variance = 4 * 8 + 4 if convs else 0
    parts = sum(capture.cost(graph).parameters for graph in (encoder, decoder))
    assert parts == both - variance
