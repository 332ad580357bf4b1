"""`java -jar mtu-cli.jar` refuses with the lines and exit codes of `mtu-export`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundle.test_pictures import grey_png
from tests.cli import test_run_refusals as refusals
from tests.cli.test_run import EDIT, HERE, SHAPE, Run, bundles, here, run
from tests.phones import jar
from tests.support import handmade

__all__ = ["bundles", "here", "run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OTHERS = {"--save-every": "error: No such option: --save-every"}
"""Flags of `mtu-export run` that the jar has not, and what it says."""


def table(test: Callable[..., None]) -> list[Any]:
    """The values that a test of `mtu-export` is run with."""
    marks: list[Any] = test.pytestmark  # type: ignore[attr-defined]
    (values,) = (mark.args[1] for mark in marks if isinstance(mark.args[0], tuple))
    return values


def same_line(java: jar.Ended, python: tuple[int, str, str]) -> None:
    code, _, err = python
    assert (java.code, java.out, java.err) == (code, "", err.splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    ("name", "arguments"), [values[:2] for values in table(refusals.test_words_that_are_refused)]
)
def test_words_are_refused_alike(
    run: Run, bundles: dict[str, Path], name: str, arguments: tuple[str, ...]
) -> None:
    before = {path.name for path in Path().iterdir()}
    java = jar.run("run", bundles[name], "-o", "out.png", *arguments)
    known = next((line for flag, line in OTHERS.items() if flag in arguments), None)
    if known is not None:
        assert (java.code, java.err) == (2, known + "\n")
    else:
        same_line(java, run(name, *arguments))
    assert {path.name for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--stepz", "4"),
        ("--steps",),
        ("--guidance", "x"),
        ("--steps", "1.5"),
        ("another",),
        ("-x",),
        ("--json=1",),
    ],
)
def test_usage_is_refused_with_exit_code_2(
    run: Run, bundles: dict[str, Path], arguments: tuple[str, ...]
) -> None:
    java = jar.run("run", bundles["edit"], "-o", "out.png", *EDIT, *arguments)
    code, _, _ = run("edit", *EDIT, *arguments)
    assert (java.code, java.out, java.err.count("\n")) == (code, "", 1)
    assert java.err.startswith("error: ")
    assert code == 2


def test_commands_and_missing_words() -> None:
    for words, line in (
        (("paint",), "unknown command 'paint'; choose from: verify, run, bench, job"),
        (("run",), "Missing argument 'BUNDLE'."),
        (("run", "x"), "Missing option '-o' / '--output'."),
        (("verify",), "Missing argument 'BUNDLE'."),
        (("verify", "x", "--min-psnr", "301"), "--min-psnr must be from 0 to 300 dB, got 301.0"),
        (("bench", "x", "--mode", "slow"), "unknown mode 'slow'; choose from: quick, full"),
    ):
        ended = jar.run(*words)
        assert (ended.code, ended.out, ended.err) == (2, "", f"error: {line}\n")


@pytest.mark.parametrize(
    "out", ["out.gif", "out", "in.png", "link.png", "folder.png", "in.png/out.png", "x" * 300]
)
def test_places_are_refused_alike(run: Run, bundles: dict[str, Path], out: str) -> None:
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("nowhere")
    out = out + ".png" if len(out) > 200 else out
    java = jar.run("run", bundles["edit"], "-o", out, *EDIT)
    code, _, err = run("edit", *EDIT, out=out)
    line = err.splitlines()[-1].replace(", .webp", "") + "\n"
    assert (java.code, java.out, java.err) == (code, "", line)


def test_what_is_there_is_replaced_whole_with_force(bundles: dict[str, Path]) -> None:
    Path("out.png").write_bytes(b"old")
    assert jar.run("run", bundles["edit"], "-o", "out.png", *EDIT, "--force").code == 0
    assert Image.open("out.png").size == (handmade.WIDTH, handmade.HEIGHT)
    assert {path.name for path in Path().iterdir()} == {*HERE, "out.png"}
    assert jar.run("run", bundles["edit"], "-o", "new/folder/out.png", *EDIT).code == 0
    assert [path.name for path in Path("new/folder").iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    "value", [values[0] for values in table(refusals.test_noise_that_is_refused)]
)
def test_noise_is_refused_alike(run: Run, bundles: dict[str, Path], value: Any) -> None:
    if isinstance(value, bytes):
        Path("n.npy").write_bytes(value)
    else:
        np.save("n.npy", value, allow_pickle=True)
    words = (*EDIT, "--noise", "n.npy")
    same_line(jar.run("run", bundles["edit"], "-o", "out.png", *words), run("edit", *words))


def test_archives_of_noise_are_refused_alike(run: Run, bundles: dict[str, Path]) -> None:
    np.savez("n.npz", a=np.zeros(SHAPE, np.float32))
    words = (*EDIT, "--noise", "n.npz")
    same_line(jar.run("run", bundles["edit"], "-o", "out.png", *words), run("edit", *words))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'bad.png' is not an image; legal: PNG, JPEG"),
        (b"hello", "'bad.png' is not an image; legal: PNG, JPEG"),
        (b"GIF89a" + bytes(20), "'bad.png' is a GIF picture; legal: PNG, JPEG"),
        (grey_png(64, 64), "'bad.png' cannot be read as an image: "),
        (grey_png(0, 5), "'bad.png' "),
        (grey_png(20_000, 5001), "'bad.png' has 20000 x 5001 pixels, more than 100 megapixels"),
        (grey_png(2**31 - 1, 2**31 - 1), "more than 100 megapixels"),
    ],
    ids=["empty", "text", "gif", "cut", "no pixels", "bomb", "large bomb"],
)
def test_pictures_that_are_none(bundles: dict[str, Path], data: bytes, message: str) -> None:
    Path("bad.png").write_bytes(data)
    java = jar.run("run", bundles["edit"], "-o", "out.png", "--prompt", "x", "--image", "bad.png")
    assert (java.code, java.out, java.err.count("\n")) == (2, "", 1)
    assert message in java.err
    assert not Path("out.png").exists()


def test_formats_that_java_has_not_are_refused_by_name(bundles: dict[str, Path]) -> None:
    Image.open("in.png").save("in.webp")
    Image.open("in.png").convert("CMYK").save("cmyk.jpg")
    for file, line in (
        ("in.webp", "'in.webp' is a WebP picture; legal: PNG, JPEG"),
        ("cmyk.jpg", "'cmyk.jpg' is a CMYK picture; legal: RGB and grey"),
    ):
        java = jar.run("run", bundles["sr"], "-o", "out.png", "--image", file)
        assert (java.code, java.err) == (2, f"error: {line}\n")


def test_bundles_that_are_damaged(bundles: dict[str, Path], tmp_path: Path) -> None:
    java = jar.run("run", "nothing", "-o", "out.png", *EDIT)
    assert (java.code, java.err) == (3, "error: 'nothing' is not a bundle: no manifest.json\n")
    folder = Path(shutil.copytree(bundles["edit"], tmp_path / "b"))
    data = bytearray((folder / "unet" / "model.onnx").read_bytes())
    data[-3] ^= 1
    (folder / "unet" / "model.onnx").write_bytes(data)
    for words in (("run", folder, "-o", "out.png", *EDIT), ("verify", folder), ("bench", folder)):
        java = jar.run(*words)
        assert (java.code, java.out, java.err.count("\n")) == (3, "", 1)
        assert java.err.startswith("error: rule 6: unet")
    assert not Path("out.png").exists()
