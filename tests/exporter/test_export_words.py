"""Whole pipelines and words of an export that do not go together: one clear line, before the work.

Nothing here makes an artefact: what is refused is refused before the first part is lowered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtu_export import exporter
from mtu_export.bundle import source_tokenizer
from mtu_export.exporter import options, part
from mtu_export.models.pipeline import layout
from mtu_export.spec import CheckpointError, MtuExportError, PlanError


class Began(BaseException):
    """The first part would be made now."""


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(job: part.Job, reference: Any) -> None:
        raise Began(job.name)

    monkeypatch.setattr(part, "make", make)


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "ck"))


def remove(folder: Path, *parts: str) -> None:
    """Take parts out of a pipeline, which then does not name them either."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    for name in parts:
        shutil.rmtree(folder / name)
        del index[name]
    path.write_text(json.dumps(index), "utf-8")


def export(folder: Path, task: str = "edit", **overrides: Any) -> None:
    out = folder.parent / "out"
    overrides = {"target": "onnx", "scheme": "fp32", "bake_steps": [2], **overrides}
    try:
        exporter.export(options.resolve(model=folder, task=task, out=out, **overrides))
    finally:
        assert [path.name for path in folder.parent.iterdir() if path != folder] == []


def change(*path: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file; None takes one out."""

    def damage(folder: Path) -> None:
        file = folder.joinpath(*path)
        document = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def longer(folder: Path) -> None:
    """One token more than the text encoder has rows for."""
    change("tokenizer", "vocab.json", extra=864)(folder)


def swapped(folder: Path) -> None:
    """Start and end under one another's ids."""
    change("tokenizer", "vocab.json", **{"<|startoftext|>": 863, "<|endoftext|>": 862})(folder)


VOCAB, TEXT, VAE = ("tokenizer", "vocab.json"), ("text_encoder", "config.json"), "vae"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("tokenizer"), "has no tokenizer/, which its model_index.json names"),
        (longer, "ids up to 864, the text encoder's vocab_size is 864"),
        (swapped, "bos_token_id is 862, the tokenizer's is 863"),
        (change(*TEXT, eos_token_id=5), "eos_token_id is 5, the tokenizer's is 863"),
        (change(*TEXT, vocab_size=100), "the text encoder's vocab_size is 100"),
        (change(*TEXT, max_position_embeddings=64), "max_position_embeddings is 64"),
        (change("tokenizer", "tokenizer_config.json", model_max_length=128), "model_max_length"),
        (
            lambda f: (f / "tokenizer/merges.txt").write_text("a b c\n"),
            "file invalid at line 1",
        ),
        (
            lambda f: (f / "tokenizer/merges.txt").write_text("q zz\n"),
            "not in the vocabulary",
        ),
        (lambda f: (f / "tokenizer/vocab.json").write_text("{"), "cannot be read as JSON"),
        (change(*TEXT, hidden_size=64), "text_encoder give 64 numbers per token; the UNet's"),
        *(
            (change(VAE, "config.json", scaling_factor=value), "scaling_factor must be a positive")
            for value in (0, -1, "x", [1], 1e-300, 1e12)
        ),
        (change(VAE, "config.json", latent_channels=16), "latent_channels 16; the UNet has 4 in"),
        (change(VAE, "config.json", block_out_channels=[]), "block_out_channels must be a list"),
        (
            lambda f: (f / "scheduler/scheduler_config.json").write_text("{"),
            "scheduler_config.json cannot be read as JSON",
        ),
        (
            lambda f: (f / "scheduler/scheduler_config.json").unlink(),
            "scheduler_config.json is missing",
        ),
        (
            change("scheduler", "scheduler_config.json", _class_name="os.system"),
            "_class_name 'os.system' is not a diffusers scheduler",
        ),
        (
            change("scheduler", "scheduler_config.json", beta_start="x"),
            "beta_start cannot be 'x'",
        ),
    ],
)
def test_parts_that_do_not_belong_together(
    copied: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(copied)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(copied)
    assert "\n" not in str(caught.value)


XL = ("text_encoder_2", "config.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("unet", "config.json", addition_time_embed_dim=8), "a pooled text of 32 .*is 128"),
        (
            change("unet", "config.json", projection_class_embeddings_input_dim=112),
            r"32 numbers \(projection_dim\); with 6 x 16 .* must be their sum, it is 112",
        ),
        (change(*XL, projection_dim=64), "a pooled text of 64 numbers"),
        (without("text_encoder"), "has no text_encoder/, which its model_index.json names"),
        (change("model_index.json", requires_aesthetics_score=True), "SDXL's refiner is not"),
    ],
)
def test_sdxl_parts_that_do_not_belong_together(
    pipeline_sdxl: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(pipeline_sdxl, tmp_path / "ck"))
    damage(folder)
    if message.endswith("|"):  # a part that is missing hides no other mistake
        change("unet", "config.json", projection_class_embeddings_input_dim=112)(folder)
        message = "a pooled text of 32 numbers"
    with pytest.raises(CheckpointError, match=message) as caught:
        export(folder, task="t2i")
    assert "\n" not in str(caught.value)


