"""The manifest, and bundles from somewhere else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from mtu_export import bundle
from mtu_export.bundle import verification
from mtu_export.bundle.metrics import psnr
from mtu_export.spec import BundleError, PlanError
from mtu_export.spec.catalog import SCHEMES


@pytest.fixture
def copied(onnx_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(onnx_bundle, tmp_path / "b")
    return tmp_path / "b"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def reseal(folder: Path) -> None:
    """Make the manifest fit the files again, as somebody would who edits a bundle."""

    def change(manifest: dict[str, Any]) -> None:
        for entry in (*manifest["parts"], *manifest["files"]):
            path = folder / entry["path"]
            if path.exists():
                entry.update(sha256=bundle.sha256(path), bytes=bundle.size(path))

    edit(folder, change)


@pytest.mark.slow
def test_the_manifest_has_the_keys_of_the_format(onnx_bundle: Path) -> None:
    manifest = json.loads((onnx_bundle / "manifest.json").read_text("utf-8"))
    assert list(manifest) == [
        *("schema_version", "name", "created", "versions", "source", "target", "options"),
        *("scheme", "image", "tasks", "parts", "tokenizers", "latent", "loop", "files", "proof"),
    ]
    assert manifest["name"] == "edit-onnx-int8"
    assert manifest["schema_version"] == "2.0"
    assert manifest["image"] == {"height": 64, "width": 64}
    assert manifest["latent"] == {"channels": 4, "factor": 8}
    task = manifest["tasks"][0]
    assert task["inputs"] == {"pictures": {"image": {"kind": "picture"}}}
    calls = task["flow"]["calls"]
    assert [(call["id"], call["when"]) for call in calls] == [
        *(("text_encoder", "once"), ("vae_encoder", "once")),
        *(("unet", "pass"), ("vae_decoder", "end")),
    ]
    assert calls[2]["inputs"]["sample"]["axis"] == 1
    assert [source["kind"] for source in calls[2]["inputs"]["sample"]["sources"]] == [
        *("latent", "output")
    ]
    part = manifest["parts"][0]
    assert [entry["name"] for entry in part["inputs"]] == [
        "sample",
        "timestep",
        "encoder_hidden_states",
    ]
    assert part["inputs"][0] == {"name": "sample", "shape": [1, 8, 8, 8], "dtype": "float32"}
    assert part["outputs"][0]["name"] == "out_sample"
    assert manifest["scheme"]["weights"] == {"bits": 8, "granularity": "per_channel"}
    kept = {entry["layer"] for entry in manifest["scheme"]["kept_float"]}
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= kept
    assert {entry["stage"] for entry in manifest["proof"]} == {"folded", "quantised"}
    assert part["notes"]["simplifier"] == "none"
    assert part["scheme"] == manifest["scheme"]
    assert [entry["path"] for entry in manifest["files"]] == ["goldens.safetensors"]
    assert manifest["loop"]["scheduler"] == "PNDMScheduler"
    steps = [table["steps"] for table in manifest["loop"]["schedules"]]
    assert steps == [4, 8, 12, 20, 25, 30, 50]
    assert {path.name for path in onnx_bundle.iterdir()} == {
        *("manifest.json", "goldens.safetensors", "README.md", "unet", "model_index.json"),
        "scheduler",
    }


def test_an_app_can_check_itself_with_onnx_runtime_and_numpy_alone(onnx_bundle: Path) -> None:
    """Goldens and file names, read without our code."""
    session = onnxruntime.InferenceSession(str(onnx_bundle / "unet" / "model.onnx"))
    tensors = load_file(onnx_bundle / "goldens.safetensors")
    for case in "012":
        inputs = {i.name: tensors[f"unet/edit/{case}/{i.name}"] for i in session.get_inputs()}
        (actual,) = session.run(["out_sample"], inputs)
        assert psnr(tensors[f"unet/edit/{case}/out_sample"], np.asarray(actual)) > 35


def test_the_artefact_carries_identity_and_nothing_of_the_exporter(onnx_bundle: Path) -> None:
    model = onnx.load(onnx_bundle / "unet" / "model.onnx")
    onnx.checker.check_model(model)
    identity = {entry.key: entry.value for entry in model.metadata_props}
    assert identity["name"] == "edit-onnx-int8"
    assert identity["tasks"] == "edit"
    assert identity["source_sha256"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    text = (onnx_bundle / "unet" / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    codes = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(codes) > 30


def test_folder_hash_is_that_of_the_definition(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"2")
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in (("a", b"2"), ("b/x", b"1"))
    )
    assert bundle.sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_floor_is_the_schemes_whatever_the_bundle_says(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower(manifest: dict[str, Any]) -> None:
        manifest["proof"][1]["floor_db"] = 0.0

    edit(copied, lower)
    (verdict,) = verification.verify_bundle(bundle.read(copied))
    assert verdict.floor_db == SCHEMES["int8"].floor_db
    (verdict,) = verification.verify_bundle(bundle.read(copied), 70.0)
    assert (verdict.passed, verdict.floor_db) == (False, 70.0)
    high = {**SCHEMES, "int8": replace(SCHEMES["int8"], floor_db=80.0)}
    monkeypatch.setattr(verification, "SCHEMES", high)
    (verdict,) = verification.verify_bundle(bundle.read(copied))
    assert verdict.passed is False
    assert verdict.reason == "it was exported with --min-psnr 0: give the same to verify"
    (verdict,) = verification.verify_bundle(bundle.read(copied), 0.0)
    assert verdict.passed is True
    with pytest.raises(PlanError, match="--min-psnr must be from 0 to 300"):
        verification.verify_bundle(bundle.read(copied), -1.0)


def test_changed_weights_fail_even_with_new_hashes(copied: Path) -> None:
    path = copied / "unet" / "model.onnx"
    model = onnx.load(path)
    codes = max(
        (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8),
        key=lambda t: len(t.raw_data),
    )
    codes.raw_data = bytes(len(codes.raw_data))
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"sha256 differs|bytes"):
        bundle.read(copied)

    reseal(copied)
    (verdict,) = verification.verify_bundle(bundle.read(copied))
    assert verdict.passed is False


@pytest.mark.parametrize(
    "path", ["../b/unet", "/etc", "unet/../unet", "", "C:unet", "none", "a\\b", "./unet", "unet/"]
)
def test_paths_that_leave_the_bundle_are_refused(copied: Path, path: str) -> None:
    edit(copied, lambda m: m["parts"][0].update(path=path))
    with pytest.raises(BundleError, match=r"leaves the bundle|is missing|at least 1 character"):
        bundle.read(copied)


def test_links_are_refused(copied: Path) -> None:
    shutil.move(copied / "unet", copied.parent / "elsewhere")
    (copied / "unet").symlink_to(copied.parent / "elsewhere")
    with pytest.raises(BundleError, match="link"):
        bundle.read(copied)
    (copied / "unet").unlink()
    shutil.move(copied.parent / "elsewhere", copied / "unet")
    (copied / "unet" / "config.json").unlink()
    (copied / "unet" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="link"):
        bundle.read(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "1.3"}, "was written by an earlier version; export it again"),
        ({"schema_version": "x"}, "schema_version is missing"),
        ({"parts": {}}, "parts: must be a list"),
        ({"proof": [{"a": 1}]}, r"proof\[0\]: key 'part' is missing"),
        ({"parts": []}, "parts: must have at least 1 item"),
        ({"tasks": []}, "tasks: must have at least 1 item"),
        ({"scheme": {"name": "int8"}}, "scheme: key 'weights' is missing"),
        ({"image": {"height": "1", "width": 1}}, "height: must be an integer"),
        ({"target": "os"}, "unknown target"),
        ({"image": {"height": -1, "width": 1}}, "image.height: must be at least 1"),
    ],
)
def test_manifests_that_are_refused(copied: Path, change: dict[str, Any], message: str) -> None:
    edit(copied, lambda m: m.update(change))
    with pytest.raises(BundleError, match=message):
        verification.verify_bundle(bundle.read(copied))


def test_a_greater_minor_and_its_new_keys_are_read(copied: Path) -> None:
    edit(copied, lambda m: m.update(schema_version="2.7", colour="blue"))
    edit(copied, lambda m: m["proof"][0].update(colour="blue"))
    assert bundle.read(copied).bytes > 0


def test_damaged_goldens_are_refused(copied: Path) -> None:
    path = copied / "goldens.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if "/1/" not in k and "sample" not in k}, path)
    with pytest.raises(BundleError, match=r"goldens.safetensors"):
        bundle.read(copied)
    reseal(copied)
    with pytest.raises(BundleError, match=r"goldens"):
        verification.verify_bundle(bundle.read(copied))
    path.write_bytes(path.read_bytes()[:100])
    reseal(copied)
    with pytest.raises(BundleError, match="damaged"):
        verification.verify_bundle(bundle.read(copied))
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        verification.verify_bundle(bundle.read(copied))


@pytest.mark.parametrize("floor", [-1e9, 1e9])
def test_a_floor_that_is_none_is_refused(copied: Path, floor: float) -> None:
    edit(copied, lambda m: m["proof"][1].update(floor_db=floor))
    with pytest.raises(BundleError, match="floor_db: must be at"):
        verification.verify_bundle(bundle.read(copied))


def test_a_link_in_the_middle_of_a_path_is_refused(copied: Path) -> None:
    shutil.move(copied / "unet", copied.parent / "elsewhere")
    (copied / "a").mkdir()
    (copied / "a" / "link").symlink_to(copied.parent)
    edit(copied, lambda m: m["parts"][0].update(path="a/link/elsewhere"))
    with pytest.raises(BundleError, match="goes through a link"):
        bundle.read(copied)


def test_costs_are_checked(copied: Path) -> None:
    edit(copied, lambda m: m["parts"][0]["cost"].update(parameters="many"))
    with pytest.raises(
        BundleError, match=r"parts\[0\].cost.parameters: must be an integer, got 'many'"
    ):
        bundle.read(copied)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["out_sample", "sample"])
def test_goldens_that_are_not_finite_are_refused(copied: Path, name: str, value: float) -> None:
    """With an infinite reference every output would be near enough."""
    path = copied / "goldens.safetensors"
    tensors = load_file(path)
    tensors[f"unet/edit/1/{name}"][0, 0] = value
    save_file(tensors, path)
    reseal(copied)
    with pytest.raises(BundleError, match="is not finite float32"):
        verification.verify_bundle(bundle.read(copied))


def test_goldens_of_another_dtype_are_refused(copied: Path) -> None:
    path = copied / "goldens.safetensors"
    tensors = load_file(path)
    tensors["unet/edit/1/timestep"] = tensors["unet/edit/1/timestep"].astype(np.float16)
    save_file(tensors, path)
    reseal(copied)
    with pytest.raises(BundleError, match="is not finite float32"):
        verification.verify_bundle(bundle.read(copied))


def test_text_that_is_none_is_refused(copied: Path, tmp_path: Path) -> None:
    edit(copied, lambda m: m["parts"][0].update(path="é" * 200))
    with pytest.raises(BundleError, match="File name too long"):
        bundle.read(copied)
    edit(copied, lambda m: m.update(name="\ud800"))
    with pytest.raises(BundleError, match="surrogates not allowed"):
        bundle.read(copied)
    with pytest.raises(BundleError, match="File name too long"):
        bundle.read(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": {"kind": "text_image", "image": 1.5}}, "guidance: key 'text' is missing"),
        ({"inputs": {"pictures": {"image": {"kind": "map"}}}}, "kind: must be 'picture'"),
        ({"flow": [7]}, r"tasks\[0\].flow: must be an object, got \[7\]"),
        ({"steps": 0}, "steps: must be at least 1, got 0"),
        ({"name": "../edit"}, "name: must match"),
    ],
)
def test_tasks_of_a_manifest_are_tasks(copied: Path, change: dict[str, Any], message: str) -> None:
    edit(copied, lambda m: m["tasks"][0].update(change))
    with pytest.raises(BundleError, match=message):
        bundle.read(copied)
