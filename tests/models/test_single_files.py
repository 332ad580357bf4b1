"""Models in one file, in LDM's names, against the folder that they were made backwards of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtu_export import checkpoint, models
from mtu_export.checkpoint import Folder
from mtu_export.models import sources
from mtu_export.models.sources import vocabulary
from mtu_export.spec import CheckpointError, PlanError
from tests.support import ldm

PARTS = {
    "unet": checkpoint.WEIGHTS,
    "vae": checkpoint.WEIGHTS,
    "text_encoder": checkpoint.TEXT_WEIGHTS,
    "text_encoder_2": checkpoint.TEXT_WEIGHTS,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Random tokenizers are small: their ids are not the published ones."""
V = "v_prediction"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Kind -> folder and file of the same random model."""
    places = {kind: tmp_path_factory.mktemp(kind) for kind in ("sd1", "sd2", "sdxl")}
    return {kind: ldm.single(kind, place) for kind, place in places.items()}


def open_file(file: Path, folder: Path, **options: Any) -> Folder:
    return sources.open(file, tokenizers=[folder], **options)


def assert_equal(view: Folder, folder: Path) -> None:
    """Every tensor, and every key of the configs that a graph depends on."""
    for part, stem in PARTS.items():
        assert (view / part).is_dir() == (folder / part).is_dir()
        if not (folder / part).is_dir():
            continue
        expected = checkpoint.headers(folder / part, stem)
        actual = checkpoint.headers(view / part, stem)
        assert actual.keys() == expected.keys()
        for name, header in expected.items():
            assert actual[name].shape == header.shape
            value = checkpoint.tensor(actual, name)
            assert torch.equal(value, checkpoint.tensor(expected, name).to(value.dtype)), name
        configs = [checkpoint.read_json(place / part / "config.json") for place in (view, folder)]
        derived, published = configs
        derived.pop(
            "sample_size", None
        )  # no graph's: the size of an image is tested where it is read
        assert {
            key: (value, published[key])
            for key, value in derived.items()
            if key in published and published[key] != value and key not in _TOKENS
        } in ({}, {"upcast_attention": (True, False)})


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_file_is_the_folder_it_was_made_of(
    kind: str, files: dict[str, tuple[Path, Path]]
) -> None:
    folder, file = files[kind]
    view = open_file(file, folder, prediction_type=V if kind == "sd2" else None)
    assert_equal(view, folder)
    model, whole = models.open(view), models.open(folder)
    assert [task.name for task in model.tasks] == [task.name for task in whole.tasks]
    assert model.image_size(None, None) == (ldm.SIDE, ldm.SIDE)
    model.require_complete()
    model.require_compatible([part.name for part in model.parts])


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_map_agrees_with_the_converter_of_diffusers(
    kind: str, files: dict[str, tuple[Path, Path]]
) -> None:
    """An independent reading of the same file, tensor by tensor."""
    from diffusers.loaders import single_file_utils as reference
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder, file = files[kind]
    view = open_file(file, folder, prediction_type="epsilon")
    stored: dict[str, Any] = load_file(file)
    config = {p: checkpoint.read_json(folder / p / "config.json") for p in ("unet", "vae")}
    expected = {
        "unet": reference.convert_ldm_unet_checkpoint(dict(stored), config=config["unet"]),
        "vae": reference.convert_ldm_vae_checkpoint(dict(stored), config=config["vae"]),
    }
    encoders = {
        "sd2": {"text_encoder": "cond_stage_model.model."},
        "sdxl": {"text_encoder_2": "conditioner.embedders.1.model."},
    }
    for part, prefix in encoders.get(kind, {}).items():
        fields = checkpoint.read_json(folder / part / "config.json")
        text = CLIPTextModelWithProjection(CLIPTextConfig(**fields))
        made = reference.convert_open_clip_checkpoint(text, dict(stored), prefix=prefix)
        made.pop("text_model.embeddings.position_ids", None)
        expected[part] = {
            n: t for n, t in made.items() if part != "text_encoder" or "proj" not in n[:9]
        }
    for part, tensors in expected.items():
        headers = checkpoint.headers(view / part, PARTS[part])
        assert headers.keys() == {n for n in tensors if n != "text_projection.weight"} | (
            {"text_projection.weight"} & headers.keys()
        )
        for name in headers:
            assert torch.equal(checkpoint.tensor(headers, name), tensors[name]), name


@pytest.mark.parametrize(("channels", "task"), [(8, "edit"), (9, "fill")])
def test_input_channels_tell_the_task(channels: int, task: str, tmp_path: Path) -> None:
    folder, file = ldm.single("sd1", tmp_path, channels)
    (only,) = models.open(open_file(file, folder)).tasks
    (same,) = models.open(folder).tasks
    assert only == same
    assert only.name == task


def test_averages_and_schedules_of_training_are_dropped(tmp_path: Path) -> None:
    folder, file = ldm.single("sd1", tmp_path, ema=True)
    assert_equal(open_file(file, folder), folder)


def test_half_precision_is_read_as_it_is(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = files["sd1"]
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in load_file(file).items()}
    save_file(half, tmp_path / "half.safetensors", metadata=ldm.METADATA)
    view = open_file(tmp_path / "half.safetensors", folder)
    assert {header.dtype for header in checkpoint.headers(view / "unet").values()} == {"BF16"}
    assert_equal(view, folder)


def test_the_last_of_open_clips_24_layers_is_not_used(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = files["sd2"]
    tensors: dict[str, Any] = load_file(file)
    layer = "cond_stage_model.model.transformer.resblocks."
    last = {
        n.replace(f"{layer}1.", f"{layer}23."): t for n, t in tensors.items() if f"{layer}1." in n
    }
    tensors |= {n: t.clone() for n, t in last.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata=ldm.METADATA)
    assert_equal(open_file(tmp_path / "a.safetensors", folder, prediction_type=V), folder)


# ---------------------------------------------------------------------------- what it cannot tell


def _with_metadata(file: Path, out: Path, **metadata: str) -> Path:
    values = {**ldm.METADATA, **{f"modelspec.{key}": value for key, value in metadata.items()}}
    save_file(load_file(file), out, metadata=values)
    return out


@pytest.mark.parametrize(
    ("kind", "metadata", "asked", "expected", "note"),
    [
        ("sd1", {}, None, "epsilon", "assumed"),
        ("sdxl", {}, None, "epsilon", "assumed"),
        ("sdxl", {"prediction_type": "v"}, None, V, "modelspec.prediction_type"),
        ("sd2", {"architecture": "stable-diffusion-v2-768-v"}, None, V, "modelspec.architecture"),
        ("sd2", {"architecture": "stable-diffusion-v2-512"}, None, "epsilon", "architecture"),
        ("sd2", {"prediction_type": "epsilon"}, V, V, "as asked for"),
    ],
)
def test_what_a_model_predicts_and_who_says_so(
    kind: str,
    metadata: dict[str, str],
    asked: str | None,
    expected: str,
    note: str,
    files: dict[str, tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    folder, file = files[kind]
    view = open_file(
        _with_metadata(file, tmp_path / "m.safetensors", **metadata), folder, prediction_type=asked
    )
    scheduler = checkpoint.read_json(view / "scheduler" / "scheduler_config.json")
    assert scheduler["prediction_type"] == expected
    assert any(f"prediction type {expected}" in n and note in n for n in models.open(view).notes)


def test_sd2_without_a_word_is_refused_where_it_is_exported(
    files: dict[str, tuple[Path, Path]],
) -> None:
    from mtu_export.exporter import schedule

    folder, file = files["sd2"]
    view = open_file(file, folder)
    assert models.open(view).tasks
    with pytest.raises(PlanError, match=r"give --prediction-type epsilon .* or v_prediction"):
        schedule.load(view, None)


def test_what_a_file_lacks_is_named_with_its_flag(
    files: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = files["sd1"]
    bare = {n: t for n, t in load_file(file).items() if n.startswith("model.")}
    save_file(bare, tmp_path / "bare.safetensors", metadata=ldm.METADATA)
    monkeypatch.setattr(vocabulary, "installed", lambda: None)
    options: dict[str, Any] = {}
    for flag, words in (
        ("text_encoders", "no text encoder: give --text-encoder FOLDER"),
        ("tokenizers", r"give --tokenizer FOLDER, or install .*mtu-export\[ldm\]"),
        ("vae", "no vae: give --vae FOLDER"),
    ):
        with pytest.raises(CheckpointError, match=words):
            models.open(sources.open(tmp_path / "bare.safetensors", **options)).require_complete()
        options[flag] = folder if flag == "vae" else [folder]
    view = sources.open(tmp_path / "bare.safetensors", **options)
    models.open(view).require_complete()
    assert_equal(view, folder)


def test_a_vae_of_a_file_or_of_a_whole_model(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = files["sd1"]
    prefix = "first_stage_model."
    vae = {n.removeprefix(prefix): t for n, t in load_file(file).items() if n.startswith(prefix)}
    save_file(vae, tmp_path / "vae.safetensors")
    for given in (tmp_path / "vae.safetensors", file, folder / "vae", folder):
        view = sources.open(folder, vae=given)
        assert_equal(view, folder)
        assert models.open(view).notes[-1].startswith("The vae is ")
    with pytest.raises(CheckpointError, match=r"is a VAE, not a whole model: .* with --vae"):
        sources.open(tmp_path / "vae.safetensors")


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "is a LoRA"),
        (["unet.mid_block.x.lora_A.weight"], "is a LoRA"),
        (["emb_params"], "is a textual inversion embedding"),
        (["clip_g", "clip_l"], "is a textual inversion embedding"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["decoder.layers.0.weight"], r"is a tiny VAE \(TAESD\)"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is a UNet in diffusers' names"),
        (["text_model.final_layer_norm.weight"], "is a CLIP text encoder"),
        (["model.diffusion_model.joint_blocks.0.x"], "is Stable Diffusion 3"),
        (["some.thing"], "no model that is known here: .*first tensors are 'some.thing'"),
        ([], "first tensors are none"),
    ],
)
def test_another_file_is_said_to_be_what_it_is(
    names: list[str], words: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        sources.open(tmp_path / "x.safetensors")


def test_unknown_tensors_and_two_models(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    _, file = files["sd1"]
    tensors: dict[str, Any] = load_file(file)
    odd = {f"other.{i:02d}": torch.zeros(1) for i in range(12)}
    save_file({**tensors, **odd}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"12 tensors .*'other\.00'.*'other\.09' and 2 more"):
        sources.open(tmp_path / "x.safetensors")
    for name in ("conditioner.embedders.0.transformer.text_model.x", "lora_unet_x.lora_up.weight"):
        save_file({**tensors, name: torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="holds two models"):
            sources.open(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_pickle_is_refused_with_its_conversion(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a pickle: refused.*convert it once: python -c"):
        sources.open(tmp_path / name)


def _header(path: Path, text: bytes, length: int | None = None, data: int = 4) -> Path:
    path.write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)
    )
    return path


def test_hostile_headers(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    one = json.dumps(entry)
    path = tmp_path / "x.safetensors"
    cases = {
        f'{{"a": {one}, "a": {one}}}': "key 'a' appears twice",
        f'{{"a": {one}, "b": {one}}}': "not a whole safetensors file",
        '{"a": ': "not a whole safetensors file",
    }
    for text, words in cases.items():
        with pytest.raises(CheckpointError, match=words):
            sources.open(_header(path, text.encode()))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        sources.open(_header(path, b"{}", length=10**8))
    path.write_bytes(struct.pack("<Q", 40_000_000))
    with path.open("r+b") as stream:
        stream.truncate(50_000_000)
    with pytest.raises(CheckpointError, match="header of 40,000,000 bytes; at most"):
        sources.open(path)
