"""Jobs in the bench app of a fake phone: what is pushed, told, measured and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench.devices.ios import IosDevice, answers
from mtu_export.bench.devices.ios import device as device_module
from mtu_export.bench.devices.ios.answers import Request
from mtu_export.bench.job import Job
from mtu_export.bench.job import parse as parse_result
from mtu_export.bundle import sha256
from tests.bench.ios.conftest import FakePhone

Open = Callable[..., IosDevice]
MakeJob = Callable[..., Job]


def test_a_job_is_measured(
    phone: FakePhone, open_device: Open, make_job: MakeJob, lines: list[str]
) -> None:
    with open_device() as device:
        record = device.describe()
        assert (record.kind, record.model, record.os) == (
            "ios",
            "iPhone15,2",
            "iOS 18.4.1 (22E252)",
        )
        result = device.run(make_job())
        assert (result.status, result.samples_s) == ("measured", (0.01, 0.02))
        assert result.runner is not None
        assert result.runner.name == "MTUBench"
        (session,) = phone.left()
        folder = phone.bench / session
        document = json.loads((folder / "job.json").read_text())
        path = folder / document["parts"]["unet"]["path"]
        weights = path / "Data/com.apple.CoreML/it's $HOME.bin"
        assert sha256(weights) == sha256(make_job().folder / weights.relative_to(path.parent))
        assert document["options"] == {"compute_unit": "CPU_AND_NE"}
    assert phone.left() == []
    assert any(line.startswith("sample 2 of 2") for line in lines)
    assert "loaded unet 0.50 s" in lines


def test_a_bundle_is_pushed_once(phone: FakePhone, open_device: Open, make_job: MakeJob) -> None:
    with open_device() as device:
        for _ in range(2):
            assert device.run(make_job()).status == "measured"
    verbs = [json.dumps(words) for words in phone.commands("launch")]
    assert sum("prepare" in verb for verb in verbs) == 1
    pushed = [words for words in phone.commands("push") if any("$HOME" in word for word in words)]
    assert len(pushed) == 1


def test_a_check_compares(phone: FakePhone, open_device: Open, make_job: MakeJob) -> None:
    with open_device() as device:
        result = device.run(make_job(expected={"y": "x"}, samples=1))
    assert result.psnr_db == {"y": 61.5}


def test_the_state_is_that_of_the_last_answer(phone: FakePhone, open_device: Open) -> None:
    with open_device() as device:
        state = device.state()
        assert (state.thermal_status, state.battery, state.charging) == (0, 0.8, True)
        starts = len(phone.commands("launch"))
        assert device.state() == state
        assert len(phone.commands("launch")) == starts
        device.state(wait=True)
        assert len(phone.commands("launch")) == starts + 1


def test_a_hot_phone_is_waited_for(phone: FakePhone, open_device: Open, lines: list[str]) -> None:
    phone.set(app={"hot": True})
    with open_device() as device:
        state = device.state(wait=True)
    assert (state.thermal_status, state.throttled) == (3, True)
    assert any(line.endswith("is hot (serious): waiting") for line in lines)


def test_no_session_is_made_by_looking(phone: FakePhone, open_device: Open) -> None:
    with open_device() as device:
        device.describe()
        device.state()
    assert phone.left() == []
    verbs = [json.dumps(words) for words in phone.commands("launch")]
    assert not any("remove" in verb for verb in verbs)


def test_a_file_that_arrives_in_part_is_pulled_again(
    phone: FakePhone, open_device: Open, make_job: MakeJob
) -> None:
    phone.set(half={"result.json": 1, "answer.json": 2})
    with open_device() as device:
        assert device.run(make_job()).status == "measured"


VECTORS = Path(__file__).parents[3] / "runtime" / "ios" / "Tests" / "vectors"


def test_requests_are_those_of_the_vectors() -> None:
    document = json.loads((VECTORS / "request.json").read_text("utf-8"))
    assert document.pop("format") == answers.FORMAT
    assert json.loads(Request(**document).text()) == {**document, "format": answers.FORMAT}


def test_answers_of_the_vectors_are_read() -> None:
    data = (VECTORS / "answer.json").read_bytes()
    answer = answers.parse(data, "00112233aabbccdd")
    assert answer is not None
    assert answers.parse(data, "another") is None
    assert (answer.status, answer.reason) == ("failed", "no verb")
    assert (answer.state.thermal_status, answer.state.throttled) == (3, True)
    assert (answer.device.record().page_size, answer.free_bytes) == (16384, 20_000_000_000)
    assert json.loads(answer.model_dump_json(exclude_unset=True)) == json.loads(data)


def test_results_of_the_vectors_are_read() -> None:
    data = (VECTORS / "result.json").read_bytes()
    result = parse_result(data)
    assert (result.status, result.samples_s, result.load_s) == (
        "measured",
        (0.25, 0.5),
        {"unet": 12.5},
    )
    assert result.memory is not None
    assert result.memory.peak_total == 9


def test_a_request_has_every_key() -> None:
    request = Request(token="t", verb="prepare", session="s", folders=["a"], files={"b": "c"})
    assert json.loads(request.text()) == {
        "format": 1,
        "token": "t",
        "verb": "prepare",
        "session": "s",
        "folders": ["a"],
        "files": {"b": "c"},
        "cool_s": 0,
    }


@pytest.mark.parametrize(
    ("target", "several", "os", "refusal"),
    [
        ("iOS16", False, "16.7", None),
        ("iOS18", False, "17.5", "its deployment target needs iOS 18; this phone has iOS 17.5"),
        ("macOS15", False, "18.0", None),
        ("iOS17", True, "17.5", "functions of several tasks need iOS 18; this phone has iOS 17.5"),
    ],
)
def test_bundles_for_newer_systems_are_refused(
    target: str, several: bool, os: str, refusal: str | None
) -> None:
    assert device_module.newer(target, several, os) == refusal
