"""A private adb server, loopback phones that it sees, and the table of faults."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export.bench.devices.adb import AdbDevice, connect
from mtu_export.bench.job import Job, JobPart
from mtu_export.spec import TensorSpec
from tests.bench.loopback.phone import Phone, Server
from tests.support.tools import require

RUNNER = Path(__file__).with_name("runner")
HEAD = """# Faults of a phone, as users see them

Made by `make bench-loopback`, which injects each fault into a loopback phone that speaks adb's
protocol, behind the real adb client. SERIAL and ID stand for what differs.

| fault | what the user sees |
|---|---|
"""


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(require("adb"), tmp_path_factory.mktemp("adb-home")).running() as server:
        yield server


@pytest.fixture
def adb(adb_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The private server; this process's adb is its client."""
    for name, value in adb_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return adb_server


@pytest.fixture
def make_phone(adb: Server, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """A function that connects a phone; ``state`` other than ``device`` is one that needs help."""
    phones: list[Phone] = []
    connecting: list[subprocess.Popen[bytes]] = []

    def make(state: str = "device", **settings: Any) -> Phone:
        phone = Phone(tmp_path / f"phone{len(phones)}", state=state, **settings)
        phones.append(phone)
        connecting.append(
            subprocess.Popen(
                [adb.adb, "connect", phone.serial],
                env={**os.environ, **adb.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        deadline = time.monotonic() + 30
        while f"{phone.serial}\t{state}" not in (text := adb("devices")):
            assert time.monotonic() < deadline, f"{phone.serial} is no {state}: {text}"
            time.sleep(0.05)
        return phone

    yield make
    for phone in phones:
        phone.close()
        adb("disconnect", phone.serial)
    for process in connecting:
        process.kill()
        process.wait()


@pytest.fixture
def phone(make_phone: Callable[..., Phone]) -> Phone:
    return make_phone()


@pytest.fixture
def lines() -> list[str]:
    """What the device told the user."""
    return []


@pytest.fixture
def open_device(lines: list[str]) -> Iterator[Callable[..., AdbDevice]]:
    """A function that opens the device; it is closed at the end."""
    opened: list[AdbDevice] = []

    def open_(serial: str | None = None, *, runner: Path = RUNNER, keep: bool = False) -> AdbDevice:
        device = connect(serial, runner=lambda arch: runner, keep=keep, progress=lines.append)
        device.return_limit = 5.0
        opened.append(device)
        return device

    yield open_
    for device in opened:
        device.return_limit = 0.0
        device.close()


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A function that makes a job of one part of 300 kB; ``test`` tells the runner how to end."""
    folder = tmp_path / "bundle"
    (folder / "part").mkdir(parents=True)
    (folder / "part/it's $HOME;.onnx").write_bytes(np.random.default_rng(1).bytes(300_000))

    def make(test: str = "", **changes: Any) -> Job:
        value = TensorSpec(name="x", shape=(1, 3), dtype="float32")
        part = JobPart(path="part", entry="it's $HOME;.onnx", inputs=[value], outputs=[value])
        settings: dict[str, Any] = {
            "engine": "onnx",
            "folder": folder,
            "identity": "a bundle",
            "parts": {"p": part},
            "tensors": {"x": np.zeros((1, 3), "float32")},
            "program": [{"op": "call", "part": "p", "inputs": {"x": "x"}, "outputs": {"x": "y"}}],
            "options": {"test": test},
            "samples": 2,
        }
        return Job(**{**settings, **changes})

    return make


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Note what the user sees of a fault: with ``MTU_FAULTS`` a table of them is written there.

    The fault is the first line of the test's docstring.
    """
    fault = (request.function.__doc__ or "").strip().splitlines()[0]
    marked = (
        request.node.callspec.params.get("fault") if hasattr(request.node, "callspec") else None
    )

    def note(line: object) -> None:
        path = os.environ.get("MTU_FAULTS")
        if path:
            text = re.sub(r"127\.0\.0\.1:\d+", "SERIAL", str(line)).replace("|", "\\|")
            text = re.sub(r"(/mtu-export/)[0-9a-f]{12}", r"\1ID", text)
            with Path(path).open("a", encoding="utf-8") as table:
                head = "" if table.tell() else HEAD
                table.write(f"{head}| {marked or fault} | {text} |\n")

    return note
