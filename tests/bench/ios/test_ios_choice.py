"""Which iPhone and which app: one line where there is none to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench.devices.ios import IosDevice, connect, tool
from mtu_export.bench.devices.ios.devicectl import Devicectl
from mtu_export.spec import MtuExportError, RuntimeUnavailable
from tests.bench.ios.conftest import FakePhone

Open = Callable[..., IosDevice]
Saw = Callable[[object], None]
UDID = "00008120-0014485601E3C01E"
OTHER = "00008030-000A11112222802E"


def refused(open_device: Open, udid: str | None = None) -> str:
    with pytest.raises(MtuExportError) as error:
        open_device(udid)
    (line,) = str(error.value).splitlines()
    return line


def test_the_only_phone_is_taken(phone: FakePhone, open_device: Open) -> None:
    device = open_device()
    assert device.name == f"ios:{UDID}"
    assert device.app == "org.example.mtuexport.bench"
    assert device.tool.name == phone.tool


def test_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XCRUN", str(tmp_path / "none"))
    monkeypatch.setenv("PYMOBILEDEVICE3", str(tmp_path / "none"))
    with pytest.raises(RuntimeUnavailable, match="no program here reaches an iPhone: "):
        connect()


def test_an_xcrun_without_devicectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "xcrun"
    path.write_text("#!/bin/sh\necho 'xcrun: error: unable to find utility' >&2\nexit 72\n")
    path.chmod(0o755)
    monkeypatch.setenv("XCRUN", str(path))
    assert Devicectl.find() is None


def test_devicectl_comes_first(phone: FakePhone) -> None:
    assert tool.find().name == phone.tool


def test_no_phone(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """No iPhone is connected"""
    phone.set(devices=[])
    line = refused(open_device)
    saw(line)
    assert line.startswith("no iPhone is connected: connect one by USB, unlock it and tap Trust")


def test_several_phones(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """Two iPhones are connected"""
    phone.set(devices=[{}, {"udid": OTHER, "name": "Bo's iPad", "model": "iPad8,1"}])
    line = refused(open_device)
    saw(line)
    assert line == (
        "2 iPhones are connected; name one with --device ios:UDID: "
        f"{UDID} (Ada's iPhone, iPhone15,2, iOS 18.4.1); {OTHER} (Bo's iPad, iPad8,1, iOS 18.4.1)"
    )
    assert open_device(OTHER).phone.name == "Bo's iPad"


def test_another_phone(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """`--device ios:UDID` of a phone that is not connected"""
    line = refused(open_device, OTHER)
    saw(line)
    assert line == (
        f"no iPhone {OTHER} is connected; connected: {UDID} (Ada's iPhone, iPhone15,2, iOS 18.4.1)"
    )


def test_watches_are_no_phones(phone: FakePhone, open_device: Open) -> None:
    phone.set(devices=[{"platform": "watchOS", "class": "Watch"}])
    assert refused(open_device).startswith("no iPhone is connected")


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_a_phone_that_is_away(phone: FakePhone, open_device: Open) -> None:
    """devicectl remembers phones that it once saw."""
    phone.set(devices=[{"tunnel": "unavailable"}])
    assert refused(open_device).startswith("no iPhone is connected")


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_not_trusted(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The phone has not allowed this computer"""
    phone.set(devices=[{"pairing": "unpaired"}])
    line = refused(open_device)
    saw(line)
    assert line.endswith(
        "has not allowed this computer: unlock it, connect it by USB and tap Trust"
    )


@pytest.mark.parametrize("phone", ["pymobiledevice3"], indirect=True)
def test_trust_pending(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The phone has not allowed this computer"""
    text = "Waiting for the user to answer the Trust dialog on the device."
    phone.set(errors={"apps": {"pymobiledevice3": text}})
    line = refused(open_device)
    saw(line)
    assert line.endswith(
        "has not allowed this computer: unlock it, connect it by USB and tap Trust"
    )


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_developer_mode(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """Developer Mode is off"""
    phone.set(devices=[{"developer_mode": "disabled"}])
    line = refused(open_device)
    saw(line)
    assert "has Developer Mode switched off: Settings, Privacy & Security" in line


@pytest.mark.parametrize("phone", ["devicectl"], indirect=True)
def test_too_old_for_devicectl(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """iOS is too old for devicectl"""
    phone.set(devices=[{"os": "16.7.2"}])
    line = refused(open_device)
    saw(line)
    assert line.endswith("is too old for devicectl, which needs iOS 17: use pymobiledevice3")


def test_no_app(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The bench app is not installed"""
    phone.set(apps=["com.example.other"])
    line = refused(open_device)
    saw(line)
    assert "has no bench app: open runtime/ios/Apps/MTUApps.xcodeproj" in line
    assert line.endswith("press Run once; then run this command again")


def test_two_apps(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """Two bench apps are installed"""
    phone.set(apps=["b.mtuexport.bench", "a.mtuexport.bench"])
    line = refused(open_device)
    saw(line)
    assert line.endswith(
        "has 2 bench apps: a.mtuexport.bench, b.mtuexport.bench; remove all but one"
    )


def test_a_list_that_is_no_list(phone: FakePhone, open_device: Open, saw: Saw) -> None:
    """The program fails without a known reason"""
    text = "ERROR: Something new. (com.apple.dt.CoreDeviceError error 9999 (0x270F))"
    phone.set(errors={"list": dict.fromkeys(["devicectl", "pymobiledevice3"], text)})
    line = refused(open_device)
    saw(line)
    assert line.startswith(f"{phone.tool}: listing devices failed: ")
    assert "Something new." in line
