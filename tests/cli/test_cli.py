"""The command line: one line and an exit code for every mistake, JSON alone with --json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mtu_export
from mtu_export import targets
from tests.support.typed import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tflite"], 2, "unknown command 'tflite'; choose from: coreml, executorch, onnx"),
        (["onnx", "--task", "paint"], 2, "unknown task 'paint'; choose from: t2i, edit, sr"),
        (["onnx", "--scheme", "int3", "--task", "sr"], 2, "choose from: fp32, fp16, int8"),
        (["onnx", "--int8", "--fp16", "--task", "sr"], 2, "name one scheme"),
        (["onnx", "--colour"], 2, "No such option: --colour"),
        (["onnx", "--batch", "many"], 2, "Invalid value for '--batch'"),
        (["upcycle", "--arch", "tiny", "--random", "o", "--task", "x"], 2, "task preset 'x'"),
        (["onnx", "-m", "nowhere", "--task", "sr"], 3, "no checkpoint folder 'nowhere'"),
        (["executorch", "--fp16", "--task", "sr"], 2, "use int8 or fp32"),
        (["verify", "nowhere"], 3, "not a bundle"),
        (["upcycle", "--arch", "tiny", "out"], 2, "--arch needs --random"),
        (["upcycle", "--arch", "sd9", "--random", "out"], 2, "unknown architecture 'sd9'"),
        (["upcycle", "nowhere", "out", "--task", "sr"], 3, "no checkpoint folder"),
        (["inspect", "nowhere"], 3, "no checkpoint folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code_, out, err = run(arguments, monkeypatch, capfd)
    assert code_ == code
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["onnx", "--help"], ["--version"], ["list"]])
def test_help_and_list(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(arguments, monkeypatch, capfd)
    assert (code, err) == (0, "")
    assert out


def test_inspect_counts_the_embedded_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["inspect", "--json"], monkeypatch, capfd)
    result = json.loads(out)
    assert code == 0
    assert [entry["task"] for entry in result["tasks"]] == ["t2i", "edit", "sr", "inpaint"]
    kinds = result["parameters"]
    assert sum(kinds.values()) == 2 * kinds["total"]


def test_inspect_titles_the_stage_of_a_proof(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = str(Path(mtu_export.__file__).parents[1] / "runtime/testdata/edit-onnx-int8")
    code, out, _ = run(["inspect", bundle], monkeypatch, capfd)
    assert code == 0
    assert "stage" in out
    assert "rung" not in out


def test_what_a_checkpoint_says_is_text_and_nothing_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny, tmp_path / "[red]x[/b]")
    path = tmp_path / "[red]x[/b]" / "unet" / "config.json"
    config = json.loads(path.read_text())
    config["tasks"][0]["prompt"] = "[/INST] \x1b[2J"
    path.write_text(json.dumps(config))
    code, out, _ = run(["inspect", "[red]x[/b]"], monkeypatch, capfd)
    assert code == 0
    assert "[/INST]" in out
    assert "\x1b[2J" not in out


def test_doctor_compares_with_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["doctor", "--json"], monkeypatch, capfd)
    result = json.loads(out)
    assert code == 0
    states = {entry["package"]: entry for entry in result["packages"]}
    assert states["torch"]["found"] == importlib.metadata.version("torch")
    assert {entry["target"] for entry in result["runners"]} == set(targets.names())

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    _, out, _ = run(["doctor", "--json"], monkeypatch, capfd)
    entry = next(r for r in json.loads(out)["packages"] if r["package"] == "coremltools")
    assert entry["state"] == "missing: pip install 'mtu-export[coreml]'"


def test_an_internal_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mtu_export.cli import report

    def broken() -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(report, "names", broken)
    code, out, err = run(["list"], monkeypatch, capfd)
    assert (code, out) == (70, "")
    assert err == "error: internal error, please report it: RuntimeError: first\n"


@pytest.mark.slow
def test_nothing_is_sent() -> None:
    code = (
        "import os\n"
        "from mtu_export import models\n"
        "models.load('mtu')\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    need = next(
        requirement
        for requirement in importlib.metadata.requires("mtu-export") or ()
        if requirement.startswith("onnxruntime") and "<1.29" in requirement
    )
    assert need
    major, minor, *_ = importlib.metadata.version("onnxruntime").split(".")
    assert (int(major), int(minor)) < (1, 29)


def test_the_environment_is_the_user_s() -> None:
    """An import changes nothing; what loads a library sets what the user has not."""
    code = (
        "import os\n"
        "before = dict(os.environ)\n"
        "import mtu_export, mtu_export.cli\n"
        "from mtu_export import export, resolve, verify\n"
        "assert dict(os.environ) == before\n"
        "from mtu_export.spec import telemetry\n"
        "telemetry.turn_off()\n"
        "assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '0'\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "0"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# ----------------------------------------------------------------- whole commands, as a user types


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mtu_export", *arguments]


@pytest.mark.slow
def test_an_export_prints_json_alone_and_verifies(
    atom: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The export in a process of its own, as a toolchain may write to its streams."""
    export = ["onnx", "-m", str(atom), "--task", "inpaint", "--int8", "--components", "unet"]
    done = subprocess.run(command(*export, "--json"), capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["name"] == "inpaint-onnx-int8"
    assert [entry for entry in result["proof"] if not entry["passed"]] == []
    assert [line for line in done.stderr.splitlines() if not line.startswith("✓")] == []
    code, _, err = run(export, monkeypatch, capfd)
    assert (code, "exists; choose another -o or pass --force" in err) == (2, True)
    code, out, _ = run(["verify", "inpaint-onnx-int8", "--json"], monkeypatch, capfd)
    (entry,) = json.loads(out)
    at_the_export = [v["psnr_db"] for v in result["proof"] if v["stage"] != "folded"]
    assert code == 0
    assert [v["psnr_db"] for v in entry["proof"]] == at_the_export
    assert [(v["part"], v["runner"].partition(" ")[0]) for v in entry["recorded"]] == [
        ("unet", "torch")
    ]
    failing = ["verify", "inpaint-onnx-int8", "--min-psnr", "80", "--json"]
    code, _, err = run(failing, monkeypatch, capfd)
    assert (code, "parity below the floor: unet of task 'inpaint'" in err) == (1, True)
    code, out, _ = run(["inspect", "inpaint-onnx-int8"], monkeypatch, capfd)
    assert (code, "onnxruntime" in out) == (0, True)


def test_a_proof_of_no_part_is_shown_without_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"
    folder = Path(shutil.copytree(source, tmp_path / "b"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for entry in manifest["proof"]:
        entry["part"] = "nobody"
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    code, out, err = run(["verify", str(folder)], monkeypatch, capfd)
    assert (code, "nobody" in out, "error" in err) == (0, True, False)


@pytest.mark.slow
def test_parity_below_the_floor_leaves_nothing(
    atom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", "sr", "--int8", "--min-psnr", "90", "--components", "unet"]
    code, _, err = run(["reference", "-m", str(atom), *arguments], monkeypatch, capfd)
    last = err.splitlines()[-1]
    assert (code, last[:45]) == (1, "error: parity below the floor: unet of task '")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["import PyTorch", "fold", pytest.param("capture", marks=pytest.mark.exhaustive)],
)
def test_interrupting_leaves_nothing(atom: Path, tmp_path: Path, stage: str) -> None:
    child = subprocess.Popen(
        command("reference", "-m", str(atom), "--task", "sr", "--components", "unet"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a background job of a shell inherits "ignore"; a user's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stderr is not None
    for line in child.stderr:
        if stage in line:
            break
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(120) == 130
    assert rest.splitlines()[-1] == "error: interrupted; nothing was written"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
