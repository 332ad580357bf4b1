"""Files from somewhere else: each ends as a picture or as one line of ours, never otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from mtu_export import bundle
from mtu_export.bundle import goldens, runner, tokenizer, verification
from mtu_export.spec import BundleError, MtuExportError
from mtu_export.targets.onnx import reading
from tests.bundle.test_hostile import attempt, copied, valid
from tests.support import handmade

__all__ = ["copied", "valid"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a": 1, "a": 1, ', "key 'a' appears twice"),
        ('"name": "b", ', "key 'name' appears twice"),
        ('"a": {"b": [1e999]}, ', "1e999 is not a finite double"),
        ('"a": 1' + "0" * 400 + ", ", "is not a finite double"),
        ('"a": -Infinity, ', "-Infinity is not a finite double"),
    ],
)
def test_json_that_readers_would_read_differently(copied: Path, text: str, message: str) -> None:
    file = copied / bundle.MANIFEST
    file.write_text("{" + text + file.read_text("utf-8").lstrip().removeprefix("{"), "utf-8")
    with pytest.raises(BundleError, match=message):
        bundle.read(copied)


def test_a_manifest_that_is_no_object_or_no_text(copied: Path) -> None:
    for data, message in ((b"[]", "does not hold a JSON object"), (b'{"a": "\xff"}', "cannot be")):
        (copied / bundle.MANIFEST).write_bytes(data)
        with pytest.raises(BundleError, match=message):
            bundle.read(copied)


def test_ids_that_are_not_the_tokenizers(copied: Path) -> None:
    """A row of another folder says nothing; one of this folder must be true."""
    loaded = tokenizer.load(copied / "tokenizer")
    ids = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad, "length": 77}
    assert json.loads((copied / bundle.MANIFEST).read_text())["tokenizers"] == [
        {"path": "tokenizer", **ids}
    ]
    attempt(copied)
    for key in ("bos", "eos", "pad"):
        handmade.edit(copied, "tokenizers", 0, key, value=ids[key] - 1)
        with pytest.raises(BundleError, match="tokenizers: 'tokenizer' has"):
            attempt(copied)
        handmade.edit(copied, "tokenizers", 0, key, value=ids[key])


CONSTANT = "empty/encoder_hidden_states"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, f"{CONSTANT!r} is missing"),
        (np.zeros((1, 77, 9), np.float32), r"must be float32 \[1, 77, 8\], it is \[1, 77, 9\]"),
        (np.zeros((77, 8), np.float32), r"it is \[77, 8\]"),
        (np.zeros((1, 77, 8), np.int32), "is int32, not float32"),
        (np.zeros((1, 77, 8), np.float16), "is not finite float32 or int32"),
        (np.full((1, 77, 8), np.nan, np.float32), "is not finite"),
        (np.full((1, 77, 8), -np.inf, np.float32), "is not finite"),
    ],
)
def test_constants_that_are_refused(copied: Path, value: np.ndarray | None, message: str) -> None:
    save_file({} if value is None else {CONSTANT: value}, copied / bundle.CONSTANTS)
    handmade.reseal(copied)
    with pytest.raises(BundleError, match=message):
        attempt(copied)


def test_constants_are_limited(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (copied / bundle.CONSTANTS).stat().st_size
    monkeypatch.setattr(goldens, "LARGEST_CONSTANTS", size)
    attempt(copied)
    monkeypatch.setattr(goldens, "LARGEST_CONSTANTS", size - 1)
    with pytest.raises(BundleError, match=rf"has more than {size - 1:,} bytes"):
        attempt(copied)


OFFSETS: list[tuple[dict[str, Any], str]] = [
    ({"data_offsets": [0, 4]}, "constants.safetensors is damaged"),
    ({"data_offsets": [-4, 2460]}, "constants.safetensors is damaged"),
    ({"data_offsets": [2464, 0]}, "constants.safetensors is damaged"),
    ({"data_offsets": [0, 10**9], "shape": [1, 10**9 // 4, 1]}, "is damaged"),
    ({"shape": [1, 77, 2**62]}, "constants.safetensors is damaged"),
    ({"shape": [1, -77, -8]}, "constants.safetensors is damaged"),
    ({"dtype": "F64", "shape": [1, 77, 4]}, "is not finite float32 or int32"),
    ({"dtype": "X9"}, "constants.safetensors is damaged"),
]


@pytest.mark.parametrize(("change", "message"), OFFSETS, ids=[str(row[0]) for row in OFFSETS])
def test_headers_of_safetensors_that_are_refused(
    copied: Path, change: dict[str, Any], message: str
) -> None:
    path = copied / bundle.CONSTANTS
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[CONSTANT] |= change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    handmade.reseal(copied)
    with pytest.raises(BundleError, match=message):
        attempt(copied)


def test_constants_and_goldens_without_a_hash_are_not_read(copied: Path) -> None:
    tensors = load_file(copied / bundle.CONSTANTS)
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["files"] = [record for record in manifest["files"] if record["path"] == "tokenizer"]
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    assert tensors
    with pytest.raises(BundleError, match="is missing"):
        attempt(copied)
    with pytest.raises(BundleError, match="not among the files of the manifest"):
        verification.verify_bundle(bundle.read(copied))


def test_files_that_the_manifest_does_not_name_are_left_alone(copied: Path) -> None:
    expected = attempt(copied)
    (copied / "notes.txt").write_text("mine")
    (copied / "link").symlink_to("/etc")
    (copied / ".hidden").mkdir()
    np.testing.assert_array_equal(attempt(copied), expected)
    for name in ("unet", "tokenizer"):
        (copied / name / "extra").write_text("x")
        with pytest.raises(BundleError, match=f"{name} has .* bytes"):
            bundle.read(copied)
        (copied / name / "extra").unlink()
    (copied / "tokenizer" / "more").symlink_to("vocab.json")
    with pytest.raises(BundleError, match="link"):
        bundle.read(copied)


@pytest.mark.parametrize(
    "name", ["unet", "vae_decoder", "tokenizer", "constants.safetensors", "goldens.safetensors"]
)
def test_a_missing_part_is_named(copied: Path, name: str) -> None:
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BundleError, match=rf"'{name}' is missing from the bundle"):
        bundle.read(copied)


def test_a_bundle_without_a_part_of_the_loop_is_read_but_makes_no_picture(copied: Path) -> None:
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["parts"] = [part for part in manifest["parts"] if part["name"] != "vae_encoder"]
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    read = bundle.read(copied)
    with pytest.raises(BundleError, match="has no vae_encoder: task 'fill' needs it"):
        runner.open_loop(read)


def test_a_tokenizer_that_makes_other_ids_than_the_encoder_has(copied: Path) -> None:
    """Under a right hash: damaged files are refused, and ids are what they are."""
    path = copied / "tokenizer" / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["model"]["merges"][0] = ["a", "b", "c"]
    path.write_text(json.dumps(document), "utf-8")
    handmade.reseal(copied)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        attempt(copied)


def test_a_model_that_gives_nan_is_no_picture(copied: Path) -> None:
    path = copied / "unet" / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            bad = np.full(numpy_helper.to_array(tensor).shape, np.nan, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(bad, "w"))
    onnx.save(model, path)
    handmade.reseal(copied)
    with pytest.raises(MtuExportError, match=r"pass 0 .* gave NaN or Inf"):
        attempt(copied)


def test_a_graph_and_its_weights_lie_in_files_that_are_hashed(copied: Path) -> None:
    """The hash of a folder leaves the Finder's files out, so that no graph may be or name one."""
    file = copied / "unet" / "model.onnx"
    shutil.copy(file, copied / "unet" / "._model.onnx")
    handmade.edit(copied, "parts", 2, "entries", "fill", value="._model.onnx")
    with pytest.raises(BundleError, match=r"'\._model\.onnx' is not a file of 'unet'"):
        attempt(copied)
    model = onnx.load(file)
    tensor = model.graph.initializer[0]
    (copied / "unet" / "._x").write_bytes(tensor.raw_data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "._x"), ("offset", "0"), ("length", str(len(tensor.raw_data)))):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    for name in ("._x", ".x", "../._x", "a/b", ""):
        tensor.external_data[0].value = name
        file.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError, match="external data leaves the folder"):
            reading.read(copied / "unet", "model.onnx")


def test_a_name_that_does_not_print_is_one_line(copied: Path) -> None:
    """Of a file that is really there, and of an input that the flow names."""
    shutil.move(copied / "unet", copied / "a\n\x1b[2J")
    handmade.edit(copied, "parts", 2, "path", value="a\n\x1b[2J")
    handmade.edit(copied, "parts", 2, "bytes", value=1)
    with pytest.raises(BundleError, match=r"^a\?\?\[2J has 624 bytes, the manifest says 1$"):
        bundle.read(copied)
    sources = {"sources": [{"kind": "guided"}]}
    handmade.edit(copied, "tasks", 0, "flow", "calls", 2, "inputs", "b\nc", value=sources)
    with pytest.raises(BundleError, match=r"inputs\.b\?c: a call 'pass' has no 'guided'$"):
        bundle.read(copied)
