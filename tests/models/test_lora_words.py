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


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("#style", (1.0, "style", ())),
        ("#style:0.5", (0.5, "style", ())),
        (":0.5,down=0.25", (0.5, None, (("down", 0.25),))),
        (":mid=2", (1.0, None, (("mid", 2.0),))),
        (
            "#x:up.1=0,up.1.0=-1,unet=.5",
            (1.0, "x", (("up.1", 0.0), ("up.1.0", -1.0), ("unet", 0.5))),
        ),
        (
            ":1,text_encoder=0,text_encoder_2=3",
            (1.0, None, (("text_encoder", 0), ("text_encoder_2", 3))),
        ),
    ],
)
def test_words_with_adapters_and_blocks(tmp_path: Path, tail: str, expected: object) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    assert lora.parse(f"{file}{tail}") == (file, *expected)  # type: ignore[misc]


def test_a_file_that_is_named_like_words(tmp_path: Path) -> None:
    for name in ("a#b.safetensors", "a.safetensors#x", "a.safetensors:0.5", "c:d#e"):
        (tmp_path / name).touch()
        assert lora.parse(f"{tmp_path / name}") == (tmp_path / name, 1.0, None, ())
    assert lora.parse(f"{tmp_path}/c:d#e#y:0.5") == (tmp_path / "c:d#e", 0.5, "y", ())
    assert lora.parse(f"{tmp_path}/c:d#e#y") == (tmp_path / "c:d#e", 1.0, "y", ())


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (":down", "the scale must be a number from -100 to 100, got 'down'"),
        (":1,down", "the scale must be a number from -100 to 100, got ''"),
        (":down=x", "got 'x'"),
        (":1,down=101", "got '101'"),
        (":1,down=1,down=2", "block down appears twice"),
        (":1,2", "no block '2'; legal: FILE[#adapter][:scale][,block=scale...]"),
        (":1,=2", "no block ''"),
        (":middle=1", "no block 'middle'; legal:"),
        (":mid.0=1", "no block 'mid.0'"),
        (":down.0.1.2=1", "no block 'down.0.1.2'"),
        (":down.٣=1", "no block"),
        ("#", "--lora: no file"),
        ("#:1", "--lora: no file"),
    ],
)
def test_words_with_bad_blocks(tmp_path: Path, tail: str, reason: str) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    assert reason in refused(f"{file}{tail}")


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 5.0),
        ("down_blocks.1.resnets.0.conv1", 5.0),
        ("down_blocks.1.resnets.1.conv1", 4.0),
        ("down_blocks.1.downsamplers.0.conv", 4.0),
        ("down_blocks.10.resnets.0.conv1", 3.0),
        ("mid_block.resnets.0.conv1", 6.0),
        ("up_blocks.1.resnets.0.conv1", 2.0),
        ("conv_in", 2.0),
        ("conv_in.edit", 2.0),
    ],
)
def test_the_narrowest_block_counts(path: str, scale: float) -> None:
    blocks = (("unet", 2.0), ("down", 3.0), ("down.1", 4.0), ("down.1.0", 5.0), ("mid", 6.0))
    scales = lora.Scales(7.0, blocks)
    assert scales.of("unet", path) == scale
    assert scales.of("text_encoder", path) == 7.0
