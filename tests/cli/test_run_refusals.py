"""`mtu-export run` refuses, with one line and the exit code of its kind, before any work."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtu_export import bundle
from tests.bundle.test_pictures import grey_png
from tests.cli.test_run import EDIT, FILL, SHAPE, TRANSLATE, Run, bundles, here, run
from tests.support import handmade

__all__ = ["bundles", "here", "run"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("edit", ("--prompt", "x"), "task 'edit' needs --image FILE"),
        ("edit", EDIT[2:], "task 'edit' needs --prompt TEXT"),
        ("edit", FILL, "task 'edit' takes no --mask"),
        ("fill", EDIT, "task 'fill' needs --mask FILE"),
        ("t2i", EDIT, "task 't2i' takes no --image"),
        ("sr", EDIT, "task 'sr' has its own, ''"),
        ("sr", (*EDIT[2:], "--negative-prompt", "x"), "takes no --negative-prompt: it has no guid"),
        ("translate", (*TRANSLATE, "--negative-prompt", "x"), "takes no --negative-prompt"),
        ("translate", (*TRANSLATE, "--prompt", "x"), "task 'translate' takes no prompt"),
        ("translate", (*TRANSLATE, "--steps", "4"), "task 'translate' takes no --steps"),
        ("translate", (*TRANSLATE, "--seed", "4"), "task 'translate' takes no --seed"),
        ("translate", (*TRANSLATE, "--noise", "l.npy"), "task 'translate' takes no --noise"),
        ("translate", TRANSLATE[:4], "task 'translate' needs --input labels=FILE"),
        ("translate", (*TRANSLATE, "--input", "amount=3"), "amount must be 0 to 2"),
        ("translate", (*TRANSLATE, "--input", "amount=nan"), "amount must be 0 to 2"),
        ("translate", (*TRANSLATE, "--input", "amount=x"), "--input amount: 'x' is no number"),
        ("translate", (*TRANSLATE, "--input", "much=1"), "takes no --input much="),
        ("translate", (*TRANSLATE, "--input", "much"), "--input takes NAME=VALUE, got 'much'"),
        ("translate", (*TRANSLATE[:4], "--input", "labels=in.png"), "not a .npy file of numbers"),
        ("edit", (*EDIT, "--strength", "0.5"), "takes no --strength: it does not start from a pic"),
        (
            "img2img",
            (*EDIT, "--strength", "0.75"),
            "no table for strength 0.75 at 4 steps; it has: 0",
        ),
        ("img2img", (*EDIT, "--strength", "1.5"), "--strength must be from 0 to 1"),
        ("img2img", (*EDIT, "--strength", "0"), "no table for strength 0"),
        ("edit", (*EDIT, "--steps", "3"), "no table for 3 steps; it has: 2, 4"),
        ("edit", (*EDIT, "--steps", "0"), "no table for 0 steps"),
        ("edit", (*EDIT, "--steps", "few"), "Invalid value for '--steps'"),
        ("edit", (*EDIT, "--task", "sr"), "unknown task 'sr'; choose from: edit"),
        ("edit", (*EDIT, "--seed", "-1"), "--seed must be from 0"),
        ("edit", (*EDIT, "--seed", str(2**32)), "--seed must be from 0"),
        ("edit", (*EDIT, "--save-every", "0"), "--save-every must be 1 or more"),
        ("edit", (*EDIT, "--guidance", "nan"), "--guidance must be from -100 to 100"),
        ("edit", (*EDIT, "--image-guidance", "inf"), "--image-guidance must be from"),
        ("t2i", (*EDIT[:2], "--image-guidance", "2"), "guidance of kind 'text' has no such scale"),
        ("sr", (*EDIT[2:], "--guidance", "2"), "guidance of kind 'none' has no such scale"),
        ("edit", (*EDIT[:2], "--image", "none.png"), "no image file 'none.png'"),
        ("edit", (*EDIT[:2], "--image", "."), "'.' is not a file"),
        ("edit", (*EDIT, "--noise", "none.npy"), "--noise none.npy: No such file"),
        ("edit", (*EDIT, "--noise", "."), "--noise . is not a file"),
        ("edit", (*EDIT, "--noise", "in.png"), "in.png: not a .npy file of numbers"),
    ],
)
def test_words_that_are_refused(
    run: Run, name: str, arguments: tuple[str, ...], message: str
) -> None:
    code, printed, err = run(name, *arguments)
    *stages, line = err.splitlines()
    assert (code, printed) == (2, "")
    assert line.startswith("error: ")
    assert message in line
    assert all(stage.startswith("✓") for stage in stages)
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        ("out.gif", 2, "legal suffixes: .png, .jpg, .jpeg, .webp"),
        ("out", 2, "legal suffixes"),
        ("in.png", 2, "output 'in.png' exists"),
        ("link.png", 2, "output 'link.png' exists"),
        ("folder.png", 2, "'folder.png' is a folder"),
        ("in.png/out.png", 2, "in.png' is not a folder"),
        ("x" * 300 + ".png", 2, "File name too long"),
    ],
)
def test_places_that_are_refused_before_any_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, out: str, code: int, message: str
) -> None:
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("nowhere")
    monkeypatch.setattr(bundle, "read", lambda folder: pytest.fail("it was read"))
    exit_code, _, err = run("edit", *EDIT, out=out)
    assert exit_code == code
    assert message in err.splitlines()[-1]
    assert len(err.splitlines()) == 1


def test_force_replaces_a_picture_and_no_folder(run: Run) -> None:
    Path("out.png").write_bytes(b"old")
    assert run("edit", *EDIT)[0] == 2
    assert Path("out.png").read_bytes() == b"old"
    assert run("edit", *EDIT, "--force")[0] == 0
    assert Image.open("out.png").size == (handmade.WIDTH, handmade.HEIGHT)
    Path("folder.png").mkdir()
    assert run("edit", *EDIT, "--force", out="folder.png")[0] == 2


def lying_header() -> bytes:
    """A .npy of 16 bytes whose header says 4 TB."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    return stream.getvalue() + bytes(16)


