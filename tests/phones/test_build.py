"""`make android` on machines without its tools, and what its build script asks of Maven."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.phones import maven

BUILD = maven.ANDROID / "build.py"


def run(tmp_path: Path, programs: dict[str, str], **environment: str) -> tuple[int, str]:
    """The script where these shell scripts are all the programs that there are."""
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key != "MTU_REQUIRE_TOOLS"}
    done = subprocess.run(
        [sys.executable, BUILD],
        env={**kept, "PATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "no JDK 17 or no Maven here (Debian: apt install openjdk-17-jdk-headless maven)"),
        ({"javac": "echo javac 17.0.1"}, "no JDK 17 or no Maven here (Debian: apt install "),
        ({"javac": "echo javac 11.0.2", "mvn": "exit 1"}, "JDK 17 or newer is needed (Debian: "),
    ],
)
def test_without_tools_it_is_skipped_in_one_line(
    tmp_path: Path, programs: dict[str, str], reason: str
) -> None:
    code, out = run(tmp_path, programs)
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith(f"android: skipped: {reason}")
    code, out = run(tmp_path, programs, MTU_REQUIRE_TOOLS="1")
    assert (code, out.count("\n")) == (4, 1)
    assert out.startswith(f"android: failed: {reason}")


def test_maven_is_asked_offline_first_and_fetches_what_it_lacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fetch = 'case "$*" in *-o) echo "offline mode: has not been downloaded"; exit 1;; esac'
    programs = {"javac": "echo javac 17.0.1", "mvn": f'echo "$@" >> {log}; {fetch}'}
    code, out = run(tmp_path, programs)
    assert code == 0
    assert "android: Maven fetches what it lacks" in out
    first, second = log.read_text().splitlines()
    assert first == f"{second} -o"
    assert first.startswith(f"-B -q -f {maven.ANDROID / 'pom.xml'} package")


def test_a_build_that_fails_is_not_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    mvn = f'echo "$@" >> {log}; echo "There are test failures."; exit 1'
    code, out = run(tmp_path, {"javac": "echo javac 21", "mvn": mvn})
    assert (code, len(log.read_text().splitlines())) == (1, 1)
    assert "There are test failures." in out
