"""The bundle of contract 2.0 that never changes: still read, verified, and run to its picture."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mtu_export
from mtu_export import bundle, targets
from mtu_export.bundle import images
from mtu_export.bundle.structure import structure_of
from tests.support import independent_loop

HOME = Path(__file__).parents[1] / "frozen" / "2.0"
FROZEN = HOME / "edit-onnx-fp32"
REQUESTS: dict[str, dict[str, Any]] = {
    "edit": {
        "prompt": "a red cat",
        "negative_prompt": "blurred",
        "image": HOME / "image.png",
        "input": (f"hint={HOME / 'hint.png'}", f"labels={HOME / 'labels.npy'}"),
        "noise": HOME / "noise.npy",
        "steps": 4,
        "strength": 1.0,
    },
    "translate": {
        "image": HOME / "image.png",
        "mask": HOME / "mask.png",
        "input": (f"hint={HOME / 'hint.png'}",),
    },
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_no_byte_has_changed() -> None:
    """A failure means that the folder must be put back, not that the hash is old."""
    files = sorted(path for path in HOME.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(HOME).as_posix()}\n"
        for path in files
    ]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest == "6b4948853c914b5f0424d93870e74693a03758646a0855796a69fb94e5e44bfd"
    assert sum(path.stat().st_size for path in files) < 200_000


def test_it_is_read_and_its_files_are_what_it_says() -> None:
    exported = bundle.read(FROZEN)
    assert exported.manifest.schema_version == "2.0"
    assert [task.name for task in exported.tasks] == list(REQUESTS)
    target = targets.load("onnx")
    for part in exported.parts:
        for task, entry in part.entries.items():
            structure = structure_of("onnx", part, task)
            assert structure == target.structure(part.path, entry)


def test_it_verifies() -> None:
    verdicts = mtu_export.verify(FROZEN)
    proved = [verdict for verdict in verdicts if verdict.stage != "loop"]
    assert len(proved) == len(bundle.read(FROZEN).parts) + len(REQUESTS)
    assert all(verdict.passed for verdict in proved)


@pytest.mark.parametrize("task", list(REQUESTS))
def test_it_gives_the_picture_that_it_gave(task: str) -> None:
    picture = mtu_export.run(FROZEN, task=task, **REQUESTS[task]).image
    actual = np.asarray(images.to_image(picture)).astype(int)
    assert np.abs(actual - pixels(HOME / f"{task}.png")).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a blue dog"},
        {"negative_prompt": None},
        {"strength": 0.5, "noise": None},
        {"input": (*REQUESTS["edit"]["input"], "amount=1.5")},
        {"input": (f"hint={HOME / 'image.png'}", REQUESTS["edit"]["input"][1])},
        {"guidance": 1.0},
    ],
)
def test_every_part_of_the_request_counts(changes: dict[str, Any]) -> None:
    """Otherwise the stored picture would say little."""
    picture = mtu_export.run(FROZEN, task="edit", **{**REQUESTS["edit"], **changes}).image
    actual = np.asarray(images.to_image(picture)).astype(int)
    assert np.abs(actual - pixels(HOME / "edit.png")).max() > 2


@pytest.mark.parametrize("task", list(REQUESTS))
def test_the_independent_reader_gives_it_too(task: str, tmp_path: Path) -> None:
    """Written from the contract's page alone, in a process without our modules."""
    command = [sys.executable, "-I", independent_loop.__file__, str(FROZEN), "--task", task]
    for name, value in REQUESTS[task].items():
        for each in value if isinstance(value, tuple) else (value,):
            command += [f"--{name.replace('_', '-')}", str(each)]
    out = tmp_path / "out.png"
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.abs(pixels(out) - pixels(HOME / f"{task}.png")).max() <= 1
