"""The parts of a pipeline: which must be there, and which are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtu_export.models.pipeline import files as pipeline_files
from mtu_export.spec import CheckpointError


def test_an_index_names_no_part_that_is_absent_but_the_optional_ones(tmp_path: Path) -> None:
    """Optional are those that diffusers runs without; the hub's lack their weights here."""
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    needed = ("vae", "text_encoder", "tokenizer", "scheduler")
    entries = {name: ["library", "Class"] for name in ("unet", *needed, *optional)}
    index = {**entries, "_class_name": "X", "_ignore_files": ["a"], "text_encoder_2": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "flag": False}), "utf-8")
    for name in ("unet", *needed):
        message = f"has no {name}/, which its model_index.json names; complete the copy or download"
        with pytest.raises(CheckpointError, match=message):
            pipeline_files.read(tmp_path)
        (tmp_path / name).mkdir()
    expected = {**{name: entries[name] for name in needed}, "flag": False}
    assert pipeline_files.read(tmp_path) == expected
    for name in optional:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert pipeline_files.read(tmp_path) == {**expected, "feature_extractor": ["library", "Class"]}
    for name in optional:
        (tmp_path / name / "model.safetensors").touch()
    assert pipeline_files.read(tmp_path).keys() == {*needed, *optional, "flag"}
