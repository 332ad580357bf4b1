"""Flags come from dataclasses of options, and go back into them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import mtu_export
from mtu_export.cli import options
from mtu_export.spec import PlanError
from mtu_export.spec.options import ExportOptions, RunOptions, VerifyOptions

BUNDLE = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"


@pytest.mark.parametrize("kind", [ExportOptions, VerifyOptions, RunOptions])
def test_every_option_has_a_flag(kind: type) -> None:
    names = {parameter.name for parameter in options.parameters(kind)}
    without = {field.name for field in fields(kind)} - names
    assert without == ({"target", "options"} if kind is ExportOptions else set())


def test_values_are_what_the_user_gave() -> None:
    arguments = {"int8": True, "fp16": False, "scheme": None, "bake_steps": "8,20", "json": True}
    assert options.values(ExportOptions, arguments) == {"scheme": "int8", "bake_steps": [8, 20]}
    assert arguments == {"json": True}
    with pytest.raises(PlanError, match="name one scheme, got int8 and fp16"):
        options.values(ExportOptions, {"int8": True, "fp16": True})
    with pytest.raises(PlanError, match="--bake-steps takes numbers, such as 8,20; got '8;20'"):
        options.values(ExportOptions, {"bake_steps": "8;20"})


def test_a_string_is_a_sequence_of_one() -> None:
    resolved = ExportOptions(target="onnx", task="edit", lora="a.safetensors")
    assert (resolved.task, resolved.lora) == (("edit",), ("a.safetensors",))


def test_scripts_call_what_the_commands_call(tmp_path: Path) -> None:
    assert all(verdict.passed is not False for verdict in mtu_export.verify(BUNDLE))
    assert mtu_export.inspect(BUNDLE)["target"] == "onnx"
    image = tmp_path / "in.png"
    mtu_export.save_image(np.zeros((1, 3, 64, 64), np.float32), image)
    picture = mtu_export.run(BUNDLE, prompt="make it red", image=image, steps=4)
    again = mtu_export.run(BUNDLE, RunOptions(prompt="make it red", image=image, steps=4))
    assert (picture.image == again.image).all()
    with pytest.raises(PlanError, match="needs --prompt"):
        mtu_export.run(BUNDLE, image=image)
