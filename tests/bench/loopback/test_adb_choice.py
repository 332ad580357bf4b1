"""Phones that cannot be used, and the line that the user sees."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench.devices.adb import AdbDevice, client
from mtu_export.spec import DeviceError, MtuExportError, RuntimeUnavailable
from tests.bench.loopback.phone import Phone, Server

Open = Callable[..., AdbDevice]
MakePhone = Callable[..., Phone]
Saw = Callable[[object], None]


def refused(open_device: Open, serial: str | None = None) -> str:
    with pytest.raises(MtuExportError) as error:
        open_device(serial)
    (line,) = str(error.value).splitlines()
    return line


def test_adb_is_missing(open_device: Open, saw: Saw, monkeypatch: pytest.MonkeyPatch) -> None:
    """adb is not installed"""
    monkeypatch.setenv("ADB", "adb-that-is-not-there")
    line = refused(open_device)
    saw(line)
    assert line.startswith("adb-that-is-not-there is not installed: Android's platform-tools")


def test_the_server_does_not_start(
    adb: Server, open_device: Open, saw: Saw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adb's server does not start"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(taken.getsockname()[1]))
        line = refused(open_device)
    saw(line)
    assert line.startswith("adb's server does not start: ")


def test_adb_is_another_program(
    tmp_path: Path, open_device: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADB", "false")
    assert refused(open_device) == "adb's server does not start: exit 1"
    program = tmp_path / "adb"
    program.write_text("text")
    program.chmod(0o755)
    monkeypatch.setenv("ADB", str(program))
    with pytest.raises(RuntimeUnavailable, match="does not run: Exec format error"):
        open_device()


def test_lines_of_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "adb"
    lines = (
        "* daemon started successfully",
        "List of devices attached",
        "adb-R58 (2)._adb-tls-connect._tcp device product:a2q model:SM_G998 transport_id:3",
        "????????????           no permissions (missing udev rules?); see [link] usb:1-2",
        "R58N1                  recovery transport_id:4",
        "garbage",
    )
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    phones = client.listed(str(program))
    assert [(phone.serial, phone.state, phone.model) for phone in phones] == [
        ("adb-R58 (2)._adb-tls-connect._tcp", "device", "SM_G998"),
        ("????????????", "no permissions", "model unknown"),
        ("R58N1", "recovery", "model unknown"),
    ]
    with pytest.raises(DeviceError, match=r"\?{12} may not be opened by this user"):
        client.choose(phones[1:2], None)
    with pytest.raises(DeviceError, match="R58N1 is in recovery: start Android"):
        client.choose(phones, "R58N1")


def test_no_phone(adb: Server, open_device: Open, saw: Saw) -> None:
    """No phone is connected"""
    line = refused(open_device)
    saw(line)
    assert line.startswith("adb sees no phone: connect one by USB")


def test_several_phones(make_phone: MakePhone, open_device: Open, saw: Saw) -> None:
    """Two phones are connected"""
    first, second = make_phone(), make_phone(model="Loop_2")
    line = refused(open_device)
    saw(line)
    assert line.startswith("adb sees 2 phones; name one with --device adb:SERIAL: ")
    assert f"{first.serial} (device, Loop_1)" in line
    assert f"{second.serial} (device, Loop_2)" in line
    assert open_device(second.serial).name == f"adb:{second.serial}"


def test_a_serial_that_is_not_there(phone: Phone, open_device: Open, saw: Saw) -> None:
    """`--device adb:SERIAL` of a phone that is not connected"""
    line = refused(open_device, "R58N12345")
    saw(line)
    assert line == f"adb sees no phone R58N12345; it sees: {phone.serial} (device, Loop_1)"


def test_the_serial_of_the_environment(
    make_phone: MakePhone, open_device: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_phone()
    second = make_phone()
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    assert open_device().name == f"adb:{second.serial}"


@pytest.mark.parametrize(
    ("fault", "state", "says"),
    [
        (
            "The phone has not allowed USB debugging",
            "unauthorized",
            "is unauthorized: unlock the phone and allow USB debugging",
        ),
        ("The phone is offline", "offline", "is offline: it does not answer"),
    ],
)
def test_a_phone_that_is_not_ready(
    make_phone: MakePhone, open_device: Open, saw: Saw, fault: str, state: str, says: str
) -> None:
    """The phone is not ready"""
    phone = make_phone(state)
    line = refused(open_device)
    saw(line)
    assert line.startswith(f"{phone.serial} {says}")


@pytest.mark.parametrize(
    ("fault", "name", "value", "says"),
    [
        (
            "The phone has another processor",
            "ro.product.cpu.abilist",
            "armeabi-v7a,armeabi",
            "has the ABIs armeabi-v7a, armeabi; the runner needs arm64-v8a or x86_64",
        ),
        ("The phone has no ABI", "ro.product.cpu.abilist", "", "has the ABIs none; the runner"),
        (
            "Android is too old",
            "ro.build.version.sdk",
            "25",
            "has Android 14 (SDK level 25); it needs Android 8 (SDK level 26)",
        ),
        (
            "Android does not tell its version",
            "ro.build.version.sdk",
            "\x1b[2Jx",
            "has Android 14 (an unknown SDK level); it needs",
        ),
    ],
)
def test_a_phone_that_cannot_run_it(
    phone: Phone, open_device: Open, saw: Saw, fault: str, name: str, value: str, says: str
) -> None:
    """The phone cannot run it"""
    phone.write(f"properties/{name}", f"{value}\n")
    line = refused(open_device)
    saw(line)
    assert line.startswith(f"{phone.serial} {says}")
    assert phone.left() == []
