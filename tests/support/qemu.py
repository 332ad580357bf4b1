"""qemu-user 10 of Debian 13, one static file: runs aarch64 programs on an x86_64 machine.

``python tests/support/qemu.py`` fetches it into ``~/.cache/mtu-export/qemu`` and prints its path.
Debian 12's qemu 7.2 crashes in ONNX Runtime; ``-cpu max`` is twenty times slower than CPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

CPU = "cortex-a76"
RUNNER = Path(__file__).parents[2] / "runtime" / "android" / "runner"


@cache
def debian() -> ModuleType:
    """``runtime/android/runner/debian.py``, which lies in no package."""
    spec = importlib.util.spec_from_file_location("mtu_runner_debian", RUNNER / "debian.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def qemu_aarch64() -> Path:
    """The path of ``qemu-aarch64``; fetched the first time, by apt."""
    packages = debian()
    program = packages.cache_folder() / "qemu" / "qemu-aarch64"
    if not program.is_file():
        folder = packages.package("qemu-user", only="usr/bin/qemu-aarch64")
        program.parent.mkdir(parents=True, exist_ok=True)
        scratch = program.with_name(f".{program.name}.{os.getpid()}")
        shutil.copy2(folder / "usr" / "bin" / "qemu-aarch64", scratch)
        scratch.rename(program)
    return program


if __name__ == "__main__":
    print(qemu_aarch64(), file=sys.stdout)
