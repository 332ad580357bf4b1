"""Core ML bundles proved away from a Mac: verify, its runners, flipped bytes, a picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, metrics, verification
from mtu_export.spec import ToolchainError, UnknownName
from mtu_export.targets.coreml import mil, native, package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def whole(bundles: Callable[..., Path]) -> Path:
    """All parts, int8."""
    return bundles("coreml", "int8", ("inpaint",), whole=True)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def _rehash(folder: Path) -> Bundle:
    """Recompute the manifest's hashes and sizes of parts, as a forger would."""
    manifest = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
    for part in manifest["parts"]:
        part["sha256"] = bundle.sha256(folder / part["path"])
        part["bytes"] = bundle.size(folder / part["path"])
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return bundle.read(folder)


def _without_loop(exported: Bundle, component: str) -> Bundle:
    """One part of the bundle, and no task whose loop would run."""
    alone = exported.manifest.model_copy(update={"tasks": ()})
    return replace(exported, parts=(exported.part(component),), manifest=alone)


def test_an_export_is_proved_by_figures(whole: Path) -> None:
    proof = bundle.read(whole).proof
    assert {verdict.part for verdict in proof} >= {
        "text_encoder",
        "vae_encoder",
        "unet",
        "pipeline",
    }
    for verdict in proof:
        assert verdict.passed or verdict.stage == "loop", verdict
        assert verdict.psnr_db is not None
        if verdict.stage != "folded":
            assert str(verdict.runner).startswith("mil-evaluator ")


def test_verify_finds_the_same_figures(whole: Path) -> None:
    exported = bundle.read(whole)
    before = {(v.part, v.stage): v.psnr_db for v in exported.proof}
    for verdict in verification.verify_bundle(exported):
        assert verdict.passed or verdict.stage == "loop", verdict
        if verdict.stage != "witness":
            assert verdict.psnr_db == pytest.approx(before[verdict.part, verdict.stage], abs=0.5)


def _blobs(path: Path) -> list[tuple[int, int, str]]:
    """First byte, length and type of every weight of a package."""
    file, blobs = path / "Data" / package.WEIGHT_FILE, []
    model: Any = package.parse(path)
    function = model.mlProgram.functions["main"]
    with file.open("rb") as weights:
        for operator in function.block_specializations[function.opset].operations:
            for value in operator.attributes.values():
                if value.WhichOneof("value") == "blobFileValue":
                    kind = package.shape_of(value.type.tensorType, "")[1]
                    size = file.stat().st_size
                    blobs.append((*package.find_blob(value, weights, size, ""), kind))
    return blobs


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae_decoder"])
def test_a_flipped_byte_fails_parity_with_hashes_recomputed(
    component: str, whole: Path, tmp_path: Path
) -> None:
    """Any code, and the high byte of any floating point weight, each alone in a copy.

    Rows of the token embedding that no prompt of the goldens reads are left out.
    """
    part = bundle.read(whole).part(component)
    blobs = _blobs(part.path)[1 if component == "text_encoder" else 0 :]
    random = np.random.default_rng(1)
    chances = np.array([length for _, length, _ in blobs]) / sum(blob[1] for blob in blobs)
    for number in range(4):
        start, length, kind = blobs[random.choice(len(blobs), p=chances)]
        place = int(random.integers(length))
        place |= {"FLOAT16": 1, "FLOAT32": 3}.get(kind, 0)
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        file = folder / part.path.name / "Data" / package.WEIGHT_FILE
        data = bytearray(file.read_bytes())
        data[start + place] ^= 0xFF
        file.write_bytes(data)
        exported = _rehash(folder)
        verdicts = verification.verify_bundle(_without_loop(exported, component))
        assert metrics.failure(verdicts) is not None, (kind, place, verdicts)


def test_runners_by_name(whole: Path) -> None:
    exported = _without_loop(bundle.read(whole), "unet")
    with pytest.raises(UnknownName, match="choose from: coreml, mil-evaluator, both"):
        verification.verify_bundle(exported, runner="onnxruntime")
    with pytest.raises(ToolchainError, match="coreml cannot run here: Core ML runs on macOS only"):
        verification.verify_bundle(exported, runner="coreml")
    verdicts = verification.verify_bundle(exported, runner="both")
    assert [(verdict.stage, verdict.passed) for verdict in verdicts] == [
        ("quantised", None),
        ("quantised", True),
        ("witness", True),
    ]


