"""The real aarch64 runner on a loopback phone, by qemu: nothing here is a speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export import bundle
from mtu_export.bench import work
from mtu_export.bench.devices.adb import AdbDevice
from tests.bench import runners
from tests.bench.loopback.phone import Phone
from tests.support.qemu import CPU, qemu_aarch64

pytestmark = pytest.mark.slow
BUNDLE = Path(__file__).parents[3] / "runtime" / "testdata" / "edit-onnx-int8"


@pytest.fixture(scope="session")
def runner() -> Path:
    return runners.built("aarch64")


@pytest.fixture
def emulated(make_phone: Callable[..., Phone]) -> Phone:
    return make_phone(emulator=(str(qemu_aarch64()), "-cpu", CPU))


def test_the_runner_measures_and_checks_a_bundle(
    emulated: Phone, open_device: Callable[..., AdbDevice], runner: Path, lines: list[str]
) -> None:
    source = bundle.read(BUNDLE)
    (task,) = source.tasks
    name = work.denoiser_of(source, task)
    assert name is not None
    settings = work.Settings(threads=1, samples=2, deadline_s=120)
    with open_device(runner=runner) as device:
        device.prepare([source])
        result = device.run(work.part_job(source, task.name, name, settings))
        assert (result.status, result.reason) == ("measured", None)
        assert result.machine is not None
        assert result.machine.arch == "aarch64"
        assert len(result.samples_s) == 2
        assert f"loaded {name}" in "\n".join(lines)
        job, floors = work.part_check(source, task.name, name, settings)
        check = device.run(job)
        assert (check.status, check.reason) == ("measured", None)
        assert set(check.psnr_db) == set(floors.floors)
        for register, (_, floor) in floors.floors.items():
            assert check.psnr_db[register] >= floor
        libc = device.describe().libc
        assert libc is not None
        assert libc.startswith("glibc 2.")
    assert emulated.left() == []
