"""What iOS apps embed: the size of each module of runtime/ios, compiled for release.

python benchmarks/ios.py    -> results/ios.json, ios.md; needs Swift (`make swift-env`) and binutils
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from mtu_export.storage.files import atomic_file

HERE = Path(__file__).parent
TOOLCHAIN = HERE.parent / "runtime" / "ios" / "toolchain.py"
BUILD = HERE.parent / "build" / "swift-release"
MODULES = ("MTUCore", "MTUCoreML")


def build() -> None:
    """Compile the package for release, Core ML's part against the stub."""
    words = ["env", "MTU_STUB_COREML=1", "swift", "build", "-c", "release"]
    command = [sys.executable, str(TOOLCHAIN), "run", "--", *words, "--scratch-path", str(BUILD)]
    subprocess.run(command, check=True)


def module_size(module: str) -> dict[str, int]:
    """Bytes of code and of data in the objects of a module, as ``size`` counts them."""
    objects = sorted(BUILD.glob(f"*/release/{module}.build/**/*.o"))
    if not objects:
        raise SystemExit(f"error: {BUILD} has no objects of {module}")
    listed = subprocess.run(
        ["size", *map(str, objects)], check=True, capture_output=True, text=True
    )
    sizes = [line.split() for line in listed.stdout.splitlines()[1:]]
    return {"code": sum(int(s[0]) for s in sizes), "data": sum(int(s[1]) for s in sizes)}


def main() -> None:
    """Measure and write."""
    build()
    sizes = {module: module_size(module) for module in MODULES}
    day = datetime.now(UTC).date().isoformat()
    document = {"date": day, "platform": "x86_64-linux", "bytes": sizes}
    with atomic_file(HERE / "results" / "ios.json") as path:
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    lines = ["# What iOS apps embed", "", "Made by `make ios-results`.", ""]
    lines += [
        "Compiled for release on Linux x86_64, of which an app's linker keeps what is called.",
        "",
    ]
    lines += ["| module | code, kB | data, kB |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {size['code'] / 1e3:,.0f} | {size['data'] / 1e3:,.0f} |"
        for name, size in sizes.items()
    ]
    with atomic_file(HERE / "results" / "ios.md") as path:
        path.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
