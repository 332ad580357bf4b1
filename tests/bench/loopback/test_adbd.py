"""The adb device against Debian's own ``adbd``: what adb promises, adb itself keeps."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import runners
from tests.bench.loopback.adbd import closure
from tests.support.qemu import debian
from tests.support.tools import missing, require

pytestmark = pytest.mark.slow
UNSHARE = ("unshare", "--map-root-user", "--net", "--mount")


def test_the_real_daemon(tmp_path: Path) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("Debian's adbd runs here on x86_64 Linux alone")
    allowed = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True
    )
    if allowed.returncode != 0:
        pytest.skip(f"namespaces are not allowed: {allowed.stderr.decode().strip()[:200]}")
    require("adb")
    runner = runners.built()
    try:
        closure()
    except debian().DebianError as error:
        missing(str(error))
    module = [sys.executable, "-m", "tests.bench.loopback.adbd", tmp_path / "root", runner]
    done = subprocess.run([*UNSHARE, *module], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["measured"]["reasons"] == [None, None]
    assert outcome["measured"]["samples"] == 2
    assert min(outcome["measured"]["psnr"]) > 40
    assert outcome["measured"]["left"] == []
    assert outcome["hung"] == {
        "reason": "the runner hangs: nothing for 2 s; it was killed",
        "works": False,
        "left": [],
    }
    assert outcome["pushed"] > 0
    assert outcome["left after the cut"] == []