def test_a_pooled_text_without_a_projection_is_as_wide_as_transformers_makes_it(
    pipeline_sdxl: Path, tmp_path: Path
) -> None:
    """``CLIPTextModel`` pools its hidden states: as the class says, not the config's sizes."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(shutil.copytree(pipeline_sdxl, tmp_path / "ck"))
    path = folder.joinpath(*XL)
    config = json.loads(path.read_text("utf-8"))
    model = CLIPTextModel(CLIPTextConfig(**{**config, "hidden_size": 48}))
    pooled = model(torch.zeros(1, 77, dtype=torch.long)).pooler_output.shape[-1]
    assert pooled == 48
    change(*XL, architectures=["CLIPTextModel"], hidden_size=48)(folder)
    first = json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))
    change("unet", "config.json", cross_attention_dim=first["hidden_size"] + 48)(folder)
    change("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])(folder)
    with pytest.raises(CheckpointError, match=r"a pooled text of 48 numbers \(hidden_size\)"):
        export(folder, task="t2i")


VAE_CONFIG = (VAE, "config.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(*VAE_CONFIG, _class_name="VQModel"), "vae is 'VQModel'; legal"),
        (change(*VAE_CONFIG, shift_factor=0.1), "shift_factor 0.1 is refused"),
        (change(*VAE_CONFIG, layers_per_block=2), "vae: weights do not fit the config"),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"PK"),
            "is a pickle, not safetensors",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(
                f / "vae" / "diffusion_pytorch_model.fp16.safetensors"
            ),
            "has the variant fp16: diffusion_pytorch_model.fp16.safetensors; give --variant fp16",
        ),
        (change(*TEXT, num_hidden_layers=3), "text_encoder: weights do not fit the config"),
        (change(*TEXT, hidden_act="relu"), "hidden_act 'relu' is refused"),
    ],
)
def test_a_part_that_will_be_refused_is_refused_first(
    copied: Path, damage: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.exporter import schedule

    def probe(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(schedule, "load", probe)
    damage(copied)
    with pytest.raises(MtuExportError, match=message):
        export(copied)


def test_what_training_leaves_in_a_vae_config_is_ignored(copied: Path) -> None:
    change(*VAE_CONFIG, gradient_checkpointing=False)(copied)
    with pytest.raises(Began, match="text_encoder"):
        export(copied)


def test_the_whole_one_begins(copied: Path) -> None:
    """The test of the test."""
    with pytest.raises(Began, match="text_encoder"):
        export(copied)


@pytest.mark.parametrize(
    ("gone", "first", "parts"),
    [
        (("vae", "tokenizer", "text_encoder"), "unet", ("unet",)),
        (("vae",), "text_encoder", ("text_encoder", "unet")),
        (("tokenizer", "text_encoder"), "vae_encoder", ("vae_encoder", "unet", "vae_decoder")),
        (("scheduler",), "text_encoder", ("text_encoder", "vae_encoder", "unet", "vae_decoder")),
    ],
)
def test_only_the_unet_is_compulsory(
    copied: Path, gone: tuple[str, ...], first: str, parts: tuple[str, ...]
) -> None:
    """What a checkpoint lacks is not exported (docs/checkpoint.md)."""
    remove(copied, *gone)
    assert options.resolve(target="onnx", model=copied, task="edit").parts == parts
    with pytest.raises(Began, match=first):
        export(copied)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae", "scheduler"])
@pytest.mark.parametrize("task", ["edit", "sr"])
def test_a_part_that_the_index_names_is_missing(copied: Path, part: str, task: str) -> None:
    """An interrupted download must not make half a bundle."""
    shutil.rmtree(copied / part)
    with pytest.raises(CheckpointError, match=rf"has no {part}/, which its model_index.json names"):
        export(copied, task)


def test_a_tokenizer_of_one_file_is_enough(copied: Path) -> None:
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(copied / "tokenizer")
    shutil.rmtree(copied / "tokenizer")
    reference.save_pretrained(copied / "tokenizer")
    assert not (copied / "tokenizer" / "vocab.json").exists()
    assert source_tokenizer.read(copied / "tokenizer").bos == 862
    with pytest.raises(Began, match="text_encoder"):
        export(copied)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("edit", {"components": ["lora"]}, "unknown part 'lora'; choose from: text_encoder"),
        ("edit", {"components": [""]}, "unknown part ''"),
        ("t2i", {"components": ["vae_encoder"]}, "task 't2i' needs no vae_encoder"),
        ("sr", {"components": ["text_encoder"]}, "task 'sr' needs no text_encoder"),
        (["t2i", "sr"], {"components": ["text_encoder"]}, "'sr' needs none of --components text_"),
        ("edit", {"components": ["text_encoder_2"]}, "unknown part 'text_encoder_2'; choose"),
        ("edit", {"batch": 0}, "--batch must be from 1 to 64, got 0"),
        ("edit", {"batch": 65}, "--batch must be from 1 to 64"),
        ("edit", {"height": 100}, "--height must be a multiple of 16 from 16 to 8192, got 100"),
        ("edit", {"width": 0}, "--width must be a multiple of 16"),
        ("edit", {"width": -64}, "--width must be a multiple of 16"),
        ("edit", {"height": 16384}, "--height must be a multiple of 16 from 16 to 8192"),
        ("edit", {"bake_steps": [0]}, "--bake-steps must be from 1 to 1000, got 0"),
        ("edit", {"bake_steps": [-4]}, "--bake-steps must be from 1 to 1000, got -4"),
        ("edit", {"bake_steps": [4, 1001]}, "--bake-steps must be from 1 to 1000, got 1001"),
        ("edit", {"scheduler": "magic"}, "unknown scheduler 'magic'; choose from"),
        ("edit", {"lora": ["nowhere.safetensors"]}, "nowhere.safetensors"),
        ("edit", {"lora": [""]}, "lora"),
        ("edit", {"seed": -1}, "--seed must be from 0"),
        ("edit", {"min_psnr": float("nan")}, "--min-psnr must be from 0 to 300"),
        ("edit", {"memory": 0.0}, "--memory must be a number of GB above 0"),
    ],
)
def test_words_that_are_refused(
    copied: Path, task: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MtuExportError, match=message) as caught:
        export(copied, task, **settings)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (PlanError, CheckpointError))


@pytest.mark.parametrize("name", ["text_encoder", "vae_encoder"])
def test_a_component_that_the_checkpoint_lacks(copied: Path, name: str) -> None:
    folder = layout.source_folder(name)
    remove(copied, folder)
    with pytest.raises(CheckpointError, match=rf"has no {folder}/: no {name} to export"):
        export(copied, components=[name])


def test_picks_are_in_the_order_of_a_loop_and_bring_the_words_of_the_unet(copied: Path) -> None:
    plan = options.resolve(
        target="onnx", model=copied, task="edit", components=["vae_decoder", "text_encoder"]
    )
    assert plan.parts == ("text_encoder", "vae_decoder")
    with pytest.raises(Began, match="vae_decoder"):
        export(copied, components=["vae_decoder"])
    with pytest.raises(Began, match="text_encoder"):  # what the empty prompt is made with
        export(copied, components=["unet"])
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(Began, match="vae_decoder"):
        export(copied, components=["vae_decoder"])


def test_a_scheduler_that_no_table_holds(copied: Path) -> None:
    change("scheduler", "scheduler_config.json", _class_name="DDIMScheduler", clip_sample=True)(
        copied
    )
    with pytest.raises(PlanError, match="clip_sample is on; set it to false"):
        export(copied)


@pytest.mark.parametrize(
    ("name", "message"), [(None, "no scheduler/ in the"), ("ddim", "ddim with")]
)
def test_it_says_whose_schedule_a_checkpoint_without_scheduler_gets(
    copied: Path, name: str | None, message: str
) -> None:
    remove(copied, "scheduler")
    settings = {"target": "onnx", "task": "edit", "bake_steps": [2], "scheduler": name}
    stages: list[str] = []

    def watch(stage: str) -> Any:
        stages.append(stage)
        return exporter.unwatched(stage)

    with pytest.raises(Began):
        exporter.export(options.resolve(model=copied, out=copied.parent / "out", **settings), watch)
    assert any(message in stage for stage in stages)


@pytest.mark.parametrize("parts", [["text_encoder"], ["vae_encoder", "vae_decoder"]])
def test_keep_float_names_layers_of_the_unet_alone(pipeline: Path, parts: list[str]) -> None:
    settings = {"task": "edit", "scheme": "int8", "out": "none", "keep_float": ["mlp.fc1"]}
    with pytest.raises(PlanError, match="--keep-float names layers of the denoiser, which is not"):
        options.resolve(target="onnx", model=pipeline, components=parts, **settings)
