"""The C++ runner of a machine: where it lies, and how it is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mtu_export.spec import ToolchainError

CHECKOUT = Path(__file__).parents[2]
ASSEMBLE = Path("runtime") / "android" / "runner" / "assemble.py"
DESCRIPTION, START = "runner.json", "run.sh"
BUILD_SECONDS = 1200


def runner_folders(arch: str) -> list[Path]:
    """Where a runner of ``arch`` may lie, in the order that is searched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtu-export"
    named = os.environ.get("MTU_RUNNER")
    return [
        *([Path(named)] if named else []),
        CHECKOUT / "build" / "runner" / arch,
        cache / "runner" / arch,
    ]


def find_runner(arch: str) -> Path | None:
    """The folder of a runner of ``arch``: ``$MTU_RUNNER``, the checkout's, or the cache's."""
    for folder in runner_folders(arch):
        try:
            description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        is_it = isinstance(description, dict) and description.get("arch") == arch
        if is_it and (folder / START).is_file():
            return folder
    return None


def build_runner(arch: str) -> Path:
    """Build the runner of ``arch`` in this checkout; the error says what is missing."""
    script = CHECKOUT / ASSEMBLE
    if not script.is_file():
        raise ToolchainError(
            f"the runner is built from a checkout ({ASSEMBLE.as_posix()}); "
            "MTU_RUNNER names the folder of one that was built elsewhere"
        )
    command = [sys.executable, str(script), "--arch", arch]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"the runner was not built in {BUILD_SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ToolchainError(f"the runner cannot be built: {lines[-1].removeprefix('error: ')}")
    return CHECKOUT / "build" / "runner" / arch
