"""runtime/ios from Python: its generated text, the environment, the program's picture."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mtu_export import bundle
from tests.support.tools import missing

RUNTIME = Path(__file__).parents[2] / "runtime"
TESTDATA = RUNTIME / "testdata"
BUNDLE = TESTDATA / "edit-onnx-int8"
REQUEST = json.loads((TESTDATA / "request.json").read_text("utf-8"))


@cache
def toolchain() -> ModuleType:
    path = RUNTIME / "ios" / "toolchain.py"
    specification = importlib.util.spec_from_file_location("mtu_swift_toolchain", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_the_schema_is_what_is_generated() -> None:
    path = RUNTIME / "ios" / "Sources" / "MTUCore" / "Support" / "ManifestSchema.swift"
    schema = json.dumps(bundle.json_schema(), separators=(",", ":"))
    line = path.read_text("utf-8").splitlines()[-1]
    assert line == f'let manifestSchema = ##"{schema}"##', "run: make schema"


def test_linux_is_named_in_one_file_at_most() -> None:
    sources = (RUNTIME / "ios").glob("*/**/*.swift")
    named = [path.name for path in sources if "os(Linux)" in path.read_text("utf-8")]
    assert len(named) <= 1, named


# --------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The program `mtu` with ONNX Runtime, as `make ios` has built it."""
    tools = toolchain()
    swift = tools.find()
    path = tools.BUILD / "debug" / "mtu"
    if swift is None or not path.exists():
        missing("runtime/ios is not built (make swift-env, make ios)")
    swift, environment = tools.with_engine(swift)

    def run(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        mounted = tools.Swift(swift.root, (*swift.mounts, *([folder] if folder else [])))
        return mounted.run([str(path), *words], environment, capture_output=True, timeout=120)

    return run


def difference(one: Path, other: Path) -> np.ndarray:
    pictures = [np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (one, other)]
    assert pictures[0].shape == pictures[1].shape
    return pictures[0] - pictures[1]


def decibels(errors: np.ndarray) -> float:
    rmse = float(np.sqrt(np.mean(errors**2)))
    return 20 * math.log10(255 / rmse) if rmse else math.inf


def pam(path: Path) -> None:
    """The input picture, upright, as a file that the program reads on Linux."""
    image = ImageOps.exif_transpose(Image.open(TESTDATA / "input.png")).convert("RGBA")
    head = f"P7\nWIDTH {image.width}\nHEIGHT {image.height}\nDEPTH 4\nMAXVAL 255\n"
    path.write_bytes(f"{head}TUPLTYPE RGB_ALPHA\nENDHDR\n".encode() + image.tobytes())


def test_the_picture_is_pythons(program: Callable[..., Any], tmp_path: Path) -> None:
    """From the picture file and the seed: decoded here, fitted and drawn by the program."""
    pam(tmp_path / "input.pam")
    output = tmp_path / "out.png"
    words = ["run", str(BUNDLE), "-o", str(output), "--prompt", REQUEST["prompt"], "--json"]
    words += ["--image", str(tmp_path / "input.pam"), "--seed", str(REQUEST["seed"])]
    done = program(*words, "--steps", str(REQUEST["steps"]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["steps"], answer["passes"]) == (4, 5)
    assert answer["picture"] == str(output)
    errors = difference(output, TESTDATA / "expected.png")
    print(f"{np.count_nonzero(errors)} of {errors.size} bytes differ from expected.png")
    assert decibels(errors) >= 60


def test_it_verifies(program: Callable[..., Any]) -> None:
    done = program("verify", str(BUNDLE), "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert [(entry["part"], entry["stage"]) for entry in answer["proof"]][-2:] == [
        ("pipeline", "passes"),
        ("pipeline", "loop"),
    ]
    assert all(entry["passed"] is not False for entry in answer["proof"])


def test_it_measures(program: Callable[..., Any], tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    done = program("bench", str(BUNDLE), "--samples", "3", "-o", str(record), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(record.read_text("utf-8"))
    assert len(answer["samples_s"]) == 3
    assert set(answer["parts_s"]) == {"text_encoder", "vae_encoder", "unet", "vae_decoder"}


def test_a_refused_request_leaves_no_picture(program: Callable[..., Any], tmp_path: Path) -> None:
    done = program("run", str(BUNDLE), "-o", str(tmp_path / "a.png"), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------- the environment


def run_toolchain(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUNTIME / "ios" / "toolchain.py"), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without_swift(tmp_path: Path) -> dict[str, str]:
    """Neither a Swift on the path nor a folder with Debian's."""
    return {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "MTU_REQUIRE_TOOLS": ""}


def test_without_swift_the_check_is_skipped_with_a_line(tmp_path: Path) -> None:
    done = run_toolchain("check", **without_swift(tmp_path))
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: runtime/ios is not built")
    assert "make swift-env" in done.stdout


def test_where_tools_are_required_it_is_an_error(tmp_path: Path) -> None:
    done = run_toolchain("check", **{**without_swift(tmp_path), "MTU_REQUIRE_TOOLS": "1"})
    assert done.returncode == 4
    assert done.stderr.startswith("error: runtime/ios is not built")


def test_making_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = toolchain()
    monkeypatch.setattr(tools, "find", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(tools.ToolchainError, match="needs root"):
        tools.make()
