"""Weights on disk that are damaged, hostile or not safetensors."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from mtu_export import checkpoint
from mtu_export.models.mtu import config as mtu_config
from mtu_export.spec import CheckpointError
from mtu_export.testing import architectures

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_headers_match_the_file(unet: Path) -> None:
    headers = checkpoint.headers(unet)
    header = headers["conv_in.edit.weight"]
    assert (header.dtype, header.shape) == ("F32", (32, 8, 3, 3))
    assert checkpoint.tensor(headers, "conv_in.edit.weight").shape == (32, 8, 3, 3)


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
    "entry",
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
def test_absurd_headers_are_refused(unet: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    (unet / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file: Error while"):
        checkpoint.headers(unet)


def test_a_header_may_begin_as_a_pickle_does(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / WEIGHTS
    save_file({"a": torch.ones(1)}, path, metadata={"pad": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    save_file({"a": torch.ones(1)}, path, metadata={"pad": "x" * (128 - short)})
    assert path.read_bytes()[:1] == b"\x80"
    assert checkpoint.headers(tmp_path)["a"].shape == (1,)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin"])
def test_an_index_cannot_leave_the_folder(unet: Path, name: str) -> None:
    index = unet / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(CheckpointError, match="shard"):
        checkpoint.headers(unet)


def test_shards_hold_no_more_than_asked(tmp_path: Path) -> None:
    tensors = [(f"t{i}", torch.full((100,), float(i))) for i in range(7)]
    checkpoint.write(tmp_path / "w", {"a": 1}, iter(tensors), shard_bytes=900)
    headers = checkpoint.headers(tmp_path / "w")
    assert len({header.file for header in headers.values()}) == 4
    assert all(torch.equal(checkpoint.tensor(headers, name), value) for name, value in tensors)


# ------------------------------------------------------------------- what mutated checkpoints found


def test_a_damaged_header_is_one_printable_line(unet: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    for text, message in (
        ("{" + entry.replace('"a"', r'"a\u001b[2J"') + "}", "is not a tensor name"),
        ("{" + entry.replace("[1]", "[true]") + "}", "not a whole safetensors file"),
        ("{" + entry.replace("F32", r"F\u001b32") + "}", "not a whole safetensors file"),
        ("{" + entry.replace("F32", "I32") + "}", "'a' has dtype 'I32'; legal: F64"),
    ):
        header = text.encode()
        (unet / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.headers(unet)
        assert str(caught.value).isprintable()


def test_an_index_says_where_every_tensor_is(tmp_path: Path) -> None:
    tensors = [(f"t{i}", torch.full((100,), float(i))) for i in range(3)]
    checkpoint.write(tmp_path / "w", {"a": 1}, iter(tensors), shard_bytes=500)
    path = tmp_path / "w" / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text("utf-8"))
    files = sorted(set(index["weight_map"].values()))
    for change, message in (
        ({"t0": files[1]}, "weight_map puts tensor 't0' in"),
        ({"t9": files[0]}, "tensor 't9' .* it is in no file"),
        ({"t0": "é" * 190 + ".safetensors"}, "is not a safetensors file here"),
        ({"t0": 4}, "is not a safetensors file here"),
        ({"t0": "\0.safetensors"}, "is not a safetensors file here"),
    ):
        changed = {**index, "weight_map": index["weight_map"] | change}
        path.write_text(json.dumps(changed), "utf-8")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.headers(tmp_path / "w")


# --------------------------------------------------------------- what people bring: names of files


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "utf-8")


def test_a_git_lfs_pointer_is_called_one(unet: Path) -> None:
    git_lfs_pointer(unet / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"safetensors is a git-lfs pointer.*git lfs pull"):
        checkpoint.headers(unet)
    git_lfs_pointer(unet / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a git-lfs pointer"):
        mtu_config.read_config(unet.parent)


@pytest.mark.parametrize("pickle_beside", [False, True])
@pytest.mark.parametrize("stem", [checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS])
def test_a_variant_is_named_with_what_to_do(tmp_path: Path, stem: str, pickle_beside: bool) -> None:
    if pickle_beside:
        (tmp_path / f"{stem}.bin").touch()
    (tmp_path / f"._{stem}.fp16.safetensors").touch()
    (tmp_path / f"{stem}.fp16.safetensors").touch()
    message = rf"variant fp16: {stem}\.fp16\.safetensors; give --variant fp16"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.headers(tmp_path, stem)


@pytest.mark.parametrize("old", [False, True])
def test_a_sharded_variant_is_named(tmp_path: Path, old: bool) -> None:
    """As diffusers itself writes it, and as it did before 0.28."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config({**architectures.ARCHITECTURES["tiny"]})
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="300KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    for path in files if old else ():
        head, _, shard = path.name.removesuffix(".safetensors").partition(".fp16-")
        path.rename(tmp_path / f"{head}-{shard}.fp16.safetensors")
    with pytest.raises(CheckpointError, match="give --variant fp16"):
        checkpoint.headers(tmp_path)
