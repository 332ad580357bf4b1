"""Programs of the system that some tests need."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "adb": "adb",
    "chromium": "chromium",
    "cmake": "cmake",
    "g++": "g++",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "node": "nodejs",
    "mvn": "maven",
    "javac": "openjdk-17-jdk-headless",
}
"""Debian's package of each program."""


def require(name: str) -> str:
    """Path of a program. Without it the test is skipped, where ``.ci/run`` asks for it, failed."""
    path = shutil.which(name)
    if path is not None:
        return path
    return missing(f"{name} is not installed (Debian: {PACKAGES.get(name, name)})")


def require_package(name: str, extra: str) -> None:
    """A Python package of an extra, as :func:`require` a program."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed (extra {extra})")


def missing(reason: str) -> NoReturn:
    """Skip the test for want of a tool; fail it where ``MTU_REQUIRE_TOOLS`` is set."""
    if os.environ.get("MTU_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)
