"""Native libraries for arm64 phones and boards load on kernels with pages of 16 KiB."""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.phones import jar, maven
from tests.support import tools

PAGE = 16_384
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def alignments(library: Path) -> list[int]:
    listed = subprocess.run(
        [tools.require("readelf"), "-lW", library], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in listed.splitlines() if line.strip().startswith("LOAD")]
    return [int(words[-1], 16) for words in lines]


def test_libraries_that_the_program_packs(tmp_path: Path) -> None:
    with zipfile.ZipFile(jar.jar()) as archive:
        names = [n for n in archive.namelist() if n.endswith(".so") and "aarch64" in n]
        packed = [Path(archive.extract(name, tmp_path)) for name in names]
    assert {path.name for path in packed} == {"libonnxruntime.so", "libonnxruntime4j_jni.so"}
    for path in packed:
        assert alignments(path), path
        assert all(value % PAGE == 0 for value in alignments(path)), path


def test_libraries_of_executorch_for_java() -> None:
    if platform.machine() != "aarch64":
        tools.require("aarch64-linux-gnu-g++")
    tools.require("cmake")
    builder = maven.ANDROID / "executorch-jvm" / "assemble.py"
    done = subprocess.run(
        [sys.executable, builder, "--arch", "aarch64"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = sorted(Path(done.stdout.strip()).glob("*.so*"))
    assert "libmtu_executorch_jni.so" in {path.name for path in built}
    for path in built:
        assert alignments(path), path
        assert all(value % PAGE == 0 for value in alignments(path)), path
