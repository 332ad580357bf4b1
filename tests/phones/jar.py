"""``mtu-cli.jar`` in tests: built where its sources are newer, run as users run it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from tests.phones import maven
from tests.support import tools

JAR = maven.ANDROID / "cli" / "target" / "mtu-cli.jar"
MODULES = ("core", "onnx", "executorch-jvm", "executorch", "cli")
SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run left."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of standard error."""
        return (self.err.splitlines() or [""])[-1]


def _sources() -> list[Path]:
    poms = [maven.ANDROID / "pom.xml", *(maven.ANDROID / name / "pom.xml" for name in MODULES)]
    main = [maven.ANDROID / name / "src" / "main" for name in MODULES]
    return [*poms, *(file for folder in main for file in folder.rglob("*") if file.is_file())]


@cache
def jar() -> Path:
    """The program."""
    tools.require("java")
    (maven.ROOT / "build").mkdir(exist_ok=True)
    with FileLock(maven.ROOT / "build" / ".mtu-cli.lock"):
        newest = max(file.stat().st_mtime for file in _sources())
        if not JAR.is_file() or JAR.stat().st_mtime < newest:
            maven.build("package", "-Dmaven.test.skip=true", "-pl", "cli", "-am")
            os.utime(JAR)
    return JAR


def run(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> Ended:
    """``java -jar mtu-cli.jar ARGUMENTS``."""
    done = subprocess.run(
        [tools.require("java"), "-jar", str(program or jar()), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)
