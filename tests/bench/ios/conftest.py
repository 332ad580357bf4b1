"""Fake programs for iPhones, a phone that is a folder, and the table of faults."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export.bench.devices.ios import IosDevice, connect
from mtu_export.bench.devices.ios.pymobiledevice import Pymobiledevice
from mtu_export.bench.job import Job, JobPart
from mtu_export.spec import TensorSpec

PROGRAMS = Path(__file__).with_name("programs")
TOOLS = ("devicectl", "pymobiledevice3")


class FakePhone:
    """A phone that the fake programs see; ``tool`` is the one that is installed."""

    def __init__(self, root: Path, tool: str) -> None:
        self.root, self.tool = root, tool
        (root / "container" / "Documents").mkdir(parents=True)

    def set(self, **settings: Any) -> None:
        """Change how it behaves."""
        path = self.root / "settings.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, **settings}))

    @property
    def bench(self) -> Path:
        """The app's folder."""
        return self.root / "container" / "Documents" / "bench"

    def left(self) -> list[str]:
        """The folders of sessions that are on it."""
        if not self.bench.is_dir():
            return []
        return sorted(path.name for path in self.bench.iterdir() if path.is_dir())

    def count(self) -> int:
        """How much was asked."""
        path = self.root / "log.txt"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def commands(self, kind: str) -> list[list[str]]:
        """What was asked, of one kind."""
        path = self.root / "log.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        pairs = (line.split(" ", 1) for line in lines)
        return [json.loads(words) for found, words in pairs if found == kind]


def install(folder: Path, name: str) -> Path:
    """A fake program as an executable file."""
    path = folder / name
    script = PROGRAMS / ("xcrun.py" if name == "xcrun" else f"{name}.py")
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {script} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(params=TOOLS)
def phone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> FakePhone:
    """A phone behind either program."""
    phone = FakePhone(tmp_path / "phone", request.param)
    programs = {"devicectl": ("XCRUN", "xcrun"), "pymobiledevice3": ("PYMOBILEDEVICE3",) * 2}
    for tool, (variable, name) in programs.items():
        there = tool == request.param
        path = install(tmp_path, name.lower()) if there else tmp_path / "no-such-program"
        monkeypatch.setenv(variable, str(path))
    monkeypatch.setenv("FAKE_PHONE", str(phone.root))
    return phone


@pytest.fixture
def lines() -> list[str]:
    """What the device told the user."""
    return []


@pytest.fixture
def open_device(lines: list[str]) -> Iterator[Callable[..., IosDevice]]:
    """A function that opens the device; it is closed at the end."""
    opened: list[IosDevice] = []

    def open_(udid: str | None = None) -> IosDevice:
        device = connect(udid, progress=lines.append)
        device.return_limit = 5.0
        if isinstance(device.tool, Pymobiledevice):
            device.tool.poll = 0.05
        opened.append(device)
        return device

    yield open_
    for device in opened:
        device.return_limit = 0.0
        device.close()


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A function that makes a job of one package with a file of 300 kB."""
    folder = tmp_path / "bundle"
    package = folder / "unet.mlpackage"
    (package / "Data/com.apple.CoreML").mkdir(parents=True)
    (package / "Manifest.json").write_text("{}")
    (package / "Data/com.apple.CoreML/it's $HOME.bin").write_bytes(
        np.random.default_rng(1).bytes(300_000)
    )

    def make(**changes: Any) -> Job:
        value = TensorSpec(name="x", shape=(1, 3), dtype="float32")
        part = JobPart(path="unet.mlpackage", entry="main", inputs=[value], outputs=[value])
        settings: dict[str, Any] = {
            "engine": "coreml",
            "folder": folder,
            "identity": "a bundle",
            "parts": {"unet": part},
            "tensors": {"x": np.zeros((1, 3), "float32")},
            "program": [
                {"op": "call", "part": "unet", "inputs": {"x": "x"}, "outputs": {"x": "y"}}
            ],
            "options": {"compute_unit": "CPU_AND_NE"},
            "samples": 2,
        }
        return Job(**{**settings, **changes})

    return make


@pytest.fixture
def saw(request: pytest.FixtureRequest, phone: FakePhone) -> Callable[[object], None]:
    """Note what the user sees of a fault: with ``MTU_FAULTS`` it is a line of that file.

    The fault is the first line of the test's docstring; ``benchmarks/ios_faults.py`` makes the
    table.
    """
    fault = (request.function.__doc__ or "").strip().splitlines()[0]

    def note(line: object) -> None:
        path = os.environ.get("MTU_FAULTS")
        if path:
            text = re.sub(r"00008120-0014485601E3C01E \([^)]*\)", "PHONE", str(line))
            text = re.sub(r"(Documents/bench/)[0-9a-f]{12}", r"\1ID", text)
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps([fault, phone.tool, text]) + "\n")

    return note
