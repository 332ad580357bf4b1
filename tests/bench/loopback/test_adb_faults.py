"""What goes wrong with a phone, and the line that the user sees.

``MTU_FAULTS=faults.md`` writes the table of them (fixture ``saw``).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.adb import AdbDevice, client, files
from mtu_export.bench.devices.adb import device as device_module
from mtu_export.bench.job import Job
from mtu_export.spec import DeviceError, MtuExportError
from tests.bench.loopback.adbd import is_working
from tests.bench.loopback.daemon import Cut
from tests.bench.loopback.phone import Phone

Open = Callable[..., AdbDevice]
MakeJob = Callable[..., Job]
MakePhone = Callable[..., Phone]
Saw = Callable[[object], None]


def wait_until(happens: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refused(open_device: Open, serial: str | None = None) -> str:
    with pytest.raises(MtuExportError) as error:
        open_device(serial)
    (line,) = str(error.value).splitlines()
    return line


# ------------------------------------------------------------------------------------------- space


def test_too_little_space(phone: Phone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The phone has too little space"""
    phone.write("free", "150000\n")
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    says = f"{phone.serial} is full: /data/local/tmp has 154 MB free; "
    assert (result.reason or "").startswith(says)
    assert phone.settings.received == {}
    assert phone.left() == []


