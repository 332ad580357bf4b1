"""The adb device on a loopback phone: what it pushes, runs, reads, and leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtu_export.bench.devices.adb import AdbDevice
from mtu_export.bench.devices.adb import phone as phone_module
from mtu_export.bench.job import Job
from tests.bench.loopback.phone import THERMAL, Phone

Open = Callable[..., AdbDevice]
MakeJob = Callable[..., Job]
CHANGES = re.compile(
    r"\b(logcat|settings|setprop|svc|wm|am|pm|cmd|input|stop|start|reboot|mount|su|killall|pkill)\b"
)


def test_a_phone_says_what_it_is(phone: Phone, open_device: Open) -> None:
    device = open_device()
    assert device.name == f"adb:{phone.serial}"
    assert device.describe().to_json() == {
        "kind": "adb",
        "model": "Loop One",
        "soc": "Emulated QEMU 10",
        "os": "Android 14 (SDK 34, UP1A.231005.007)",
        "arch": "aarch64",
        "cores": 2,
        "memory": 7654321 * 1024,
        "page_size": 4096,
        "governor": "schedutil",
        "instructions": ["asimddp", "i8mm"],
        "emulated": True,
        "libc": None,
        "browser": None,
        "secure_context": None,
    }
    assert device.state().to_json() == {
        "thermal_status": 0,
        "temperature": 38.5,
        "battery": 0.85,
        "charging": True,
        "clocks": [1804800, 2841600],
        "free_memory": 4321000 * 1024,
        "throttled": False,
    }


def test_a_phone_that_says_nothing_of_itself(phone: Phone, open_device: Open) -> None:
    for name in ("ro.product.manufacturer", "ro.product.model", "ro.build.id", "ro.kernel.qemu"):
        (phone.root / "properties" / name).unlink()
    for name in ("proc/cpuinfo", "proc/meminfo", "sys/devices/system/cpu/possible"):
        phone.write(name, "cpu0: 1\x1b[2J\n")
    for name in ("dumpsys/thermalservice", "dumpsys/battery"):
        (phone.root / name).unlink()
    (phone.root / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").unlink()
    device = open_device()
    record = device.describe()
    assert (record.model, record.cores, record.memory) == ("unknown", None, None)
    assert (record.instructions, record.emulated) == ((), False)
    assert not any(device.state().to_json().values())


@pytest.mark.parametrize("features", ["shell_v2", ""], ids=["shell v2", "without shell v2"])
def test_a_job_runs_and_nothing_is_left(
    make_phone: Callable[..., Phone], open_device: Open, make_job: MakeJob, features: str
) -> None:
    phone = make_phone(features=features)
    with open_device() as device:
        result = device.run(make_job())
        assert (result.status, result.reason) == ("measured", None)
        assert result.samples_s == (0.125, 0.125)
        (folder,) = (phone.folder / "mtu-export").iterdir()
        assert {path.name for path in folder.iterdir()} >= {"job.json", "result.json"}
    assert phone.left() == []


def test_events_of_the_runner_are_shown(
    phone: Phone, open_device: Open, make_job: MakeJob, lines: list[str]
) -> None:
    open_device().run(make_job())
    assert lines == [
        "loaded p 0.50 s",
        "sample 1 of 2 0.12 s",
        "sample 2 of 2 0.12 s",
    ]


def test_no_command_changes_the_phone_or_its_logs(
    phone: Phone, open_device: Open, make_job: MakeJob
) -> None:
    with open_device() as device:
        device.describe()
        device.state(wait=True)
        device.run(make_job())
        device.run(make_job("killed"))
    commands = phone.commands()
    assert CHANGES.findall(commands) == []
    removed = re.findall(r"\brm -r?f ([^;\n]*)", commands)
    (folder,) = {path.split("/")[5] for path in removed}
    assert re.fullmatch("[0-9a-f]{12}", folder)
    assert all(path.startswith(f"/data/local/tmp/mtu-export/{folder}") for path in removed)


# ----------------------------------------------------------------------------------------- pushes


def test_what_is_on_the_phone_is_not_pushed_again(
    phone: Phone, open_device: Open, make_job: MakeJob
) -> None:
    device = open_device()
    device.run(make_job())
    before = dict(phone.settings.received)
    device.run(make_job(samples=3))
    again = {name for name, count in phone.settings.received.items() if count != before[name]}
    assert {Path(name).name for name in again} == {"job.json", "tensors.safetensors"}


def test_a_second_run_finds_what_the_first_has_kept(
    phone: Phone, open_device: Open, make_job: MakeJob, lines: list[str]
) -> None:
    with open_device(keep=True) as device:
        device.run(make_job())
    assert lines[-1] == (
        f"kept on {phone.serial}: /data/local/tmp/mtu-export/kept; remove it with: "
        f"adb -s {phone.serial} shell rm -rf /data/local/tmp/mtu-export/kept"
    )
    kept = phone.left()
    assert any(name.endswith("/part/it's $HOME;.onnx") for name in kept)
    assert all(name.startswith("mtu-export/kept/") for name in kept[2:])
    phone.settings.received.clear()
    with open_device(keep=True) as device:
        assert device.run(make_job()).status == "measured"
    names = {Path(name).name for name in phone.settings.received}
    assert names == {"job.json", "tensors.safetensors"}
    assert phone.left() == kept


def test_kept_files_that_have_changed_are_not_used(
    phone: Phone, open_device: Open, make_job: MakeJob
) -> None:
    with open_device(keep=True) as device:
        device.run(make_job())
    (model,) = phone.folder.rglob("*.onnx")
    model.write_bytes(b"\0" * model.stat().st_size)
    kept = phone.left()
    with open_device() as device:
        assert device.run(make_job()).status == "measured"
    assert phone.left() == kept
    assert model.read_bytes() == b"\0" * model.stat().st_size
    with open_device(keep=True) as device:
        device.run(make_job())
    assert model.read_bytes() == (make_job().folder / "part/it's $HOME;.onnx").read_bytes()


def test_what_is_kept_never_grows_without_keep(
    phone: Phone, open_device: Open, make_job: MakeJob
) -> None:
    with open_device(keep=True) as device:
        device.run(make_job())
    kept = phone.left()
    job = make_job()
    (job.folder / "second.pte").write_bytes(b"2" * 1000)
    both = {**job.parts, "q": replace(job.parts["p"], path="second.pte")}
    with open_device() as device:
        assert device.run(job).status == "measured"
        assert device.run(replace(job, parts=both)).status == "measured"
        assert device.run(job).status == "measured"
    assert phone.left() == kept


@pytest.mark.parametrize(
    ("missing", "damage"),
    [
        ((), lambda data: data[:-1]),
        ((), lambda data: data[:-1] + b"?"),
        (("sha256sum",), lambda data: data[:-1]),
    ],
    ids=["size", "hash", "size, no hashes"],
)
def test_files_are_compared_after_the_push(
    make_phone: Callable[..., Phone],
    open_device: Open,
    make_job: MakeJob,
    missing: tuple[str, ...],
    damage: Callable[[bytes], bytes],
) -> None:
    phone = make_phone(missing=missing)
    device = open_device()
    assert device.run(make_job()).status == "measured"
    assert ("sha256sum <" in phone.commands()) == (missing == ())
    phone.settings.damage = damage
    reason = device.run(make_job()).reason
    assert reason == f"{phone.serial}: job.json differs on the phone after the copy"


def test_bundles_are_pushed_with_the_files_beside_their_parts(
    phone: Phone,
    open_device: Open,
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the job's folder holds links to bundles."""
    folder = tmp_path / "two"
    (folder / "part").mkdir(parents=True)
    for name in ("manifest.json", "part/model.onnx", "weights.bin", "goldens.safetensors"):
        (folder / name).write_text(name)
    parts = (SimpleNamespace(path="part", data=("weights.bin",)),)
    manifest = SimpleNamespace(target="onnx", parts=parts)
    monkeypatch.setattr(phone_module, "read_manifest", lambda folder: manifest)
    records = [SimpleNamespace(record=record) for record in parts]
    bundle: Any = SimpleNamespace(folder=folder, parts=records, manifest=manifest)
    device = open_device()
    device.prepare([bundle])
    names = {name.split("/", 3)[3] for name in phone.left() if "/b-" in name and "." in name}
    assert names == {"part/model.onnx", "weights.bin"}

    links = tmp_path / "links"
    links.mkdir()
    (links / "0").symlink_to(folder)
    part = replace(make_job().parts["p"], path="0/part", entry="model.onnx")
    assert device.run(make_job(folder=links, parts={"p": part})).status == "measured"
    names = {name.split("/", 3)[3] for name in phone.left() if "/0/" in name and "." in name}
    assert names == {"0/part/model.onnx", "0/weights.bin"}


