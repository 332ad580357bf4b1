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
    parts = [part for part in plan.components if part.startswith("text_encoder")]
    assert len(parts) == (2 if size else 1)
    for part in parts:
        write_configs(part, plan, tmp_path)
    index = checkpoint.read_json(tmp_path / "model_index.json")
    for part in parts:
        name = part.replace("text_encoder", "tokenizer")
        assert index[name] == ["transformers", "CLIPTokenizer"]
