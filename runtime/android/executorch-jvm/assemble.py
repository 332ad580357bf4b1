"""Builds the native side of executorch-jvm, with ExecuTorch's: build/executorch-jvm/<arch>.

``python assemble.py`` builds for this machine, ``--arch aarch64`` for Linux on such. Java programs
name the folder by ``-Dmtu.executorch=FOLDER`` or ``$MTU_EXECUTORCH``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LIBRARY = "libmtu_executorch_jni.so"


def _runner() -> ModuleType:
    """The runner's ``assemble.py``, which knows engines and tools."""
    path = HERE.parent / "runner" / "assemble.py"
    spec = importlib.util.spec_from_file_location("mtu_runner_assemble", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner = _runner()
AssemblyError: type[Exception] = runner.AssemblyError


def jni_include() -> Path:
    """The folder of ``jni.h``: of ``$JAVA_HOME``, or of the ``javac`` on PATH."""
    homes = [Path(home)] if (home := os.environ.get("JAVA_HOME")) else []
    if (compiler := shutil.which("javac")) is not None:
        homes.append(Path(compiler).resolve().parents[1])
    for home in homes:
        if (home / "include" / "linux" / "jni_md.h").is_file():
            return home / "include"
    package = "openjdk-17-jdk-headless"
    raise AssemblyError(f"a JDK is missing; install it with: apt-get install {package}")


def assemble(arch: str, output: Path) -> Path:
    """Build for ``arch`` and replace the folder ``output``; returns it."""
    executorch = runner.engine_folder("executorch", arch) / "executorch"
    build = ROOT / "build" / "executorch-jvm-cmake" / arch
    is_own = arch == platform.machine()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    toolchain = HERE.parent / "runner" / f"{arch}-linux-gnu.cmake"
    runner._run(
        [
            *(runner._cmake(), "-S", HERE, "-B", build, *generator, "-DCMAKE_BUILD_TYPE=Release"),
            *([] if is_own else [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]),
            f"-DJNI_INCLUDE={jni_include()}",
            f"-Dexecutorch_DIR={executorch / 'lib' / 'cmake' / 'executorch'}",
        ],
        "cmake",
    )
    runner._run([runner._cmake(), "--build", build], "the compiler")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        shutil.copy(build / LIBRARY, folder / LIBRARY)
        for name in runner.ENGINE_LIBRARIES:
            shutil.copy(executorch / "lib" / name, folder / name)
        shutil.rmtree(output, ignore_errors=True)
        folder.rename(output)
    return output


def main() -> int:
    """Assemble one folder and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", choices=runner.ARCHITECTURES, default=platform.machine())
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or ROOT / "build" / "executorch-jvm" / arguments.arch
    try:
        if platform.system() != "Linux" or arguments.arch not in runner.ARCHITECTURES:
            raise AssemblyError("the library is built on Linux, for x86_64 and aarch64")
        print(assemble(arguments.arch, output))
    except AssemblyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except (OSError, subprocess.SubprocessError) as error:
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
