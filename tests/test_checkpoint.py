"""Weights on disk that are damaged, hostile or not safetensors."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    return tmp_path / "unet"


def test_headers_match_the_file(unet: Path) -> None:
    found = checkpoint.headers(unet)
    row = found["conv_in.edit.weight"]
    assert (row.dtype, row.shape) == ("F32", (32, 8, 3, 3))
    assert checkpoint.tensor(found, "conv_in.edit.weight").shape == (32, 8, 3, 3)


def test_a_pickle_is_refused_and_never_opened(unet: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('opened')",)

    (unet / WEIGHTS).unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"model\.bin is a pickle: refused"):
        checkpoint.headers(unet)
    (unet / "diffusion_pytorch_model.bin").rename(unet / WEIGHTS)
    with pytest.raises(CheckpointError, match="is a pickle, not safetensors"):
        checkpoint.headers(unet)
    torch.save({"a": torch.zeros(1)}, unet / WEIGHTS)
    with pytest.raises(CheckpointError, match="is a pickle, not safetensors"):
        checkpoint.headers(unet)


@pytest.mark.parametrize("keep", [0, 7, 9, 500, -1])
def test_a_cut_file_is_refused(unet: Path, keep: int) -> None:
    data = (unet / WEIGHTS).read_bytes()
    (unet / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"whole safetensors|is cut|damaged"):
        checkpoint.headers(unet)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F8", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32"},
        7,
    ],
)
def test_absurd_headers_are_refused(unet: Path, row: object) -> None:
    header = json.dumps({"a": row}).encode()
    (unet / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="'a'"):
        checkpoint.headers(unet)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin"])
def test_an_index_cannot_leave_the_folder(unet: Path, name: str) -> None:
    index = unet / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(CheckpointError, match="shard"):
        checkpoint.headers(unet)


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no unet/ folder"):
        checkpoint.read_config(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoint.locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="neither a folder nor reachable"):
        checkpoint.locate("nobody/nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.locate(tmp_path / "file")
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        checkpoint.read_config(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        checkpoint.read_config(tmp_path)


def test_a_hub_id_is_read_from_the_hub_cache(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    home = tmp_path / "models--someone--shapes-mtu"
    shutil.copytree(tiny, home / "snapshots" / "abc123")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert checkpoint.locate("someone/shapes-mtu") == home / "snapshots" / "abc123"
    (home / "refs" / "v2").write_text("def456")
    shutil.copytree(tiny, home / "snapshots" / "def456")
    found = checkpoint.locate("someone/shapes-mtu", "v2")
    assert found == home / "snapshots" / "def456"


def test_shards_hold_no_more_than_asked(tmp_path: Path) -> None:
    rows = [(f"t{i}", torch.full((100,), float(i))) for i in range(7)]
    checkpoint.write(tmp_path / "w", {"a": 1}, iter(rows), shard_bytes=900)
    found = checkpoint.headers(tmp_path / "w")
    assert len({row.file for row in found.values()}) == 4
    assert all(torch.equal(checkpoint.tensor(found, name), value) for name, value in rows)


def test_stock_defaults_are_those_of_diffusers() -> None:
    import inspect

    from diffusers import UNet2DConditionModel

    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    for key, value in checkpoint.STOCK_DEFAULTS.items():
        default = stock[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": 10**9},
        {"block_out_channels": [10**12]},
        {"block_out_channels": "wide"},
        {"block_out_channels": []},
        {"in_channels": True},
        {"cross_attention_dim": [1, 2]},
        {"num_experts": 10**6},
        {"norm_num_groups": 10**30},
    ],
)
def test_absurd_sizes_are_refused_at_once(unet: Path, change: dict[str, object]) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), "utf-8")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        checkpoint.read_config(unet.parent)
