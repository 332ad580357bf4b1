"""Debian 13's own ``adbd`` as the phone's daemon, in namespaces of its own.

``unshare -rnm python -m tests.bench.loopback.adbd FOLDER RUNNER`` starts it on a root folder with
this host's programs, where nothing outside reaches it, measures a bundle there by the adb device,
and prints what came of it as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtu_export import bundle
from mtu_export.bench import work
from mtu_export.bench.devices.adb import AdbDevice, connect
from tests.bench.loopback.phone import Server, free_port, furnish, tree, write
from tests.support.qemu import debian

BUNDLE = Path(__file__).parents[3] / "runtime" / "testdata" / "edit-onnx-int8"
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


def closure() -> Path:
    """adbd and its libraries, fetched by apt the first time."""
    return debian().package("adbd", dependencies=True)


def loopback_up() -> None:
    """Switch on the network of this namespace."""
    with socket.socket() as any_socket:
        up = struct.pack("16sh", b"lo", 0x1 | 0x8 | 0x40)  # UP, LOOPBACK, RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


@contextmanager
def daemon(root: Path, packages: Path) -> Iterator[int]:
    """The daemon at work; its port."""
    furnish(root / "phone")
    write(root / "phone/properties/ro.product.cpu.abilist", "x86_64\n")
    (root / "data/local/tmp").mkdir(parents=True)
    for name, source in {
        **{name: f"/{name}" for name in ("usr", "etc", "proc", "dev")},
        "adbd": str(packages),
    }.items():
        (root / name).mkdir()
        subprocess.run(["mount", "--rbind", source, root / name], check=True)
    (root / "tmp").mkdir()
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    port = free_port()
    libraries = "/adbd/usr/lib/x86_64-linux-gnu"
    process = subprocess.Popen(
        [
            "/adbd/usr/lib64/ld-linux-x86-64.so.2",
            *("--library-path", f"{libraries}:{libraries}/android"),
            "/adbd/usr/lib/android-sdk/platform-tools/adbd",
        ],
        env={"PATH": "/phone/bin:/usr/bin:/bin", "ROOT": "/phone", "ADBD_PORT": str(port)},
        cwd="/",
        preexec_fn=lambda: os.chroot(root),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def left(root: Path) -> list[str]:
    return tree(root / "data/local/tmp")


def until_empty(root: Path) -> list[str]:
    deadline = time.monotonic() + 20
    while left(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left(root)


def is_working(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def measure(root: Path, device: AdbDevice) -> dict[str, Any]:
    """A bundle, measured and checked."""
    source = bundle.read(BUNDLE)
    (task,) = source.tasks
    name = work.denoiser_of(source, task)
    assert name is not None
    settings = work.Settings(threads=1, samples=2, deadline_s=60)
    with device:
        device.prepare([source])
        timing = device.run(work.part_job(source, task.name, name, settings))
        check = device.run(work.part_check(source, task.name, name, settings)[0])
    return {
        "reasons": [timing.reason, check.reason],
        "samples": len(timing.samples_s),
        "psnr": list(check.psnr_db.values()),
        "left": left(root),
    }


def hang(root: Path, device: AdbDevice) -> dict[str, Any]:
    """A runner that hangs and ignores the end of its connection."""
    source = bundle.read(BUNDLE)
    (task,) = source.tasks
    name = work.denoiser_of(source, task)
    assert name is not None
    device.grace = 0.0
    with device:
        job = work.part_job(source, task.name, name, work.Settings(deadline_s=2))
        result = device.run(job)
        pid = (next(root.rglob("data/local/tmp/mtu-export/*/pid"))).read_text().strip()
        works = is_working(int(pid))
    return {"reason": result.reason, "works": works, "left": left(root)}


def session(root: Path, runner: Path) -> dict[str, Any]:
    """Everything that is tried."""
    loopback_up()
    packages = closure()
    slow = root.with_name("slow")
    write(slow / "run.sh", "#!/bin/sh\ntrap '' HUP\necho $$ > pid\nsleep 600\n")
    write(slow / "mtu-bench", "")
    adb = Server(os.environ.get("ADB") or "/usr/bin/adb", root.with_name("home"))
    os.environ.update(adb.environment)
    with daemon(root, packages) as port, adb.running():
        deadline = time.monotonic() + 20
        serial = f"127.0.0.1:{port}"
        while f"{serial}\tdevice" not in adb("devices") and time.monotonic() < deadline:
            adb("connect", serial)
            time.sleep(0.1)
        outcome: dict[str, Any] = {"measured": measure(root, connect(runner=lambda _: runner))}
        outcome["hung"] = hang(root, connect(runner=lambda _: slow))
        device = connect(runner=lambda _: runner)
        device.prepare([])
        outcome["pushed"] = len(left(root))
        adb("disconnect", serial)
        outcome["left after the cut"] = until_empty(root)
    return outcome


if __name__ == "__main__":
    print(json.dumps(session(Path(sys.argv[1]), Path(sys.argv[2]))))
