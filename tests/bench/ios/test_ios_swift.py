"""The driver, the fake programs, and the bench app in Swift over the stub of Core ML."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mtu_export.bench.devices.ios import IosDevice
from mtu_export.bench.job import Job
from tests.bench.ios.conftest import PROGRAMS, FakePhone
from tests.phones.test_swift import RUNTIME, toolchain
from tests.support.tools import missing

pytestmark = pytest.mark.slow
Open = Callable[..., IosDevice]
MakeJob = Callable[..., Job]
STUB = {
    "functions": {
        "main": {
            "inputs": [{"name": "x", "shape": [1, 3], "weight": 1}],
            "outputs": [{"name": "x", "shape": [1, 3], "padding": 2, "type": "float16"}],
        }
    }
}


@pytest.fixture
def swift_app(phone: FakePhone) -> None:
    """The phone's app is that of `make ios`."""
    tools = toolchain()
    program = tools.BUILD / "debug" / "BenchAppProbe"
    swift = tools.find()
    if swift is None or not program.exists():
        missing("runtime/ios is not built (make swift-env, make ios)")
    words = [sys.executable, str(PROGRAMS / "swift_app.py"), str(RUNTIME / "ios" / "toolchain.py")]
    phone.set(program=[*words, str(swift.root or "-"), str(program)])


def package(job: Job, **more: Any) -> None:
    """Make the job's package one of the stub."""
    text = json.dumps({**STUB, **more})
    (job.folder / "unet.mlpackage" / "stub.json").write_text(text)


@pytest.mark.usefixtures("swift_app")
def test_a_job_is_measured_and_compared(
    phone: FakePhone, open_device: Open, make_job: MakeJob, lines: list[str]
) -> None:
    x = np.array([[0.25, -0.5, 1]], "float32")
    wanted = [math.tanh(value * math.cos(k)) for k, value in enumerate(x[0])]
    tensors = {"x": x, "wanted": np.array([wanted], "float32")}
    job = make_job(tensors=tensors, expected={"y": "wanted"}, load_again=True, warmup=1)
    package(job)
    with open_device() as device:
        record = device.describe()
        assert (record.kind, record.emulated) == ("ios", True)
        result = device.run(job)
        assert result.status == "measured", result.reason
        assert (len(result.samples_s), result.calls["unet"].count) == (2, 2)
        assert result.psnr_db["y"] > 60
        assert (result.load_s["unet"] > 0, result.load_again_s["unet"] > 0) == (True, True)
        assert result.engine is not None
        assert result.engine.name == "Core ML"
        assert result.memory is not None
        assert (result.memory.run.anonymous or 0) > 0
        (session,) = phone.left()
        assert len([*(phone.bench / session / "compiled").iterdir()]) == 1
    assert phone.left() == []
    if phone.tool == "devicectl":  # the other looks for the process that it started: ours is within
        assert any(line.startswith("sample 3 of 3") for line in lines)


@pytest.mark.usefixtures("swift_app")
@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_what_fails_is_one_line(open_device: Open, make_job: MakeJob) -> None:
    with open_device() as device:
        job = make_job()
        package(job, fails=["predict"])
        assert device.run(job).reason == "unet cannot be run: the stub was told to fail: predict"
        wrong = device.run(make_job(options={"compute_unit": "TPU"}, identity="another"))
        assert wrong.reason == ('compute_unit "TPU"; legal: ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE')


@pytest.mark.usefixtures("swift_app")
@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_a_crash_is_named(open_device: Open, make_job: MakeJob) -> None:
    with open_device() as device:
        job = make_job()
        package(job, dies="compile")
        assert (device.run(job).reason or "").startswith("killed, most likely out of memory")