def test_both_runners_are_compared(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac: Core ML stood in for by the evaluator with a little noise."""

    def noisy(path: Path, entry: str) -> Any:
        session = mil.open(path, entry)
        return lambda inputs: {
            name: value * np.float32(1.0001) for name, value in session(inputs).items()
        }

    monkeypatch.setattr(native, "runner", lambda: ("coreml 15.1", None))
    monkeypatch.setattr(native, "open", noisy)
    assert targets.runtime(targets.load("coreml")).runner() == ("coreml 15.1", None)
    exported = _without_loop(bundle.read(whole), "unet")
    verdicts = verification.verify_bundle(exported, runner="both")
    assert [verdict.stage for verdict in verdicts] == [
        "quantised",
        "quantised",
        "runtimes",
        "witness",
    ]
    assert verdicts[2].runner == f"{mil.runner()[0]} against coreml 15.1"
    assert all(verdict.passed for verdict in verdicts)
    assert verdicts[2].psnr_db is not None
    assert 75 < verdicts[2].psnr_db < 100
    only, same = verification.verify_bundle(exported)
    assert (only.runner, only.passed, same.passed) == ("coreml 15.1", True, True)


def test_a_witness_of_other_weights_fails_and_a_missing_one_is_not_run(whole: Path) -> None:
    exported = _without_loop(bundle.read(whole), "unet")
    (part,) = exported.parts
    first, *rest = part.record.witness["inpaint"]
    for witness, passed, reason in (
        ({"inpaint": (first * 1.01, *rest)}, False, "its weights are not those of the export"),
        ({}, None, "the manifest has no witness of the weights of unet"),
    ):
        record = part.record.model_copy(update={"witness": witness})
        changed = replace(exported, parts=(replace(part, record=record),))
        golden, verdict = verification.verify_bundle(changed)
        assert (golden.passed, verdict.stage, verdict.passed) == (True, "witness", passed)
        assert verdict.reason == reason
        assert (metrics.failure([verdict]) is None) == (passed is None)


def test_nan_is_a_failed_row_that_names_the_layer(copy: Path) -> None:
    file = copy / "Unet.mlpackage/Data" / package.MODEL
    model = package.parse(copy / "Unet.mlpackage")
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    bias = next(o for o in block.operations if o.outputs[0].name.endswith("conv_in_bias_to_fp16"))
    value = bias.attributes["val"]
    with (copy / "Unet.mlpackage/Data" / package.WEIGHT_FILE).open("r+b") as weights:
        start, length = package.find_blob(value, weights, 1 << 40, "here")
        weights.seek(start)
        weights.write(b"\x00\x7e" * (length // 2))
    assert file.is_file()
    verdicts = verification.verify_bundle(_rehash(copy))
    unet = next(verdict for verdict in verdicts if verdict.part == "unet")
    assert unet.passed is False
    assert "NaN first appears in operator 'conv2d_cast_fp16' (conv)" in str(unet.reason)
    assert "layer 'unet_conv_in'" in str(unet.reason)
    line = str(metrics.failure(verdicts))
    assert "NaN first appears" in line


def test_an_unknown_operator_stops_verify(copy: Path) -> None:
    path = copy / "Unet.mlpackage"
    model = package.parse(path)
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        operation.type = "swish" if operation.type == "silu" else operation.type
    (path / "Data" / package.MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(ToolchainError, match=r"has no operator swish \(\d+\)"):
        verification.verify_bundle(_rehash(copy))


def test_run_makes_a_picture_and_says_that_it_is_slow(whole: Path, tmp_path: Path) -> None:
    from PIL import Image

    exported = bundle.read(whole)
    size = (exported.manifest.image.width, exported.manifest.image.height)
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "image.png")
    arguments = ["run", str(whole), "-o", str(tmp_path / "out.png"), "--steps", "4", "--json"]
    arguments += ["--image", str(tmp_path / "image.png"), "--prompt", "a red circle"]
    done = subprocess.run(
        [sys.executable, "-m", "mtu_export", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: no Core ML here: the MIL evaluator runs this bundle" in done.stderr
    assert json.loads(done.stdout)["runner"] == mil.runner()[0]
    assert Image.open(tmp_path / "out.png").size == size
