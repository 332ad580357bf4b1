"""Build wheel and sdist, look at what is in them, and use the wheel where there is no checkout.

Run from the repository with the environment of `make setup`: uv is beside this interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
PACKAGE = "mtu_export"
MODULE, MODULE_IN_WHEEL = "runtime/web/", "mtu_export/bench/web/mtu/"
SDIST_ONLY = {"PKG-INFO"}


def call(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command; it sees nothing of this checkout."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    start = time.monotonic()
    ended = subprocess.run(  # noqa: S603  commands written below
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    line = " ".join(Path(word).name if isinstance(word, Path) else word for word in command)
    print(f"{time.monotonic() - start:6.1f} s  {line}", flush=True)
    if ended.returncode != 0:
        raise SystemExit(f"{ended.stdout}\nended with {ended.returncode}")
    return ended.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of this checkout."""
    call(UV, "build", "--quiet", "--out-dir", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both hold what git has and nothing that lies about: no caches, no results, no pictures."""
    tracked = set(call("git", "ls-files", cwd=ROOT).splitlines())
    package = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    module = {name for name in tracked if name.startswith(MODULE)}
    moved = {name.replace(MODULE, MODULE_IN_WHEEL, 1) for name in module}
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    if files != package | moved:
        raise SystemExit(f"the wheel differs from git: {sorted(files ^ (package | moved))[:8]}")
    with tarfile.open(sdist) as archive:
        names = (member.name for member in archive if member.isfile())
        files = {name.partition("/")[2] for name in names}
    stray = files - tracked - SDIST_ONLY
    if stray or not package <= files:
        raise SystemExit(f"sdist: not in git {sorted(stray)[:8]}, {len(package - files)} missing")
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def read_without_torch(python: Path, folder: Path) -> None:
    """Verify and run the test bundle where neither PyTorch nor a checkout is."""
    command = python.with_name("mtu-export")
    data = ROOT / "runtime" / "testdata"
    request = json.loads((data / "request.json").read_text("utf-8"))
    installed = call(UV, "pip", "list", "--quiet", "--python", python, cwd=folder)
    if any(name in installed.split() for name in ("torch", "diffusers", "transformers")):
        raise SystemExit(f"the extra onnx brings too much:\n{installed}")
    call(command, "verify", data / request["bundle"], cwd=folder)
    call(
        *(command, "run", data / request["bundle"], "--prompt", request["prompt"]),
        *("--image", data / request["image"], "--steps", str(request["steps"])),
        *("-o", "picture.png"),
        cwd=folder,
    )


def main() -> None:
    """Every step in a temporary folder; the first that fails ends it."""
    with tempfile.TemporaryDirectory(prefix="mtu-export-") as name:
        folder = Path(name)
        wheel, sdist = build(folder / "dist")
        check_contents(wheel, sdist)
        python = folder / "environment" / "bin" / "python"
        call(UV, "venv", "--quiet", "--python", sys.executable, folder / "environment", cwd=folder)
        install = (UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
        constraints = ("-c", ROOT / "constraints.txt")
        call(*install, *constraints, f"{wheel}[onnx]", cwd=folder)
        read_without_torch(python, folder)
        call(*install, *constraints, f"{wheel}[export]", cwd=folder)
        export = (
            python.with_name("mtu-export"),
            "onnx",
            "--task",
            "inpaint",
            "--int8",
            "--components",
            "unet",
        )
        call(*export, "-o", "bundle", cwd=folder)
        call(python.with_name("mtu-export"), "verify", "bundle", cwd=folder)


if __name__ == "__main__":
    main()
