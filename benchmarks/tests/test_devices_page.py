"""docs/devices.md and results/paper.md are what their scripts make of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import devices
from mtu_export.bench import record
from mtu_export.bench.record import Check, DeviceRecord, Measurement, Round, Run
from mtu_export.bench.statistics import summarize
from mtu_export.spec import PlanError

HASH = "0" * 64


def phone(*measurements: Measurement, **changes: Any) -> Run:
    about = {"kind": "adb", "model": "Some | Phone", "os": "Android 15", "arch": "aarch64"}
    return Run(
        created="2026-12-01T10:00:00+00:00",
        mode="quick",
        mtu_export="0.1.0",
        device=DeviceRecord(**{**about, **changes}),
        measurements=measurements,
    )


def measurement(**changes: Any) -> Measurement:
    bundle: dict[str, Any] = {
        "name": "edit-onnx-int8",
        "manifest_sha256": HASH,
        "source": "a model",
        "source_sha256": HASH,
        "target": "onnx",
        "scheme": "int8",
        "height": 512,
        "width": 512,
        "tasks": ("edit",),
        "bytes": 1,
    }
    rounds = (Round(load_s=1, load_again_s=None, first_s=3, samples_s=(2.0, 2.5)),)
    values: dict[str, Any] = {
        "kind": "bundle",
        "bundle": bundle,
        "task": "edit",
        "part": "image",
        "status": "measured",
        "threads": 4,
        "rounds": rounds,
        "latency": summarize(rounds),
        "checks": (Check(name="out", psnr_db=41.26, floor_db=35, passed=True),),
    }
    return Measurement.model_validate({**values, **changes})


def test_the_page_is_what_the_script_makes() -> None:
    assert devices.PAGE.read_text("utf-8") == devices.page(devices.read(devices.EVIDENCE))


def test_without_evidence_the_page_says_so() -> None:
    page = devices.page([])
    assert devices.EMPTY in page
    assert devices.COMMAND in page


def test_a_record_is_a_table(tmp_path: Path) -> None:
    failed = measurement(status="failed", reason="killed", rounds=(), latency=None, checks=())
    record.write(phone(measurement(), failed), tmp_path / "evidence-phone.json")
    page = devices.page(devices.read(tmp_path))
    assert devices.EMPTY not in page
    assert r"## Some \| Phone" in page
    assert "| edit-onnx-int8 | ONNX int8 | edit | image | – | 4 | 2.25 | 41.3 | ok |" in page
    assert "| failed: killed |" in page


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (phone(measurement(), emulated=True), "an emulator is no evidence of a device"),
        (phone(measurement(emulated=True)), "an emulator is no evidence of a device"),
        (phone(measurement(checks=())), "no check; measure with the goldens"),
    ],
)
def test_what_proves_nothing_is_refused(tmp_path: Path, run: Run, message: str) -> None:
    record.write(run, tmp_path / "a.json")
    with pytest.raises(PlanError, match=rf"a\.json: {message}"):
        devices.read(tmp_path)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}", "utf-8")
    with pytest.raises(PlanError, match="is no benchmark record"):
        devices.read(tmp_path)


def test_the_papers_page_is_what_the_script_makes() -> None:
    from benchmarks import paper

    results = Path(devices.__file__).parent / "results"
    document = json.loads((results / "paper.json").read_text("utf-8"))
    assert (results / "paper.md").read_text("utf-8") == paper.page(document)
    published = {"sd15": 869e6, "sdxl": 2.6e9}
    for row in document:
        if row["kind"] == "unfolded":
            assert row["parameters"] == pytest.approx(published[row["model"]], rel=0.005)
