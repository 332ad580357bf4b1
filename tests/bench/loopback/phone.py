"""A loopback phone with its own adb server: nothing of the user's adb is touched."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.loopback.daemon import Daemon, Settings

PROGRAMS = Path(__file__).with_name("bin")
PROPERTIES = {
    "ro.product.manufacturer": "Loop",
    "ro.product.model": "Loop One",
    "ro.soc.manufacturer": "Emulated",
    "ro.soc.model": "QEMU 10",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.id": "UP1A.231005.007",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
    "ro.kernel.qemu": "1",
}
FILES = {
    "proc/meminfo": "MemTotal:        7654321 kB\nMemFree: 1000 kB\nMemAvailable:    4321000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16 sve\n\n"
    "processor\t: 1\nFeatures\t: fp asimd asimddp i8mm\n\nHardware\t: QEMU\n",
    "sys/devices/system/cpu/possible": "0-1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1804800\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2841600\n",
}
THERMAL = """IsStatusOverride: false
Thermal Status: %d
Cached temperatures:
	Temperature{mValue=41.5, mType=3, mName=skin, mStatus=0}
Current temperatures from HAL:
	Temperature{mValue=36.25, mType=0, mName=CPU0, mStatus=0}
	Temperature{mValue=38.5, mType=3, mName=skin, mStatus=0}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 85
  scale: 100
  temperature: 312
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def tree(folder: Path) -> list[str]:
    """The paths below a folder, which may go away meanwhile."""
    walk = os.walk(folder)
    paths = [Path(parent, name) for parent, *names in walk for name in (*names[0], *names[1])]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def furnish(root: Path) -> None:
    """The programs, properties and files of a phone, below a folder."""
    (root / "data/local/tmp").mkdir(parents=True)
    shutil.copytree(PROGRAMS, root / "bin")
    for name, text in FILES.items():
        write(root / name, text)
    for name, text in PROPERTIES.items():
        write(root / "properties" / name, text)
    write(root / "dumpsys/thermalservice", THERMAL % 0)
    write(root / "dumpsys/battery", BATTERY)
    write(root / "free", "50000000\n")


class Phone:
    """A phone on 127.0.0.1; ``settings`` says how it behaves, ``root`` what lies on it."""

    def __init__(self, root: Path, *, state: str = "device", **settings: Any) -> None:
        self.root = root
        furnish(root)
        self.settings = Settings(root=root, **settings)
        self.settings.state = state  # type: ignore[assignment]
        self.daemon = Daemon(self.settings)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.wait(self.daemon.listen(free_port()))

    def write(self, name: str, text: str) -> None:
        """Change a file of the phone."""
        write(self.root / name, text)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the daemon's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.daemon.port}"

    @property
    def folder(self) -> Path:
        """The phone's /data/local/tmp."""
        return self.root / "data/local/tmp"

    def left(self) -> list[str]:
        """What lies in /data/local/tmp."""
        return tree(self.folder)

    def commands(self) -> str:
        """Everything that was asked of the phone."""
        return "\n".join(self.settings.services)

    def unplug(self) -> None:
        self.loop.call_soon_threadsafe(self.daemon.vanish)

    def plug(self) -> None:
        self.wait(self.daemon.listen(self.daemon.port))

    def close(self) -> None:
        self.wait(self.daemon.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Server:
    """An adb server of the test alone."""

    def __init__(self, adb: str, home: Path) -> None:
        self.adb = adb
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "HOME": str(home),
            "ANDROID_ADB_SERVER_PORT": str(free_port()),
            "ADB": adb,
        }

    def __call__(self, *words: str, seconds: float = 30) -> str:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            [self.adb, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        ).stdout

    @contextmanager
    def running(self) -> Iterator[Server]:
        self("start-server")
        try:
            yield self
        finally:
            self("kill-server")


def free_port() -> int:
    """A port away from those that adb takes for emulators."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 5500 <= port <= 5700:
            return port
