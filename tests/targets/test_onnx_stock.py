"""What an ONNX bundle says of itself to optimum and diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from mtu_export import checkpoint
from mtu_export.exporter import options, schedule
from mtu_export.targets.onnx.stock import write_configs


@pytest.mark.parametrize("name", [None, *schedule.NAMES])
def test_an_onnx_bundle_names_the_scheduler_of_its_tables(
    pipeline: Path, tmp_path: Path, name: str | None
) -> None:
    plan = options.resolve(target="onnx", model=pipeline, task="t2i", scheduler=name)
    write_configs("unet", plan, tmp_path)
    index = checkpoint.read_json(tmp_path / "model_index.json")
    kind = getattr(diffusers, index["scheduler"][1])
    theirs = kind.from_pretrained(tmp_path / "scheduler")
    ours = schedule.load(pipeline, name)
    assert type(theirs) is type(ours)
    assert schedule.table(theirs, 12) == schedule.table(ours, 12)


@pytest.mark.parametrize("size", ["", "_sdxl"])
def test_tokenizers_are_named_with_their_encoders(
    request: pytest.FixtureRequest, tmp_path: Path, size: str
) -> None:
    """The exporter writes their folders when every part is lowered."""
    plan = options.resolve(
        target="onnx", model=request.getfixturevalue(f"pipeline{size}"), task="t2i"
    )
    write_configs("unet", plan, tmp_path)
    assert not {n for n in checkpoint.read_json(tmp_path / "model_index.json") if "token" in n}
    parts = [part for part in plan.parts if part.startswith("text_encoder")]
    assert len(parts) == (2 if size else 1)
    for part in parts:
        write_configs(part, plan, tmp_path)
        index = checkpoint.read_json(tmp_path / "model_index.json")
        assert index[part.replace("text_encoder", "tokenizer")] == ["transformers", "CLIPTokenizer"]
    write_configs(parts[-1], plan, tmp_path / "alone")
    index = checkpoint.read_json(tmp_path / "alone" / "model_index.json")
    assert [n for n in index if "token" in n] == [parts[-1].replace("text_encoder", "tokenizer")]


@pytest.mark.parametrize(
    ("task", "channels", "kind"),
    [
        ("t2i", 4, "StableDiffusionPipeline"),
        ("edit", 8, "StableDiffusionInstructPix2PixPipeline"),
        ("fill", 9, "StableDiffusionInpaintPipeline"),
    ],
)
def test_the_config_of_the_unet_is_that_of_its_task(
    pipeline: Path, tmp_path: Path, task: str, channels: int, kind: str
) -> None:
    plan = options.resolve(target="onnx", model=pipeline, task=task)
    write_configs("unet", plan, tmp_path)
    assert checkpoint.read_json(tmp_path / "unet" / "config.json")["in_channels"] == channels
    assert checkpoint.read_json(tmp_path / "model_index.json")["_class_name"] == kind
