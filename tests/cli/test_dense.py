"""A dense pipeline as a new user types it: what is printed, what is refused, in plain words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtu_export.testing.dense import write_dense
from tests.support.shared import SharedFolders
from tests.support.typed import run

pytestmark = pytest.mark.slow
Typed = Callable[..., tuple[str, str]]
PROMPT = ["--prompt", "a red circle on a table"]


@pytest.fixture(scope="session")
def dense(shared_folders: SharedFolders) -> Path:
    """A whole pipeline of one block of each kind."""
    return shared_folders.folder("dense", "atom", lambda out: write_dense("atom", out))


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Typed:
    """A function that runs a command and returns what it prints; the exit code must be ``code``."""
    monkeypatch.chdir(tmp_path)

    def type_(*words: object, code: int = 0) -> tuple[str, str]:
        actual, out, err = run([str(word) for word in words], monkeypatch, capfd)
        assert actual == code, err
        return out, err

    return type_


def refused(err: str, message: str) -> None:
    *stages, line = err.splitlines()
    assert all(stage.startswith(("✓", "✗")) for stage in stages)
    assert line.startswith("error: ")
    assert message in line


def test_a_pipeline_is_exported_run_verified_and_shown(typed: Typed, dense: Path) -> None:
    out, err = typed("onnx", "-m", dense, "--int8", "-o", "sd")
    card = Path("sd/README.md").read_text("utf-8")
    assert "| unet | t2i | quantised |" in card
    assert "nothing was folded" in card
    printed = out + err
    for words in (("verify", "sd"), ("inspect", "sd"), ("inspect", dense)):
        printed += "".join(typed(*words))
    assert "fold" not in printed
    assert "router" not in printed
    assert "img2img" in printed
    typed("run", "sd", *PROMPT, "-o", "plain.png")
    typed("run", "sd", *PROMPT, "--negative-prompt", "a table", "-o", "other.png")
    assert Path("plain.png").read_bytes() != Path("other.png").read_bytes()
    _, err = typed("run", "sd", *PROMPT, "--strength", 0.5, "-o", "x.png", code=2)
    refused(err, "task 't2i' takes no --strength: it does not start from a picture")


def test_a_start_from_a_picture_by_strengths_that_were_baked(typed: Typed, dense: Path) -> None:
    tasks = ("--task", "t2i", "--task", "img2img", "--fp16")
    typed("onnx", "-m", dense, *tasks, "--bake-steps", "4,8", "--bake-strengths", "0.5,0.75")
    folder = "t2i+img2img-onnx-fp16"
    manifest = json.loads(Path(folder, "manifest.json").read_text("utf-8"))
    (unet,) = (part for part in manifest["parts"] if part["name"] == "unet")
    assert set(unet["entries"]) == {"t2i", "img2img"}
    assert len(set(unet["entries"].values())) == 1  # one graph on one set of weights
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save("in.png")
    start = ("run", folder, "--task", "img2img", *PROMPT, "--steps", 8)
    out, _ = typed(*start, "--image", "in.png", "--strength", 0.5, "-o", "out.png", "--json")
    assert json.loads(out)["passes"] == 5  # half of 8, and the one more of PNDM
    out, _ = typed(*start, "--image", "in.png", "-o", "default.png", "--json")
    assert json.loads(out)["passes"] == 7  # 0.75 is nearest to the task's own
    _, err = typed(*start, "--image", "in.png", "--strength", 0.6, "-o", "no.png", code=2)
    refused(err, "the bundle has no table for strength 0.6 at 8 steps; it has: 0.5, 0.75")
    _, err = typed(*start, "-o", "no.png", code=2)
    refused(err, "task 'img2img' needs --image FILE")
    assert not Path("no.png").exists()


@pytest.mark.parametrize("target", ["coreml", "executorch"])
def test_the_other_targets_take_it(typed: Typed, dense: Path, target: str) -> None:
    tasks = ("--task", "t2i", "--task", "img2img")
    words = ("--bake-steps", "4", "--bake-strengths", "0.5", "--int8", "-o", "b")
    typed(target, "-m", dense, *tasks, *words)
    out, _ = typed("verify", "b")
    assert "passed" in out
    assert "FAILED" not in out
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save("in.png")
    typed("run", "b", "--task", "t2i", *PROMPT, "--negative-prompt", "blue", "-o", "t2i.png")
    typed("run", "b", "--task", "img2img", *PROMPT, "--image", "in.png", "-o", "img2img.png")
    assert Path("t2i.png").read_bytes() != Path("img2img.png").read_bytes()


def test_it_is_still_a_source_to_upcycle(typed: Typed, dense: Path) -> None:
    typed("upcycle", dense, "mtu", "--task", "t2i", "--task", "edit", "--experts", 2, "--rescale")
    out, _ = typed("inspect", "mtu")
    assert "expert weights" in out
    _, err = typed("onnx", "-m", "mtu", "-o", "no", code=2)
    refused(err, "name a --task; this checkpoint has: t2i, edit")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("diffusers",), 2, "has nothing to fold: its UNet is a stock one"),
        (("onnx", "--task", "edit"), 2, "unknown task 'edit'; choose from: t2i, img2img"),
        (("onnx", "--bake-strengths", "0.5,2"), 2, "--bake-strengths must be from 0.01 to 1, got"),
        (("onnx", "--bake-strengths", "0.5;1"), 2, "--bake-strengths takes numbers, such as 0.4"),
        (
            ("onnx", "--task", "img2img", "--bake-steps", "2", "--bake-strengths", "0.1"),
            2,
            "no strength leaves a pass of any step count",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(
    typed: Typed, dense: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    _, err = typed(words[0], "-m", dense, *words[1:], "-o", "out", code=code)
    refused(err, message)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"_class_name": "DDIMScheduler", "clip_sample": True},
            2,
            "clip_sample is on; set it to false in scheduler/scheduler_config.json",
        ),
        ({"_class_name": "CMStochasticIterativeScheduler"}, 2, "CMStochasticIterativeScheduler"),
    ],
)
def test_a_scheduler_that_no_table_holds_is_one_line(
    typed: Typed, dense: Path, changes: dict[str, object], code: int, message: str
) -> None:
    folder = Path(shutil.copytree(dense, "changed"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    _, err = typed("onnx", "-m", folder, "-o", "out", "--bake-steps", "8", code=code)
    refused(err, message)
    assert not Path("out").exists()


def test_a_negative_prompt_needs_guidance(typed: Typed, tmp_path: Path) -> None:
    trailing = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    write_dense("atom", tmp_path / "turbo", scheduler=trailing)
    typed("onnx", "-m", "turbo", "--int8", "-o", "b", "--bake-steps", "1,4")
    typed("run", "b", *PROMPT, "--steps", 1, "-o", "out.png")
    _, err = typed("run", "b", *PROMPT, "--negative-prompt", "blue", "-o", "no.png", code=2)
    refused(err, "task 't2i' takes no --negative-prompt: it has no guidance by text")
    _, err = typed("run", "b", *PROMPT, "--guidance", 7, "-o", "no.png", code=2)
    refused(err, "--guidance: guidance of kind 'none' has no such scale")
