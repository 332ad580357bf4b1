"""Tiny checkpoints, made once a session; no network, no shared folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

RELIGHT = {
    "name": "relight",
    "conditioning": [
        {"kind": "image", "channels": 3},
        {"kind": "image_latent", "channels": 4, "scaled": False},
    ],
    "guidance": {"kind": "text", "text": 6.0},
    "steps": 12,
    "prompt": None,
}
"""A task that is no preset."""
TASKS = ("t2i", "edit", "sr", "inpaint", "fill", "relight")


@pytest.fixture(scope="session")
def relight(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tasks") / "relight.json"
    path.write_text(json.dumps(RELIGHT), "utf-8")
    return str(path)


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory, relight: str) -> Callable[..., Path]:
    """A function that writes a random tiny checkpoint; the same arguments give the same folder.

    Only ``whole`` ones have text encoder, tokenizer, VAE and scheduler beside the UNet.
    """
    from mtu_export.authoring import upcycle
    from mtu_export.checkpoint import pipeline_files

    made: dict[str, Path] = {}

    def make(architecture: str = "tiny", *, whole: bool = False, **words: object) -> Path:
        words.setdefault("tasks", [*TASKS[:-1], relight])
        key = f"{architecture} {whole} {sorted(words.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / architecture
            upcycle.write_random(architecture, folder, **words)  # type: ignore[arg-type]
            for part in () if whole else sorted(folder.iterdir()):
                if part.is_dir() and part.name != "unet":
                    shutil.rmtree(part)
            if not whole:
                pipeline_files.write_index(folder, {})
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("tiny")


@pytest.fixture(scope="session")
def tiny_sdxl(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("tiny-sdxl")


@pytest.fixture(scope="session")
def pipeline(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny pipeline."""
    return make_tiny("tiny", whole=True)


@pytest.fixture(scope="session")
def pipeline_sdxl(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny SDXL pipeline."""
    return make_tiny("tiny-sdxl", whole=True)


@pytest.fixture(scope="session")
def onnx_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 ONNX bundle of `edit`; tests copy it before they change it."""
    from mtu_export import exporter
    from mtu_export.exporter import options

    out = tmp_path_factory.mktemp("bundle") / "edit-onnx-int8"
    exporter.export(options.resolve(target="onnx", model=tiny, task="edit", scheme="int8", out=out))
    return out
