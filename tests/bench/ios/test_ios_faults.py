"""What goes wrong with an iPhone, and the line that the user sees.

``make ios-faults`` writes the table of them (fixture ``saw``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.ios import IosDevice
from mtu_export.bench.job import Job
from mtu_export.spec import DeviceError
from tests.bench.ios.conftest import FakePhone

Open = Callable[..., IosDevice]
MakeJob = Callable[..., Job]
Saw = Callable[[object], None]
LOCKED = {
    "devicectl": "ERROR: The application failed to launch. "
    "(com.apple.dt.CoreDeviceError error 10002 (0x2712))\n"
    "Unable to launch org.example.mtuexport.bench because the device was not, or could not be, "
    "unlocked.",
    "pymobiledevice3": "Unable to launch org.example.mtuexport.bench because the device was not, "
    "or could not be, unlocked.",
}
UNTRUSTED = dict.fromkeys(
    LOCKED,
    "Unable to launch org.example.mtuexport.bench because it has an invalid code signature, "
    "inadequate entitlements or its profile has not been explicitly trusted by the user.",
)
REMOVED = {
    "devicectl": "ERROR: The specified application container was not found. "
    "(ContainerLookupErrorDomain error -1)",
    "pymobiledevice3": "No app with bundle ID org.example.mtuexport.bench is installed.",
}
UNKNOWN = {
    "devicectl": "ERROR: The specified device was not found. "
    "(com.apple.dt.CoreDeviceError error 1000 (0x3E8))",
    "pymobiledevice3": "ERROR Device is not connected",
}
UNPREPARED = {
    "devicectl": "ERROR: The developer disk image could not be mounted on this device. "
    "(com.apple.dt.CoreDeviceError error 12040 (0x2F08))",
    "pymobiledevice3": "Failed to start service. Possible reasons are: ...",
}


def refused(device: IosDevice) -> str:
    with pytest.raises(DeviceError) as error:
        device.describe()
    (line,) = str(error.value).splitlines()
    return line


def test_locked(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The phone is locked"""
    phone.set(errors={"launch": LOCKED})
    line = refused(open_device())
    saw(line)
    assert line.endswith("is locked: unlock it, keep it unlocked and its screen on until the end")