def test_core_ml_is_refused_with_the_reason(phone: Phone, open_device: Open) -> None:
    device = open_device()
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(target="coreml"))
    reason = "coreml bundles do not run on Android; it runs: onnx, executorch"
    assert device.refuses(bundle) == reason
    device.prepare([bundle])
    assert not any("/b-" in name for name in phone.left())
    bundle.manifest.target = "executorch"
    assert device.refuses(bundle) is None


# ------------------------------------------------------------------------------------------- heat


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def hot(phone: Phone, *statuses: int) -> None:
    (phone.root / "dumpsys/thermalservice").unlink()
    for number, status in enumerate(statuses):
        phone.write(f"dumpsys/thermalservice/{number}", THERMAL % status)


@pytest.mark.parametrize(
    ("statuses", "waited", "throttled"),
    [((0,), 0, False), ((3, 2, 0), 10, False), ((1,), 20, True)],
)
def test_a_hot_phone_is_waited_for(
    phone: Phone, open_device: Open, statuses: tuple[int, ...], waited: int, throttled: bool
) -> None:
    hot(phone, *statuses)
    device, clock = open_device(), Clock()
    device.cool_limit, device._clock, device._sleep = 20, clock, clock.sleep
    state = device.state(wait=True)
    assert (clock.now, state.throttled) == (waited, throttled)
    assert state.thermal_status == statuses[-1]


def test_a_phone_that_does_not_tell_its_heat_rests_a_while(phone: Phone, open_device: Open) -> None:
    phone.write("dumpsys/thermalservice", "Thermal Status: 99\n")
    device, clock = open_device(), Clock()
    device._clock, device._sleep = clock, clock.sleep
    state = device.state(wait=True)
    assert (state.thermal_status, state.throttled, clock.now) == (None, False, 10)
