"""What works where PyTorch is not installed, and which extra the rest names.

The packages are there in this environment: a hook refuses their import, as Python would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtu_export.spec import ToolchainMissing, extras

TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata"
EXPORT_ONLY = ("torch", "diffusers", "transformers", "onnxscript", "onnx_ir", "re2", "psutil")

COMMAND = """
import sys

missing = set(sys.argv[1].split(","))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from mtu_export import cli
sys.argv = ["mtu-export", *sys.argv[2:]]
cli.main()
"""
"""Our command in an interpreter without some packages."""


def run(
    *arguments: str | Path, without: Sequence[str] = EXPORT_ONLY
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, ",".join(without), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_verifies() -> None:
    ended = run("verify", TESTDATA / "edit-onnx-int8")
    assert ended.returncode == 0, ended.stderr
    assert "edit-onnx-int8" in ended.stdout


def test_a_bundle_runs(tmp_path: Path) -> None:
    """The picture is the committed one."""
    request = json.loads((TESTDATA / "request.json").read_text("utf-8"))
    out = tmp_path / "out.png"
    ended = run(
        *("run", TESTDATA / request["bundle"], "--prompt", request["prompt"]),
        *("--image", TESTDATA / request["image"], "--steps", str(request["steps"])),
        *("--seed", str(request["seed"]), "-o", out),
    )
    assert ended.returncode == 0, ended.stderr
    expected = np.asarray(Image.open(TESTDATA / request["picture"])).astype(np.float32)
    actual = np.asarray(Image.open(out)).astype(np.float32)
    assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize("command", [("list",), ("doctor",), ("inspect", "BUNDLE")])
def test_what_reads_alone_works(command: Sequence[str]) -> None:
    arguments = [str(TESTDATA / "edit-onnx-int8") if a == "BUNDLE" else a for a in command]
    ended = run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "without", "package", "extra"),
    [
        (("onnx", "--task", "inpaint"), EXPORT_ONLY, "torch", "export"),
        (("coreml", "--task", "inpaint"), EXPORT_ONLY, "torch", "export"),
        (("executorch", "--task", "inpaint"), EXPORT_ONLY, "torch", "export"),
        (("diffusers", "--task", "inpaint"), EXPORT_ONLY, "torch", "export"),
        (("onnx", "--task", "inpaint"), ("onnxscript",), "onnxscript", "export"),
        (("coreml", "--task", "inpaint"), ("coremltools",), "coremltools", "coreml"),
        (("executorch", "--task", "inpaint"), ("executorch",), "executorch", "executorch"),
        (("upcycle", "--arch", "tiny", "--random", "OUT"), EXPORT_ONLY, "torch", "export"),
        (("inspect", "--plot", "x.png"), ("matplotlib",), "matplotlib", "plot"),
        (("verify", "BUNDLE"), ("onnxruntime",), "onnxruntime", "onnx"),
        (("verify", "BUNDLE"), ("onnx",), "onnx", "onnx"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    arguments: Sequence[str], without: Sequence[str], package: str, extra: str, tmp_path: Path
) -> None:
    bundle = str(TESTDATA / "edit-onnx-int8")
    places = {"BUNDLE": bundle, "OUT": str(tmp_path / "out")}
    output = ["-o", places["OUT"]] if arguments[1] == "--task" else []
    ended = run(
        *(places.get(argument, argument) for argument in arguments), *output, without=without
    )
    assert ended.stderr.splitlines()[-1:] == [
        f"error: {package} is not installed; get it with: pip install 'mtu-export[{extra}]'"
    ]
    assert ended.returncode == 4
    assert list(tmp_path.iterdir()) == []


def test_a_failed_import_of_ours_is_no_missing_package() -> None:
    assert extras.missing_package(ModuleNotFoundError("x", name="mtu_export.nothing")) is None
    assert extras.missing_package(ImportError("torch is broken", name="torch")) is None
    missing = extras.missing_package(ModuleNotFoundError("x", name="torch.nn"))
    assert isinstance(missing, ToolchainMissing)
