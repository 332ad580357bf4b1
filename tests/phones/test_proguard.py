"""ProGuard over mtu-cli.jar: with the modules' rules it works, without them it does not.

R8 is not to be had here. What it shares with ProGuard is what breaks apps: names that a native
library looks up are renamed or removed, unless rules keep them.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.phones import jar, maven
from tests.support import tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TESTDATA = maven.ROOT / "runtime" / "testdata"


def shrink(folder: Path, *words: str) -> Path:
    """The program, shrunk and renamed."""
    program = jar.jar()
    assert program == maven.ANDROID / "cli" / "target" / "mtu-cli.jar"
    tools.require("javac")
    command = [sys.executable, maven.ANDROID / "tools" / "shrink.py", "-o", folder / "small.jar"]
    with FileLock(maven.ROOT / "build" / ".maven.lock"):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=jar.SECONDS, check=False
        )
    assert done.returncode == 0, done.stderr
    return folder / "small.jar"


def run(program: Path, out: Path) -> jar.Ended:
    return jar.run(
        *("run", TESTDATA / "edit-onnx-int8", "-o", out, "--prompt", "make it red"),
        *("--image", TESTDATA / "input.png", "--seed", "3"),
        program=program,
        cwd=out.parent,
    )


def test_with_our_rules_the_picture_is_the_same(tmp_path: Path) -> None:
    program = shrink(tmp_path)
    with zipfile.ZipFile(program) as small, zipfile.ZipFile(jar.jar()) as whole:
        classes = [len([n for n in z.namelist() if n.endswith(".class")]) for z in (small, whole)]
    assert classes[0] < classes[1] / 2
    assert run(jar.jar(), tmp_path / "whole.png").code == 0
    ended = run(program, tmp_path / "small.png")
    assert (ended.code, ended.err) == (0, "")
    whole, small = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("whole", "small"))
    assert (whole == small).all()


def test_without_our_rules_it_does_not_work(tmp_path: Path) -> None:
    """The process crashes in the native library, as an app would."""
    ended = run(shrink(tmp_path, "--without-rules"), tmp_path / "out.png")
    assert ended.code != 0
    assert not (tmp_path / "out.png").exists()