NAN = np.full(SHAPE, np.nan, np.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(SHAPE), "must hold one float32 array"),
        (np.zeros((1, 4, 3, 2), np.float32), "must hold one float32 array of shape [1, 4, 2, 3]"),
        (np.zeros(SHAPE, ">f4"), "must hold one float32 array"),
        (NAN, "holds NaN or Inf"),
        (np.array([{"a": 1}], object), "not a .npy file of numbers"),
        (b"", "not a .npy file of numbers"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "not a .npy file of numbers"),
        (lying_header(), "not a .npy file of numbers"),
    ],
)
def test_noise_that_is_refused(run: Run, value: Any, message: str) -> None:
    if isinstance(value, bytes):
        Path("n.npy").write_bytes(value)
    else:
        np.save("n.npy", value, allow_pickle=True)
    code, _, err = run("edit", *EDIT, "--noise", "n.npy")
    assert (code, message in err.splitlines()[-1]) == (2, True), err
    assert run("edit", *EDIT, "--noise", "n.npy", "--seed", "1")[0] == 2


def test_archives_of_noise_are_refused(run: Run) -> None:
    np.savez("n.npz", a=np.zeros(SHAPE, np.float32))
    code, _, err = run("edit", *EDIT, "--noise", "n.npz")
    assert (code, "must hold one float32 array" in err) == (2, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an image; legal: PNG"),
        (b"hello", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (grey_png(64, 64), "cannot be read as an image"),
        (grey_png(0, 5), "is not an image"),
        (grey_png(20_000, 5001), "more than 100 megapixels"),
        (grey_png(2**31 - 1, 2**31 - 1), "more than 100 megapixels"),
    ],
    ids=["empty", "text", "eps", "cut", "no pixels", "bomb", "large bomb"],
)
@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_pictures_that_are_none(run: Run, data: bytes, message: str, flag: str) -> None:
    Path("bad.png").write_bytes(data)
    arguments = ["--prompt", "x", "--image", "in.png", "--mask", "m.png"]
    arguments[arguments.index(flag) + 1] = "bad.png"
    code, _, err = run("fill", *arguments)
    line = err.splitlines()[-1]
    assert code == 2
    assert message in line
    assert not Path("out.png").exists()


def test_a_bundle_that_was_edited_or_is_none(
    run: Run, bundles: dict[str, Path], tmp_path: Path
) -> None:
    code, _, err = run(tmp_path / "nothing", *EDIT)
    assert (code, "is not a bundle: no manifest.json" in err) == (3, True)
    folder = Path(shutil.copytree(bundles["edit"], tmp_path / "b"))
    data = bytearray((folder / "unet" / "model.onnx").read_bytes())
    data[-3] ^= 1
    (folder / "unet" / "model.onnx").write_bytes(data)
    code, _, err = run(folder, *EDIT)
    assert (code, err) == (3, "error: unet: sha256 differs from the manifest's\n")
    handmade.edit(folder, "parts", 2, "path", value="../unet")
    code, _, err = run(folder, *EDIT)
    assert (code, err.count("\n")) == (3, 1)
    assert not Path("out.png").exists()
