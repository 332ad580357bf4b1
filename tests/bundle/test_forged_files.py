"""Files of a bundle that hang a reader, or say other than they are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mtu_export import bundle
from mtu_export.bundle import images, verification
from mtu_export.bundle.goldens import save_tensors
from mtu_export.spec import BundleError, PlanError
from mtu_export.targets.onnx import reading
from tests.support import handmade


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "bundle", "edit")


def entry_of(folder: Path, path: str) -> tuple[str | int, ...]:
    files = bundle.read_manifest(folder).files
    return ("files", next(i for i, file in enumerate(files) if file.path == path))


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_special_file_is_refused_and_not_opened(
    forged: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forged / bundle.CONSTANTS
    path.unlink()
    monkeypatch.chdir(forged)  # a socket's path is short
    if kind == "pipe":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(bundle.CONSTANTS)
    handmade.edit(forged, *entry_of(forged, bundle.CONSTANTS), "bytes", value=0)
    with pytest.raises(BundleError, match="is a special file: refused"):
        bundle.read(forged)


def test_a_file_of_a_terabyte_is_refused_before_it_is_hashed(forged: Path) -> None:
    with (forged / bundle.CONSTANTS).open("r+b") as stream:
        stream.truncate(10**12)
    handmade.edit(forged, *entry_of(forged, bundle.CONSTANTS), "bytes", value=10**12)
    with pytest.raises(BundleError, match=r"bytes: must be at most 256,000,000, got 1,000,000"):
        bundle.read(forged)


def test_a_part_that_is_larger_than_any_is_refused(forged: Path) -> None:
    handmade.edit(forged, "parts", 0, "bytes", value=64 * 10**9 + 1)
    with pytest.raises(BundleError, match=r"parts\[0\].bytes: must be at most 64,000,000,000"):
        bundle.read(forged)


def rewrite(folder: Path, node: onnx.NodeProto, **weights: np.ndarray) -> None:
    """Put one node before the decoder's graph, whose own nodes stay."""
    path = folder / "vae_decoder" / "model.onnx"
    model = onnx.load(path)
    model.graph.node.insert(0, node)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items())
    onnx.save(model, path)
    handmade.reseal(folder)


def test_a_loop_in_a_graph_is_refused(forged: Path) -> None:
    truth = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["more_in"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("more_in", TensorProto.BOOL, []),
        ],
        [truth],
    )
    loop = helper.make_node("Loop", ["turns", "go"], [], body=body)
    rewrite(forged, loop, turns=np.array(2**62), go=np.array(True))
    with pytest.raises(BundleError, match="a loop or a branch, which no export writes"):
        reading.structure(forged / "vae_decoder", "model.onnx")


def test_a_branch_that_hides_a_file_is_refused(forged: Path) -> None:
    """A sparse weight of an otherwise empty branch may name a file that no hash covers."""
    values = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1])
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="._w")
    branch = onnx.GraphProto(name="branch")
    branch.output.add(name="s")
    branch.sparse_initializer.add(
        values=values, indices=numpy_helper.from_array(np.array([0])), dims=[1]
    )
    node = helper.make_node("If", ["go"], ["s"], then_branch=branch, else_branch=branch)
    rewrite(forged, node, go=np.array(True))
    with pytest.raises(BundleError, match="a loop or a branch, which no export writes"):
        reading.structure(forged / "vae_decoder", "model.onnx")


def test_a_scheme_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    """The scheme chooses the floor, so a float part cannot be called int8."""
    source = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"
    folder = tmp_path / "bundle"
    handmade.copy(source, folder)
    parts = bundle.read_manifest(folder).parts
    index = next(i for i, part in enumerate(parts) if "vae_decoder" in part.path)
    handmade.edit(folder, "parts", index, "scheme", "name", value="int8")
    with pytest.raises(BundleError, match="its scheme is int8, the file has no such weights"):
        verification.verify_bundle(bundle.read(folder))
    handmade.edit(folder, "parts", index, "scheme", "name", value="fp32")
    handmade.edit(folder, "parts", index, "scheme", "activations", value="dynamic_int8")
    with pytest.raises(BundleError, match="onnx quantises no activations"):
        verification.verify_bundle(bundle.read(folder))


def test_a_whole_bundle_without_loop_goldens_is_not_a_pass(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"
    folder = tmp_path / "bundle"
    handmade.copy(source, folder)
    goldens = bundle.Goldens(bundle.read(folder))
    kept = {name: goldens.tensors[name] for name in goldens.tensors if not name.startswith("loop/")}
    save_tensors(kept, folder / bundle.GOLDENS)
    proof = [v.to_json() for v in bundle.read_manifest(folder).proof]
    parts_alone = [v for v in proof if "pipeline" not in v.values()]
    handmade.edit(folder, "proof", value=parts_alone)
    handmade.reseal(folder)
    verdicts = verification.verify_bundle(bundle.read(folder))
    (loop,) = [v for v in verdicts if v.stage == "passes"]
    assert loop.passed is None
    assert loop.reason == "goldens.safetensors holds no loop of it"


@pytest.mark.parametrize("call", [images.upright_rgb, images.upright_size])
def test_damaged_exif_is_one_line(tmp_path: Path, call: object) -> None:
    path = tmp_path / "bad.png"
    Image.new("RGB", (30, 20)).save(path, exif=b"Exif\0\0garbage-garbage-garb")
    with pytest.raises(PlanError, match="the EXIF data of the image is damaged"):
        call(images.read(path))  # type: ignore[operator]
