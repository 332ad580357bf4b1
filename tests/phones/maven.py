"""Maven in tests: one build at a time, without the network where what it needs is there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from tests.support import tools

ROOT = Path(__file__).parents[2]
ANDROID = ROOT / "runtime" / "android"
SECONDS = 1200


@cache
def script(name: str) -> ModuleType:
    """A Python script of runtime/android as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ANDROID / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def library() -> Path:
    """The folder of executorch-jvm's library, built for this machine."""
    for program in ("cmake", "g++", "javac"):
        tools.require(program)
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / ".executorch-jvm.lock"):
        command = [sys.executable, str(ANDROID / "executorch-jvm" / "assemble.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def build(*arguments: str) -> str:
    """Run Maven in runtime/android; returns what it writes."""
    tools.require("javac")
    command = [tools.require("mvn"), "-B", "-q", *arguments]
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / ".maven.lock"):
        for line in ([*command, "-o"], command):
            done = subprocess.run(
                line,
                cwd=ANDROID,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )
            if done.returncode == 0 or "offline" not in done.stdout.lower():
                break
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
