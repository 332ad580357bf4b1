"""onnxruntime-web: where it lies, and the one command of npm that brings it.

It is no dependency of Python. ``make web`` puts it into the cache:
``python -m mtu_export.bench.web.engine``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mtu_export.spec import ToolchainError

PACKAGE, VERSION = "onnxruntime-web", "1.27.0"
_BINARIES = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}
FILES = {
    provider: (f"ort.{provider}.bundle.min.mjs", f"{binary}.mjs", f"{binary}.wasm")
    for provider, binary in _BINARIES.items()
}
"""Files of ``dist`` by execution provider: the module, and what it loads."""
INSTALL_SECONDS = 300


def cache() -> Path:
    """Where ``make web`` puts it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "mtu-export" / "ort-web" / VERSION


def command(folder: str) -> list[str]:
    """What installs it into a folder, without scripts and lock files."""
    options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    return ["npm", "install", "--prefix", folder, *options, f"{PACKAGE}@{VERSION}"]


def find(named: Path | None = None) -> Path:
    """The folder of the package: ``named`` (``--ort-web``) or the cache.

    ``named`` may be the package's folder, its ``dist``, or where npm installed it. Raises
    ``ToolchainError`` with the command that brings it.
    """
    folder = cache() if named is None else named
    for package in (folder, folder / "node_modules" / PACKAGE, folder.parent):
        if _version(package) is not None:
            return package
    line = " ".join(command("DIR"))
    problem = "is not here" if named is None else f"is not in {str(named)!r}"
    raise ToolchainError(f"{PACKAGE} {problem}; get it with: {line}, then name it: --ort-web DIR")


def files(package: Path) -> Mapping[str, Path]:
    """The files that a browser loads, by name. Raises ``ToolchainError`` where one is missing."""
    paths = {name: package / "dist" / name for names in FILES.values() for name in names}
    for path in paths.values():
        if not path.is_file():
            raise ToolchainError(f"{PACKAGE} {_version(package)} in {package} has no {path.name}")
    return paths


def _version(package: Path) -> str | None:
    """The version of a folder that is the package."""
    try:
        document = json.loads((package / "package.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    is_it = isinstance(document, dict) and document.get("name") == PACKAGE
    return str(document.get("version")) if is_it else None


def install() -> Path:
    """Install it into the cache, where it is not yet; the error says what is missing."""
    try:
        return find()
    except ToolchainError:
        pass
    npm = shutil.which("npm")
    if npm is None:
        raise ToolchainError("npm is not installed (Debian: npm)")
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    line = [npm, *command(str(folder))[1:]]
    try:
        done = subprocess.run(  # noqa: S603
            line, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"npm did not end in {INSTALL_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ToolchainError(f"npm cannot install {PACKAGE}: {lines[0]}")
    return find()


if __name__ == "__main__":
    try:
        print(install())
    except ToolchainError as error:
        sys.exit(f"error: {error}")
