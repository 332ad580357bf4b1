"""The command: what it refuses in one line, a dry run, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.typed import run

ROOT = Path(__file__).parents[2]
GOOD = """
model = "{model}"
output = "out"
data = "tests.training.world:four"
steps = 2
batch_size = 1
height = 32
width = 32
state = "state"
log_every = 1
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        (None, [], 2, "no config 'run.toml'"),
        ("steps = 1", [], 2, "run.toml: key 'model' is missing"),
        (GOOD + "colour = 1\n", [], 2, "run.toml: unknown key 'colour'; legal: model, output"),
        (GOOD, ["--steps", "0"], 2, "--steps must be at least 1, got 0"),
        (GOOD, ["--stepz", "1"], 2, "No such option: --stepz"),
        (GOOD.replace("{model}", "nowhere"), [], 3, "no checkpoint folder 'nowhere'"),
        (GOOD.replace("tests.training.world:four", "none:x"), [], 2, "No module named 'none'"),
        (
            GOOD.replace("tests.training.world:four", "os:sep"),
            [],
            2,
            "'str' object is not callable",
        ),
        (GOOD.replace("height = 32", "height = 40"), [], 2, "height must be a multiple of 16"),
        (GOOD.replace('data = "t', 'data_folder = "t'), [], 2, "metadata.jsonl cannot be read"),
        (GOOD.replace("world:four", "world:World"), [], 2, "no sample of task 'edit'; it has: t2i"),
    ],
)
def test_mistakes_are_one_line(
    pipeline: Path,
    text: str | None,
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text.replace("{model}", str(pipeline)), "utf-8")
    if "no sample" in message:
        monkeypatch.setattr("tests.training.world.TASKS", ("t2i",))
        monkeypatch.setattr("tests.training.world.World.__init__.__defaults__", (("t2i",), 1, 32))
    code_of_exit, out, err = run(["train", "run.toml", *arguments], monkeypatch, capfd)
    assert (code_of_exit, out) == (code, "")
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} <= {"run.toml"}


@pytest.mark.slow
def test_a_dry_run_and_a_run(
    four_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = GOOD.replace("{model}", str(four_tasks)) + "cache_latents = true\n"
    (tmp_path / "run.toml").write_text(text, "utf-8")
    monkeypatch.setattr(
        "mtu_export.training.rehearse.__kwdefaults__",
        {"console": None, "force": False, "seconds": 0.1},
    )
    code, out, err = run(["train", "run.toml", "--dry-run", "--state", "s"], monkeypatch, capfd)
    assert code == 0, err
    for name in ("samples/s, all tasks", "hours of 2 steps", "memory at most", "device"):
        assert name in out
    assert {path.name for path in tmp_path.iterdir()} == {"run.toml", "s"}
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"latents", "lock"}
    code, out, err = run(["train", "run.toml", "--state", "s", "--steps", "1"], monkeypatch, capfd)
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err
    assert "step 1 of 1: t2i " in err
    code, _, err = run(["train", "run.toml", "--state", "s"], monkeypatch, capfd)
    assert code == 2
    assert "exists; choose another -o or pass --force" in err


def test_a_folder_of_pictures_is_trained_on(
    four_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "set" / "a.png")
    lines = []
    for task in ("t2i", "edit", "sr", "inpaint", "colourise"):
        line = {"file_name": "a.png", "task": task, "text": "red", "condition": "a.png"}
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "set" / "metadata.jsonl").write_text("".join(lines), "utf-8")
    text = GOOD.replace("{model}", str(four_tasks)).replace("steps = 2", "steps = 1")
    text = text.replace('data = "tests.training.world:four"', 'data_folder = "set"')
    (tmp_path / "run.toml").write_text(text, "utf-8")
    code, out, err = run(["train", "run.toml"], monkeypatch, capfd)
    assert (code, out.strip()) == (0, str(tmp_path / "out")), err
    assert "warning: samples of tasks that are not trained are left out: 1 of colourise" in err
