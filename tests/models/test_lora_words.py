"""``FILE[:scale]``: what the words of ``--lora`` mean, and which are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtu_export.models import lora
from mtu_export.spec import PlanError


def refused(argument: str) -> str:
    with pytest.raises(PlanError) as caught:
        lora.parse(argument)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.mark.parametrize(
    ("tail", "scale"),
    [("", 1.0), (":0.5", 0.5), (":-1", -1.0), (":+.25", 0.25), (":1e-2", 0.01), (":0", 0.0)],
)
@pytest.mark.parametrize("name", ["a.safetensors", "b:c.safetensors", "d:0.7"])
def test_words(tmp_path: Path, name: str, tail: str, scale: float) -> None:
    file = tmp_path / name
    file.touch()
    assert lora.parse(f"{file}{tail}") == (file, scale, None, ())


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "101", "-100.1", "1e400", "", "x", "1_0", "٣", "0x1", "1:2"]
)
def test_words_with_bad_scales(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    line = refused(f"{file}:{text}")
    assert line.startswith("--lora")
    if text != "1:2":
        assert "the scale must be a number from -100 to 100" in line


@pytest.mark.parametrize(
    "argument", ["", ":", ":0.5", "missing.safetensors", "missing:0.5", "\0", "."]
)
def test_words_without_a_file(argument: str) -> None:
    assert "--lora: no file" in refused(argument)


def test_a_word_that_is_too_long() -> None:
    assert "--lora: no file" in refused("x" * 5000)
