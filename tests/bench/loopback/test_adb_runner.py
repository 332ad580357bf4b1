"""The whole suite with the real aarch64 runner on a loopback phone, by qemu: no time is a speed.

``MTU_RECORD=FILE`` keeps the record (``make bench-loopback``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench import api, record
from tests.bench import runners
from tests.bench.loopback.phone import Phone
from tests.support.qemu import CPU, debian, qemu_aarch64
from tests.support.tools import missing

pytestmark = pytest.mark.slow
BUNDLE = Path(__file__).parents[3] / "runtime" / "testdata" / "edit-onnx-int8"


@pytest.fixture(scope="session")
def runner() -> Path:
    return runners.built("aarch64")


@pytest.fixture
def emulated(make_phone: Callable[..., Phone]) -> Phone:
    try:
        qemu = str(qemu_aarch64())
    except debian().DebianError as error:
        missing(str(error))
    return make_phone(emulator=(qemu, "-cpu", CPU))


def test_a_bundle_is_measured_and_checked_on_a_phone(
    emulated: Phone, runner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTU_RUNNER", str(runner))
    lines: list[str] = []
    run = api.bench(
        [BUNDLE],
        device=f"adb:{emulated.serial}",
        part=["unet"],
        rounds=1,
        samples=2,
        threads=1,
        detail=lines.append,
    )
    assert (run.device.kind, run.device.arch, run.device.emulated) == ("adb", "aarch64", True)
    assert (run.device.libc or "").startswith("glibc 2.")
    (measurement,) = run.measurements
    assert (measurement.status, measurement.reason) == ("measured", None)
    assert measurement.emulated
    assert [len(each.samples_s) for each in measurement.rounds] == [2]
    assert len(measurement.checks) == 3
    assert all(check.passed for check in measurement.checks)
    assert measurement.before is not None
    assert measurement.before.thermal_status == 0
    assert run.peaks == ()
    assert any(line.startswith("loaded unet") for line in lines)
    assert emulated.left() == []
    if path := os.environ.get("MTU_RECORD"):
        record.write(run, Path(path))
