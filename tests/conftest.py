"""Small random checkpoints and their bundles, made once a run; no network, no shared folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.shared import SharedFolders

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
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedFolders]:
    """What all workers of this run share on disk."""
    base = tmp_path_factory.getbasetemp()
    folders = SharedFolders(
        (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    )
    yield folders
    folders.require_unchanged()


@pytest.fixture(scope="session")
def relight(shared_folders: SharedFolders) -> str:
    """A file with a task that is no preset."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "relight.json").write_text(json.dumps(RELIGHT), "utf-8")

    return str(shared_folders.folder("tasks", RELIGHT, write) / "relight.json")


@pytest.fixture(scope="session")
def make_tiny(shared_folders: SharedFolders, relight: str) -> Callable[..., Path]:
    """A function that writes a random small checkpoint; the same arguments give the same folder.

    Only ``whole`` ones have text encoder, tokenizer, VAE and scheduler beside the UNet.
    """
    from mtu_export.authoring import upcycle
    from mtu_export.models.pipeline import files as pipeline_files

    def make(architecture: str = "tiny", *, whole: bool = False, **options: object) -> Path:
        options.setdefault("tasks", [*TASKS[:-1], relight])

        def write(folder: Path) -> None:
            upcycle.write_random(architecture, folder, **options)  # type: ignore[arg-type]
            if not whole:
                for part in sorted(folder.iterdir()):
                    if part.is_dir() and part.name != "unet":
                        shutil.rmtree(part)
                pipeline_files.write_index(folder, {})

        return shared_folders.folder(architecture, (whole, sorted(options.items())), write)

    return make


@pytest.fixture(scope="session")
def atom(make_tiny: Callable[..., Path]) -> Path:
    """A UNet of one block of each kind: enough where its size is not what is tested."""
    return make_tiny("atom")


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("tiny")


@pytest.fixture(scope="session")
def tiny_sdxl(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("tiny-sdxl")


@pytest.fixture(scope="session")
def atom_pipeline(make_tiny: Callable[..., Path]) -> Path:
    """A whole pipeline with one block of each kind."""
    return make_tiny("atom", whole=True)


@pytest.fixture(scope="session")
def pipeline(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny pipeline."""
    return make_tiny("tiny", whole=True)


@pytest.fixture(scope="session")
def pipeline_sdxl(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny SDXL pipeline."""
    return make_tiny("tiny-sdxl", whole=True)


@pytest.fixture(scope="session")
def taesd_pipeline(shared_folders: SharedFolders) -> Path:
    """A whole dense pipeline with a tiny VAE of two levels, whose config is as published."""
    from mtu_export.testing.campaigns.dense_cases import TINY_VAE
    from mtu_export.testing.dense import write_dense

    levels = {f"{half}_block_out_channels": [8, 8] for half in ("encoder", "decoder")}
    blocks = {"num_encoder_blocks": [1, 2], "num_decoder_blocks": [2, 1]}
    vae = {**TINY_VAE, **levels, **blocks}
    return shared_folders.folder("taesd", vae, lambda out: write_dense("atom", out, vae=vae))


@pytest.fixture(scope="session")
def bundles(shared_folders: SharedFolders, make_tiny: Callable[..., Path]) -> Callable[..., Path]:
    """A function that exports a bundle, once a run for each plan; tests copy it to change it.

    Without ``whole`` the checkpoint is a UNet alone. Not for the reference target, whose bundles
    run only in the process that made them.
    """
    from mtu_export import exporter
    from mtu_export.exporter.options import resolve

    def make(
        target: str = "onnx",
        scheme: str = "int8",
        tasks: Sequence[str] = ("edit",),
        architecture: str = "atom",
        *,
        whole: bool = False,
        **options: object,
    ) -> Path:
        settings: dict[str, object] = {"target": target, "scheme": scheme, "task": list(tasks)}
        settings |= {"model": make_tiny(architecture, whole=whole), **options}

        def export(out: Path) -> None:
            exporter.export(resolve(out=out, **settings))  # type: ignore[arg-type]

        name = f"{'-'.join(tasks)}-{target}-{scheme}"
        return shared_folders.folder(name, sorted(settings.items()), export)

    return make


@pytest.fixture(scope="session")
def onnx_bundle(bundles: Callable[..., Path]) -> Path:
    """An int8 ONNX bundle of `edit`; tests copy it before they change it."""
    return bundles("onnx", "int8", ("edit",))