def test_a_disk_that_fills(phone: Phone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The phone's disk fills in the middle of a push"""
    phone.settings.cuts.append(Cut(service=r"sync:.*\.onnx", after=100_000, full=True))
    with open_device() as device:
        result = device.run(make_job())
        saw(result.reason)
        assert result.reason == f"{phone.serial} is full: it's $HOME;.onnx does not fit"
        assert list(phone.folder.rglob("*.onnx")) == []
    assert phone.left() == []


def test_other_bundles_make_room(phone: Phone, open_device: Open, make_job: MakeJob) -> None:
    (phone.root / "bin/df").write_text(
        '#!/bin/sh\nwhile read -r line; do echo "$line"; done <<END\nFilesystem 1K-blocks Used '
        'Available Use% Mounted on\n/dev/x 9 9 $(if ls "$ROOT"/data/local/tmp/mtu-export/*/b-* '
        ">/dev/null 2>&1; then echo 1; else echo 900000; fi) 45% /data\nEND\n"
    )
    device = open_device()
    device.run(make_job())
    (first,) = phone.folder.glob("mtu-export/*/b-*")
    assert device.run(make_job(identity="another")).status == "measured"
    (second,) = phone.folder.glob("mtu-export/*/b-*")
    assert first != second


# --------------------------------------------------------------------------- the connection is cut

CUTS = {
    "push": r"sync:.*\.onnx",
    "shell": r"shell:chmod 755",
    "pull": r"shell:cat \S*/result\.json",
}


@pytest.mark.parametrize("fault", [f"The connection is cut in the middle of a {n}" for n in CUTS])
def test_a_cut_is_a_failed_run_where_the_phone_returns(
    phone: Phone, open_device: Open, make_job: MakeJob, saw: Saw, fault: str
) -> None:
    """The connection is cut"""
    service = CUTS[fault.rpartition(" ")[2]]
    with open_device() as device:
        phone.settings.cuts.append(Cut(service=service, after=20))
        device.return_limit = 30
        result = device.run(make_job())
        saw(result.reason)
        assert result.status == "failed"
        assert (result.reason or "").startswith(phone.serial)
        assert (result.reason or "").endswith("; the phone is there again")
        assert device.run(make_job()).status == "measured"
    assert phone.left() == []


@pytest.mark.parametrize("fault", [f"The phone is unplugged in the middle of a {n}" for n in CUTS])
def test_a_phone_that_stays_away_is_lost(
    phone: Phone,
    open_device: Open,
    make_job: MakeJob,
    lines: list[str],
    saw: Saw,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """The phone is unplugged"""
    monkeypatch.setattr(files, "RETURN", 0.5)
    service = CUTS[fault.rpartition(" ")[2]]
    with open_device() as device:
        device.return_limit = 0.5
        phone.settings.cuts.append(Cut(service=service, after=20, gone=True))
        with pytest.raises(DeviceLost) as error:
            device.run(make_job())
    saw(f"{error.value}. Then: {lines[-1]}")
    assert phone.serial in str(error.value)
    assert (
        "may be left on it, where its own shell has not removed it; remove it with: adb"
        in lines[-1]
    )
    wait_until(lambda: phone.left() == [])  # the guard on the phone has removed it


def test_a_phone_that_returns_before_the_end(
    phone: Phone, open_device: Open, make_job: MakeJob, lines: list[str]
) -> None:
    device = open_device()
    device.run(make_job())
    phone.unplug()
    wait_until(lambda: device.adb.state() != "device")
    phone.plug()
    device.close()
    assert not any("may be left" in line for line in lines)
    assert phone.left() == []


def test_a_phone_that_is_away_before_a_run(
    phone: Phone, open_device: Open, make_job: MakeJob, saw: Saw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phone is unplugged between two runs"""
    monkeypatch.setattr(files, "RETURN", 0.5)
    device = open_device()
    device.run(make_job())
    device.return_limit = 0.5
    phone.unplug()
    wait_until(lambda: device.adb.state() != "device")
    with pytest.raises(DeviceLost) as error:
        device.run(make_job())
    saw(error.value)
    assert str(error.value).startswith(f"{phone.serial} went away in the middle of ")


def test_a_push_that_stops_moving(
    phone: Phone, open_device: Open, make_job: MakeJob, saw: Saw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push stops moving"""
    monkeypatch.setattr(client, "_POLL", 0.1)
    monkeypatch.setattr(client, "_SILENCE", 1.0)
    phone.settings.cuts.append(Cut(service=r"sync:.*\.onnx", after=100_000, hold=True))
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert "the copy of it's $HOME;.onnx is stuck at " in (result.reason or "")
    assert phone.left() == []


def test_a_phone_that_does_not_answer(
    phone: Phone, open_device: Open, saw: Saw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phone's shell does not answer"""
    (phone.root / "bin/getprop").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(client, "SECONDS", 1.0)
    line = refused(open_device)
    saw(line)
    assert line.startswith(f"{phone.serial} does not answer: asking what it is: no end after 1 s")


def test_a_phone_that_never_stops_talking(phone: Phone, open_device: Open, saw: Saw) -> None:
    """The phone answers without end"""
    (phone.root / "bin/dumpsys").write_text("#!/bin/sh\nyes\n")
    with pytest.raises(DeviceError) as error:
        open_device().state()
    saw(error.value)
    assert str(error.value).endswith("asking for its heat: more than 1,000,000 bytes")


# -------------------------------------------------------------------------------------- the runner

RUNNERS = {
    "hang": ("The runner hangs", "the runner hangs: nothing for 1.5 s; it was killed"),
    "talk": (
        "The runner writes without end",
        "the runner writes without end: more than 1,000,000 bytes; it was killed",
    ),
    "killed": (
        "The runner is killed (exit code 137)",
        "killed, most likely out of memory (4,425 MB were free before)",
    ),
    "child killed": (
        "The runner's child is killed",
        "killed, most likely out of memory (4,425 MB were free before)",
    ),
    "exit 2": (
        "The runner refuses the job",
        "the runner ended with exit code 2: it refused the job: mtu-bench: job.json: unknown key "
        "?[31m'x'",
    ),
    "nothing": (
        "The runner leaves no result",
        "the runner ended with exit code 5: the part failed",
    ),
    "garbage": (
        "The result is garbage",
        "the runner's result cannot be read: its JSON: Invalid JSON: expected value at line 1 "
        "column 1",
    ),
    "large": ("The result is too large", "the runner's result: more than 16,000,000 bytes"),
    "other job": (
        "The result is of another job",
        "the runner's result is of another job: it names other parts",
    ),
    "control": ("The result has control characters", f"a?[2J b{'c' * 293}"),
}


@pytest.mark.parametrize(
    ("test", "fault", "says"), [(key, *value) for key, value in RUNNERS.items()], ids=list(RUNNERS)
)
def test_a_runner_that_fails(
    phone: Phone,
    open_device: Open,
    make_job: MakeJob,
    saw: Saw,
    monkeypatch: pytest.MonkeyPatch,
    test: str,
    fault: str,
    says: str,
) -> None:
    """The runner fails"""
    monkeypatch.setattr(device_module, "_LONGEST_OUTPUT", 1_000_000)
    with open_device() as device:
        device.grace = 0.5
        result = device.run(make_job(test, deadline_s=1.0))
        if test != "control":
            saw(result.reason)
        assert (result.status, result.reason) == ("failed", says)
        assert device.run(make_job()).status == "measured"
    assert phone.left() == []


def test_a_hung_runner_is_ended(phone: Phone, open_device: Open, make_job: MakeJob) -> None:
    device = open_device()
    device.grace = 0.0
    device.run(make_job("hang", deadline_s=1.0))
    (pid,) = phone.folder.rglob("pid")
    wait_until(lambda: not is_working(int(pid.read_text())))


# ------------------------------------------------------------------------------- this process ends

SESSION = """
import json, sys
from pathlib import Path
from mtu_export.bench.devices.adb import connect
from mtu_export.bench.job import Job, JobPart
folder = Path(sys.argv[1])
job = Job(
    engine="onnx", folder=folder, identity="x", options={"test": "wait"}, tensors={}, program=[],
    parts={"p": JobPart(path="part", entry="it's $HOME;.onnx", inputs=[], outputs=[])},
)
with connect(runner=lambda arch: Path(sys.argv[2]), progress=lambda line: None) as device:
    device.run(job)
"""


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("Ctrl-C in the middle of a run", signal.SIGINT),
        ("The command is killed (SIGKILL)", signal.SIGKILL),
    ],
)
def test_the_end_of_the_command_is_the_end_of_the_folder(
    phone: Phone, make_job: MakeJob, saw: Saw, fault: str, number: signal.Signals
) -> None:
    """The command ends early"""
    runner = Path(__file__).with_name("runner")
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(make_job().folder), str(runner)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: list(phone.folder.rglob("pid")), 60)
    wait_until(lambda: next(phone.folder.rglob("pid")).read_text())
    (pid,) = phone.folder.rglob("pid")
    runner_pid = int(pid.read_text())
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert error.strip().endswith("KeyboardInterrupt")
        assert phone.left() == []
    else:
        wait_until(lambda: phone.left() == [])
    wait_until(lambda: not is_working(runner_pid))
    saw("(nothing is left on the phone)")