def test_untrusted_developer(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The phone does not trust the app's developer"""
    phone.set(errors={"launch": UNTRUSTED})
    line = refused(open_device())
    saw(line)
    assert "does not trust the app's developer: on it choose Settings, General" in line


def test_unprepared(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The phone's developer services are not there"""
    phone.set(errors={"launch": UNPREPARED})
    line = refused(open_device())
    saw(line)
    assert "is not prepared for development: keep it unlocked" in line


def test_an_app_that_went_away(
    phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw
) -> None:
    """The app is removed before a run"""
    with open_device() as device:
        phone.set(errors={"push": REMOVED})
        result = device.run(make_job())
        saw(result.reason)
        assert "has no bench app: open runtime/ios/Apps" in (result.reason or "")
        phone.set(errors={})


def test_too_little_space(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The phone has too little space"""
    phone.set(app={"free": 150_000_000})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert "is full: 150 MB free; 0.6 MB are needed and 200 MB stay free" in (result.reason or "")
    assert phone.commands("push") == []
    assert phone.left() == []


def test_a_disk_that_fills(
    phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw
) -> None:
    """The phone's disk fills in the middle of a copy"""
    phone.set(room=100_000)
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert (result.reason or "").endswith("is full")
    assert phone.left() == []


def test_a_damaged_copy(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """A file differs after the copy"""
    phone.set(damages="HOME.bin")
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert (result.reason or "").endswith("it's $HOME.bin differs there after the copy")


def test_hung(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The app hangs in the middle of a job"""
    with open_device() as device:
        device.run(make_job())
        phone.set(app={"verb": "run", "how": "hang"})
        device.grace = 1.0
        result = device.run(make_job(deadline_s=0.5))
        saw(result.reason)
        phone.set(app={})
    assert result.reason == "the bench app hangs: nothing for 1.5 s; it was ended"
    assert (result.status, result.samples_s) == ("failed", (0.01,))


def test_hung_at_start(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The app hangs at its start"""
    phone.set(app={"verb": "describe", "how": "hang"})
    device = open_device()
    device.patience = 1.0
    line = refused(device)
    saw(line)
    assert line.endswith("the bench app hangs (describe): nothing for 1 s")


def test_killed(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The app is killed in the middle of a job (signal 9)"""
    phone.set(app={"verb": "run", "how": 9})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert result.reason == "killed, most likely out of memory (3,200 MB were free before)"
    assert (result.status, result.samples_s) == ("failed", (0.01,))
    assert phone.left() == []


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_crashed(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The app crashes in the middle of a job (signal 11)"""
    phone.set(app={"verb": "run", "how": 11})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert result.reason == "the bench app crashed: signal 11"


def test_no_result(phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw) -> None:
    """The app leaves no result"""
    phone.set(app={"result": "none", "refuses": {"run": "job.json: unknown key 'x'"}})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert result.reason == "the bench app left no result: job.json: unknown key 'x'"


def test_a_half_written_result(
    phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw
) -> None:
    """The result arrives in part, again and again"""
    phone.set(half={"result.json": 99})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert (result.reason or "").startswith("the runner's result cannot be read: its JSON: ")


def test_a_half_written_answer(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The app's answer arrives in part, again and again"""
    phone.set(half={"answer.json": 99})
    line = refused(open_device())
    saw(line)
    assert line.startswith("the bench app's answer cannot be read: its JSON: ")


def test_an_answer_of_another_form(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The app is of another version"""
    phone.set(app={"answer": {"format": 2}})
    line = refused(open_device())
    saw(line)
    assert line.startswith("the bench app's answer cannot be read: format: ")


def test_an_old_answer(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The app's answer is that of an earlier request"""
    phone.set(app={"token": "another"})
    line = refused(open_device())
    saw(line)
    assert line.endswith("the bench app ended without an answer: no answer")


def test_another_jobs_result(
    phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw
) -> None:
    """The result is of another job"""
    phone.set(app={"part": "another"})
    with open_device() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert result.reason == "the runner's result is of another job: it names other parts"


# ------------------------------------------------------------------------------------- unplugged


def test_unplugged_in_a_copy(
    phone: FakePhone, open_device: Open, make_job: MakeJob, lines: list[str], saw: Saw
) -> None:
    """The phone is unplugged in the middle of a copy"""
    device = open_device()
    device.return_limit = 0.3
    phone.set(gone_at="push")
    with pytest.raises(DeviceLost) as error:
        device.run(make_job())
    device.close()
    saw(f"{error.value}. Then: {lines[-1]}")
    assert str(error.value).endswith("does not answer: unplugged, switched off or out of reach")
    assert "may be left in the bench app: remove it in Files" in lines[-1]


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (UNKNOWN, "does not answer: unplugged, switched off or out of reach"),
        (REMOVED, "; then run this command again"),
    ],
)
def test_gone_while_the_answer_is_read(
    phone: FakePhone, open_device: Open, texts: dict[str, str], line: str
) -> None:
    """A phone or an app that is "not found" is not a file that is not there."""
    device = open_device()
    phone.set(errors={"pull": texts})
    assert refused(device).endswith(line)


def test_a_phone_that_comes_back(
    phone: FakePhone, open_device: Open, make_job: MakeJob, saw: Saw
) -> None:
    """The connection is cut for a moment"""
    device = open_device()
    before = phone.count()
    phone.set(gone_after=before, back_after=before + 2)
    device.return_limit = 20
    result = device.run(make_job())
    saw(result.reason)
    assert (result.reason or "").endswith("; the phone is there again")
    assert device.run(make_job()).status == "measured"
    device.close()
    assert phone.left() == []
