"""`bench --device ios` whole: a Core ML bundle in, a record, its page out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtu_export.bench import record, report
from mtu_export.bench.api import bench
from mtu_export.bench.devices.ios import device, pymobiledevice
from mtu_export.spec import PlanError
from tests.bench.ios.conftest import FakePhone

pytestmark = pytest.mark.slow
TESTDATA = Path(__file__).parents[3] / "runtime" / "testdata" / "edit-onnx-int8"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The bundle of testdata with packages in place of its graphs: nothing here runs them."""
    folder = tmp_path / "edit-coreml"
    shutil.copytree(TESTDATA, folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["target"] = "coreml"
    manifest["options"] = {"compute_unit": "CPU_AND_NE", "deployment_target": "iOS17"}
    for part in manifest["parts"]:
        package = folder / f"{part['name']}.mlpackage"
        (folder / part["path"]).rename(package)
        part["path"] = package.name
        part["entries"] = dict.fromkeys(part["entries"], "main")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_a_bundle_is_measured_and_checked(phone: FakePhone, bundle: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = bench([bundle], device="ios", rounds=2, samples=2, progress=lines.append)
    assert (run.device.kind, run.device.model) == ("ios", "iPhone15,2")
    parts = {each.part: each for each in run.measurements}
    assert set(parts) == {"text_encoder", "vae_encoder", "unet", "vae_decoder", "image"}
    for each in parts.values():
        assert (each.status, each.provider) == ("measured", "cpu_and_ne"), each.reason
        assert len(each.rounds) == 2
        assert each.checks
        assert all(check.passed for check in each.checks)
        assert each.before is not None
        assert each.before.thermal_status == 0
    assert parts["unet"].runner is not None
    assert parts["unet"].runner.name == "MTUBench"
    assert run.peaks == ()
    assert phone.left() == []
    path = tmp_path / "record.json"
    record.write(run, path)
    page = report.markdown(report.load([path]))
    assert "iPhone15,2 (iPhone app)" in page


@pytest.mark.parametrize("phone", ["pymobiledevice3"], indirect=True)
def test_a_phone_that_goes_away_leaves_the_rest_not_run(
    phone: FakePhone, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pymobiledevice, "POLL", 0.05)
    monkeypatch.setattr(device, "RETURN", 0.3)

    def progress(line: str) -> None:
        if "unet: round" in line:
            phone.set(gone_after=0)

    chosen = ["text_encoder", "unet"]
    run = bench([bundle], device="ios", rounds=1, samples=1, part=chosen, progress=progress)
    assert [each.status for each in run.measurements] == ["measured", "not run"]
    assert "does not answer: unplugged" in (run.measurements[-1].reason or "")


@pytest.mark.usefixtures("phone")
@pytest.mark.parametrize("options", [{"threads": 2}, {"cpus": "big"}])
def test_core_ml_chooses_its_cores(bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="--threads and --cpus are for --device host and adb"):
        bench([bundle], device="ios", **options)


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_other_targets_are_not_run(phone: FakePhone) -> None:
    run = bench([TESTDATA], device="ios", part=["unet"])
    (row,) = run.measurements
    assert (row.status, row.reason) == (
        "not run",
        "onnx bundles do not run in the iOS app; it runs: coreml",
    )
    assert phone.commands("push") == []
