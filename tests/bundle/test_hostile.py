"""Manifests from somewhere else: each ends as a picture or as one line of ours, never otherwise."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mtu_export import bundle
from mtu_export.bundle import runner, tokenizer, verification
from mtu_export.bundle.goldens import Goldens
from mtu_export.spec import BundleError, MtuExportError
from mtu_export.testing.campaigns.mutations.values import ODD
from tests.bundle.test_generate import request
from tests.support import handmade

Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("hostile") / "fill", "fill")


@pytest.fixture
def copied(valid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(valid, tmp_path / "b"))


SAMPLE: Path_ = ("parts", 2, "inputs", 0)
TEXT_INPUT: Path_ = ("text", "inputs", "encoder_hidden_states")
PASS: Path_ = ("loop", "schedules", "4", "passes", 1)
CASES: list[tuple[Path_, Any, str]] = [
    (("schema_version",), "2.0", "schema 2.0 is not readable"),
    (("target",), "tflite", "unknown target 'tflite'"),
    (("text",), [], "text: must be an object"),
    (("text",), None, "manifest has no loop"),
    (("text",), {}, "key 'inputs' is missing"),
    ((*TEXT_INPUT,), [], "encoder_hidden_states: must have at least 1 item"),
    ((*TEXT_INPUT,), "text_encoder", "encoder_hidden_states: must be a list"),
    ((*TEXT_INPUT, 0), 7, r"encoder_hidden_states\[0\]: must be an object"),
    (
        (*TEXT_INPUT, 0, "component"),
        "vae_encoder",
        "vae_encoder is not an output of a text encoder",
    ),
    ((*TEXT_INPUT, 0, "component"), "../x", "component: must be 'text_encoder'"),
    ((*TEXT_INPUT, 0, "output"), "pooled", "'pooled' of text_encoder is not an output"),
    (("text", "inputs"), {}, "no outputs make the UNet's input"),
    (("text", "tokenizers"), {}, "is not an output of a text encoder"),
    (("text", "tokenizers", "text_encoder"), "../tokenizer", "files has no hash of"),
    (("text", "tokenizers", "text_encoder"), "/etc", "files has no hash of"),
    (("text", "tokenizers", "text_encoder"), "unet", "files has no hash of"),
    (("text", "tokenizers", "text_encoder"), ["tokenizer"], "text_encoder: must be a string"),
    (("files", 1, "path"), "../tokenizer", "leaves the bundle"),
    (("files", 1, "path"), "/etc/passwd", "leaves the bundle"),
    (("files", 1, "path"), "a\x00b", "leaves the bundle"),
    (("files", 1, "path"), 5, r"files\[1\].path: must be a string, got 5"),
    (("files",), [], "files has no hash of"),
    (("parts", 2, "path"), "unet/../unet", "leaves the bundle"),
    (("parts", 2, "entries", "fill"), "../unet/model.onnx", "is not a file of 'unet'"),
    (("parts", 2, "entries", "fill"), "._model.onnx", "is not a file of 'unet'"),
    (("parts", 2, "bytes"), 1, "the manifest says 1"),
    (("parts", 2, "sha256"), "0" * 64, "sha256 differs"),
    (("parts", 2, "inputs"), [], "must have sample, timestep and text"),
    ((*SAMPLE, "shape"), [-1, 9, 2, 3], r"shape\[0\]: must be at least 1, got -1"),
    ((*SAMPLE, "shape"), [2**31, 9, 2, 3], "must be at most 2,147,483,647"),
    ((*SAMPLE, "shape"), [True, 9, 2, 3], "must be an integer, got True"),
    ((*SAMPLE, "shape"), [1] * 10**5, "must have at most 8 items"),
    ((*SAMPLE, "shape"), ["1"], "must be an integer, got '1'"),
    ((*SAMPLE, "shape"), [], "the first input must be"),
    ((*SAMPLE, "shape"), [1, 8, 2, 3], r"the first input must be \[batch, 9, 2, 3\]"),
    ((*SAMPLE, "shape"), [10**6, 9, 2, 3], "the first input must be"),
    ((*SAMPLE, "dtype"), "float64", "must be 'float32' or 'int32'"),
    (("parts", 2, "inputs", 1, "shape"), [10**9], r"timestep, \[1\]"),
    (("parts", 2, "inputs", 2, "shape"), [2, 77, 8], "the batch of a text input must be 1"),
    (("parts", 2, "inputs", 2, "shape"), [1, 77, 10**9], "must be float32 .1, 77, 1000000000"),
    (("parts", 2, "outputs"), [], "the output must be"),
    (("parts", 0, "inputs", 0, "shape"), [1, 2**30], "must take ids"),
    (("parts", 0, "inputs", 0, "shape"), [1, 2], "must take ids"),
    (("parts", 1, "outputs", 0, "shape"), [1, 8, 2, 3], "vae_encoder must make float32"),
    (("parts", 3, "outputs", 0, "shape"), [1, 3, 16, 16], "vae_decoder must make float32"),
    (("image", "height"), 10**9, "height: must be at most 8,192"),
    (("image", "height"), 0, "height: must be at least 1, got 0"),
    (("image", "height"), 20, "is not a multiple of 8"),
    (("image", "width"), 24.5, "width: .*integer"),
    (("image", "fit"), "stretch", "fit: must be 'cover', got 'stretch'"),
    (("image", "range"), [0, 1], r"range: must be \[-1, 1\]"),
    (("image", "filter"), "sharp", "filter: must be 'lanczos', got 'sharp'"),
    (("image", "filter"), ["lanczos"], "filter: must be 'lanczos'"),
    (("mask", "threshold"), 0.2, "threshold: must be at least 0.5"),
    (("mask", "resize"), "bicubic", "resize: must be 'nearest', got 'bicubic'"),
    (("latent", "channels"), 10**6, "channels: must be at most 1,024"),
    (("latent", "factor"), 7, "is not a multiple of 7"),
    (("latent", "scaling_factor"), 0, "scaling_factor: must be at least 1e-06, got 0"),
    (("latent", "scaling_factor"), -0.18, "scaling_factor: must be at least 1e-06"),
    (("latent", "scaling_factor"), 1e-300, "scaling_factor: must be at least 1e-06"),
    (
        ("latent", "scaling_factor"),
        float("nan"),
        "cannot be read as JSON: NaN is not a finite double",
    ),
    (("latent", "scaling_factor"), "0.18", "scaling_factor: must be a number"),
    (("tasks", 0, "conditioning", 0, "kind"), "depth", "kind: must be 'image_latent'"),
    (("tasks", 0, "conditioning", 1, "channels"), 5, "has 5 channels, the latent 4"),
    (("tasks", 0, "conditioning"), [], r"must be \[batch, 4, 2, 3\]"),
    (("tasks", 0, "guidance", "kind"), "more", "kind: must be 'none'"),
    (("tasks", 0, "parts"), [["unet"]], r"parts\[0\]: must be 'text_encoder'"),
    (("tasks", 0, "parts"), ["unet"], "entries: must be those of the tasks that need text_encoder"),
    (("loop", "schedules"), {}, "manifest has no loop"),
    (("loop", "schedules", "4"), 5, "loop.schedules.4: must be an object"),
    (("loop", "schedules", "4", "passes"), [], "passes: must have at least 1 item"),
    (("loop", "schedules", "4", "passes"), [0] * 10**6, r"passes\[0\]: must be an object"),
    ((*PASS, "m", 0), float("nan"), "NaN is not a finite double"),
    ((*PASS, "m", 0), 1e300, "must be at most 1e.09"),
    ((*PASS, "m", 0), "1", "must be a number"),
    ((*PASS, "x"), [1], "must have at least 4 items"),
    ((*PASS, "timestep"), None, "timestep: must be a number"),
    ((*PASS, "input_scale"), 0, "input_scale: must be greater than 0"),
    ((*PASS, "x", 3), 1, "looks back before the start"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "message"), CASES, ids=[f"{i}-{row[0][-1]}" for i, row in enumerate(CASES)]
)
def test_a_manifest_that_is_refused(copied: Path, path: Path_, value: Any, message: str) -> None:
    handmade.edit(copied, *path, value=value)
    with pytest.raises(BundleError, match=message) as caught:
        attempt(copied)
    assert len(str(caught.value)) < 600


def attempt(folder: Path) -> np.ndarray:
    loop = runner.open_loop(bundle.read(folder))
    return runner.generate(loop, request("fill"))[1]


def test_the_valid_one_is_a_picture(copied: Path) -> None:
    """The test of the tests: nothing is refused that was not changed."""
    assert attempt(copied).shape == (1, 3, handmade.HEIGHT, handmade.WIDTH)


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


def test_ids_that_are_not_the_tokenizers(copied: Path) -> None:
    """A row of another folder says nothing; one of this folder must be true."""
    loaded = tokenizer.load(copied / "tokenizer")
    entry = {
        "path": "tokenizer",
        "bos": loaded.bos,
        "eos": loaded.eos,
        "pad": loaded.pad,
        "length": 77,
    }
    handmade.edit(copied, "tokenizers", value=[entry, {**entry, "path": "other", "bos": 7}])
    attempt(copied)
    handmade.edit(copied, "tokenizers", 0, "eos", value=loaded.eos - 1)
    with pytest.raises(BundleError, match="tokenizers: 'tokenizer' has"):
        attempt(copied)


CONSTANT = "empty/encoder_hidden_states"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "it is missing"),
        (np.zeros((1, 77, 9), np.float32), r"it is float32 \[1, 77, 9\]"),
        (np.zeros((77, 8), np.float32), r"it is float32 \[77, 8\]"),
        (np.zeros((1, 77, 8), np.int32), "it is int32"),
        (np.zeros((1, 77, 8), np.float16), "is not finite float32 or int32"),
        (np.full((1, 77, 8), np.nan, np.float32), "is not finite"),
    ],
)
def test_constants_that_are_refused(copied: Path, value: np.ndarray | None, message: str) -> None:
    save_file({} if value is None else {CONSTANT: value}, copied / bundle.CONSTANTS)
    handmade.reseal(copied)
    with pytest.raises(BundleError, match=message):
        attempt(copied)


def test_constants_and_goldens_without_a_hash_are_not_read(copied: Path) -> None:
    tensors = load_file(copied / bundle.CONSTANTS)
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["files"] = [record for record in manifest["files"] if record["path"] == "tokenizer"]
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    assert tensors
    with pytest.raises(BundleError, match="it is missing"):
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


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "tokenizer", "constants.safetensors"])
def test_a_missing_part_is_named(copied: Path, name: str) -> None:
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BundleError, match=rf"'{name}' is missing from the bundle"):
        bundle.read(copied)


def test_a_bundle_without_a_part_of_the_loop_is_read_but_makes_no_picture(copied: Path) -> None:
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["parts"] = [part for part in manifest["parts"] if part["component"] != "vae_encoder"]
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    read = bundle.read(copied)
    with pytest.raises(BundleError, match="has no vae_encoder: task 'fill' needs it"):
        runner.open_loop(read)


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        ([], "vae_encoder"),
        (["text_encoder", "vae_encoder", "vae_decoder"], "unet"),
        (["vae_encoder", "unet", "vae_decoder"], "text_encoder"),
        (["text_encoder", "vae_encoder", "unet"], "vae_decoder"),
    ],
)
def test_a_second_task_that_does_not_name_what_its_loop_needs(
    copied: Path, parts: list[str], missing: str
) -> None:
    manifest = json.loads((copied / bundle.MANIFEST).read_text())
    manifest["tasks"].append({**manifest["tasks"][0], "name": "other", "parts": parts})
    for part in manifest["parts"]:
        part["entries"] |= {"other": "model.onnx"} if part["component"] in parts else {}
    (copied / bundle.MANIFEST).write_text(json.dumps(manifest))
    read = bundle.read(copied)
    with pytest.raises(BundleError, match=f"{missing} has no entry for task 'other'"):
        runner.open_loop(read, "other")
    runner.open_loop(read, "fill")


def test_a_tokenizer_that_makes_other_ids_than_the_encoder_has(copied: Path) -> None:
    """Under a right hash: damaged files are refused, and ids are what they are."""
    (copied / "tokenizer" / "merges.txt").write_text("a b c\n")
    handmade.reseal(copied)
    with pytest.raises(BundleError, match="file invalid at line 1"):
        attempt(copied)


def test_a_model_that_gives_nan_is_no_picture(copied: Path) -> None:
    import onnx
    from onnx import numpy_helper

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


# ------------------------------------------------------------------------------------ at random


def slots(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Where in a JSON value anything can be changed."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from slots(value, (*path, key))


def changed(document: Any, path: Path_, value: Any, delete: bool) -> Any:
    document = copy.deepcopy(document)
    node = document
    for key in path[:-1]:
        node = node[key]
    if delete:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return document


# Names, hashes and costs are read by none; the rest of the manifest is what counts.
INNER = ("text", "latent", "loop", "image", "mask", "tasks", "parts", "files")


@pytest.mark.slow
@settings(
    max_examples=250,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@example(data=None)
def test_any_change_is_a_picture_or_one_line(
    valid: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    manifest = json.loads((valid / bundle.MANIFEST).read_text())
    if data is not None:
        places = [place for place in slots(manifest) if place[0] in INNER or len(place) == 1]
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from(places))
            value, gone = data.draw(st.sampled_from(ODD)), data.draw(st.integers(0, 3)) == 0
            try:
                manifest = changed(manifest, path, value, gone)
            except (KeyError, IndexError, TypeError):
                continue  # the first change took the place of the second away
    folder = tmp_path_factory.mktemp("any") / "b"
    shutil.copytree(valid, folder)
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    try:
        picture = attempt(folder)
    except MtuExportError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 1000
    else:
        assert picture.shape == (1, 3, handmade.HEIGHT, handmade.WIDTH)
        assert np.isfinite(picture).all()
    finally:
        shutil.rmtree(folder)


# --------------------------------------------------------------- what would be read without a hash


def test_a_graph_and_its_weights_lie_in_files_that_are_hashed(copied: Path) -> None:
    """The hash of a folder leaves the Finder's files out, so that no graph may be or name one."""
    import onnx

    from mtu_export.targets.onnx import reading

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


def test_goldens_without_a_hash_are_not_read_whatever_schema_a_manifest_claims(
    copied: Path,
) -> None:
    manifest = json.loads((copied / bundle.MANIFEST).read_text("utf-8"))
    manifest["files"] = [row for row in manifest["files"] if row["path"] != bundle.GOLDENS]
    for version in ("1.0", "1.3"):
        (copied / bundle.MANIFEST).write_text(json.dumps(manifest | {"schema_version": version}))
        with pytest.raises(BundleError, match=r"goldens\.safetensors is not among the files"):
            Goldens(bundle.read(copied))
