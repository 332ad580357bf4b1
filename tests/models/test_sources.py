"""What people hold beside plain folders: variants, shards, hub caches, parts from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtu_export import checkpoint, models
from mtu_export.models import sources
from mtu_export.spec import CheckpointError, PlanError
from mtu_export.testing.dense import write_dense

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline; copy it before you change it."""
    return write_dense("atom", tmp_path_factory.mktemp("dense") / "pipeline")


def _half(part: Path, stem: str, *, shards: bool) -> None:
    """The weights of a part as the variant fp16, in place of the plain ones."""
    plain = part / f"{stem}.safetensors"
    tensors = {name: value.half() for name, value in load_file(plain).items()}
    plain.unlink()
    if not shards:
        save_file(tensors, part / f"{stem}.fp16.safetensors")
        return
    names, weight_map = sorted(tensors), {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}.fp16-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, part / file)
        weight_map |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (part / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_read_where_it_is_named(dense: Path, tmp_path: Path, shards: bool) -> None:
    folder = tmp_path / "half"
    shutil.copytree(dense, folder)
    _half(folder / "unet", WEIGHTS, shards=shards)
    _half(folder / "text_encoder", "model", shards=False)
    with pytest.raises(CheckpointError, match=r"has the variant fp16: .*; give --variant fp16"):
        checkpoint.headers(sources.open(folder) / "unet")
    view = sources.open(folder, variant="fp16")
    headers, plain = checkpoint.headers(view / "unet"), checkpoint.headers(dense / "unet")
    assert headers.keys() == plain.keys()
    for name in headers:
        expected = checkpoint.tensor(plain, name).half()
        assert torch.equal(checkpoint.tensor(headers, name), expected)
    dtypes = {h.dtype for h in checkpoint.headers(view / "vae").values()}
    assert dtypes == {"F32"}  # a part without the variant has its plain weights
    model = models.open(view)
    model.require_complete()
    model.require_compatible([part.name for part in model.parts])


def test_a_variant_that_is_not_there(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of the variant 'fp16'; it has none"):
        sources.open(dense, variant="fp16")
    folder = tmp_path / "half"
    shutil.copytree(dense, folder)
    _half(folder / "unet", WEIGHTS, shards=False)
    with pytest.raises(CheckpointError, match="no weights of the variant 'bf16'; it has: fp16"):
        sources.open(folder, variant="bf16")
    with pytest.raises(PlanError, match="--variant takes a name such as fp16"):
        sources.open(folder, variant="../x")


def test_a_hub_cache_given_as_a_folder(dense: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--someone--small-sd"
    for commit in ("abc", "def"):
        shutil.copytree(dense, cache / "snapshots" / commit)
    (cache / "blobs").mkdir()
    (cache / "refs" / "pr").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc\n")
    (cache / "refs" / "pr" / "1").write_text("def")
    assert sources.open(cache) == cache / "snapshots" / "abc"
    for revision in ("pr/1", "def"):
        folder = sources.open(cache, revision)
        assert folder == cache / "snapshots" / "def"
        assert checkpoint.source_of(cache, folder) == ("someone/small-sd", "def")
    with pytest.raises(CheckpointError, match="no snapshot of the revision 'v9': main, pr/1"):
        sources.open(cache, "v9")


def test_parts_from_elsewhere(dense: Path, tmp_path: Path) -> None:
    other = write_dense("atom", tmp_path / "other", seed=1)
    shutil.rmtree(other / "vae")
    shutil.copytree(dense / "vae", tmp_path / "nice-vae")
    with pytest.raises(CheckpointError, match="no vae/"):
        models.open(other).require_complete()
    view = sources.open(other, vae=tmp_path / "nice-vae", text_encoders=[dense], tokenizers=[dense])
    assert view / "vae" == tmp_path / "nice-vae"
    assert view / "text_encoder" == dense / "text_encoder"
    assert view / "unet" == other / "unet"
    model = models.open(view)
    model.require_complete()
    assert f"The vae is {tmp_path.name}/nice-vae." in model.notes
    assert {*checkpoint.sources(view)} >= {other, tmp_path / "nice-vae"}


def test_parts_that_are_not_there(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="--vae: there is no"):
        sources.open(dense, vae=tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"has neither config\.json nor text_encoder/"):
        sources.open(dense, text_encoders=[tmp_path / "empty"])
    with pytest.raises(PlanError, match="--tokenizer takes at most 2 folders, got 3"):
        sources.open(dense, tokenizers=[dense] * 3)


def test_another_prediction_type(dense: Path) -> None:
    view = sources.open(dense, prediction_type="v_prediction")
    config = checkpoint.read_json(view / "scheduler" / "scheduler_config.json")
    assert config["prediction_type"] == "v_prediction"
    assert "as asked for" in models.open(view).notes[-1]
