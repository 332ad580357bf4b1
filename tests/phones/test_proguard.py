"""ProGuard over mtu-cli.jar: with the modules' rules it works, without them it does not.

R8 is not to be had here. What it shares with ProGuard is what breaks apps: names that a native
library looks up are renamed or removed, unless rules keep them.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.phones import jar, maven
from tests.support import tools

pytestmark = pytest.mark.slow
TOOL = maven.ANDROID / "tools" / "proguard"
TESTDATA = maven.ROOT / "runtime" / "testdata"
OURS = ("mtu-onnx.pro", "mtu-executorch.pro")
MODULES = ("java.base", "java.desktop", "java.logging", "java.xml", "jdk.unsupported")


@cache
def proguard() -> str:
    """Class path of ProGuard."""
    folder = TOOL / "target" / "dependency"
    if not folder.is_dir():
        maven.build("-f", str(TOOL / "pom.xml"), "package")
    return os.pathsep.join(map(str, sorted(folder.glob("*.jar"))))


def shrink(folder: Path, *, with_rules: bool) -> Path:
    """The program, shrunk and renamed, with or without the modules' own rules."""
    program = jar.jar()
    out = folder / "small.jar"
    home = Path(tools.require("javac")).resolve().parents[1]
    with zipfile.ZipFile(program) as archive:
        names = [name for name in archive.namelist() if name.startswith("META-INF/proguard/")]
        rules = [name for name in names if name.endswith(".pro")]
        assert {Path(name).name for name in rules} >= set(OURS)
        taken = [name for name in rules if with_rules or Path(name).name not in OURS]
        text = "\n".join(archive.read(name).decode() for name in taken)
    libraries = (f"-libraryjars {home}/jmods/{m}.jmod(!**.jar;!module-info.class)" for m in MODULES)
    (folder / "all.pro").write_text(
        f"-injars {program}\n-outjars {out}\n"
        + "\n".join(libraries)
        + f"\n{(TOOL / 'program.pro').read_text()}\n{text}\n"
    )
    done = subprocess.run(
        [tools.require("java"), "-cp", proguard(), "proguard.ProGuard", f"@{folder / 'all.pro'}"],
        capture_output=True,
        text=True,
        timeout=jar.SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def run(program: Path, out: Path) -> jar.Ended:
    return jar.run(
        *("run", TESTDATA / "edit-onnx-int8", "-o", out, "--prompt", "make it red"),
        *("--image", TESTDATA / "input.png", "--seed", "3"),
        program=program,
        cwd=out.parent,
    )


def test_with_our_rules_the_picture_is_the_same(tmp_path: Path) -> None:
    program = shrink(tmp_path, with_rules=True)
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
    ended = run(shrink(tmp_path, with_rules=False), tmp_path / "out.png")
    assert ended.code != 0
    assert not (tmp_path / "out.png").exists()
