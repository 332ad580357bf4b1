"""Builds mtu-bench and puts it with its engines into one folder: build/runner/<arch>.

``python assemble.py`` builds for this machine, ``--arch aarch64`` for phones: that folder has its
own loader and C library and needs nothing installed. Its ``runner.json`` lists versions and files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE))
import debian  # noqa: E402

ARCHITECTURES = ("x86_64", "aarch64")
LEAST_CMAKE = (3, 21)
PAGE = 16_384
"""Bytes of a page on phones that need it; every ELF file of a phone's folder is aligned to it."""

OWN_PAGE = 65_536
ENGINE_LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
    "libexecutorch_threadpool.so",
)
START = """#!/system/bin/sh
# Starts the runner with the libraries of this folder: sh run.sh JOB.json -o RESULT.json
here=$(cd "$(dirname "$0")" && pwd) || exit 2
exec {command} "$@"
"""


class AssemblyError(Exception):
    """One line: what is missing or failed, and what to do."""


# ---------------------------------------------------------------------------------------- ELF files


@dataclass(frozen=True, kw_only=True)
class Elf:
    """What the assembly needs of a 64-bit little-endian ELF file."""

    machine: int
    alignment: int
    needed: tuple[str, ...]


MACHINES = {"x86_64": 62, "aarch64": 183}
_LOAD, _DYNAMIC, _NEEDED, _STRTAB = 1, 2, 1, 5


def read_elf(path: Path) -> Elf | None:
    """The file's machine, smallest alignment of a loaded segment and needed libraries."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (machine,) = struct.unpack_from("<H", data, 18)
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + size * n) for n in range(count)]
    loaded = [header for header in headers if header[0] == _LOAD]
    needed: list[str] = []
    for header in headers:
        if header[0] != _DYNAMIC:
            continue
        pairs = list(struct.iter_unpack("<qQ", data[header[2] : header[2] + header[5]]))
        address = next((value for tag, value in pairs if tag == _STRTAB), 0)
        base = next((h for h in loaded if h[3] <= address < h[3] + h[5]), None)
        if base is not None:
            start = address - base[3] + base[2]
            names = [start + value for tag, value in pairs if tag == _NEEDED]
            needed = [data[name : data.index(b"\0", name)].decode() for name in names]
    return Elf(
        machine=machine,
        alignment=min((header[7] for header in loaded), default=0),
        needed=tuple(needed),
    )


# -------------------------------------------------------------------------------------------- tools


def _run(command: Sequence[str | Path], what: str, cwd: Path = HERE) -> str:
    done = subprocess.run(  # noqa: S603
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=1200
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise AssemblyError(f"{what} failed: {errors[0][:300]}")
    return done.stdout


def _tool(name: str, package: str) -> str:
    beside = Path(sys.executable).parent / name  # a tool of this environment comes first
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        raise AssemblyError(f"{name} is missing; install it with: apt-get install {package}")
    return path


def _cmake() -> str:
    path = _tool("cmake", "cmake")
    match = re.search(r"(\d+)\.(\d+)", _run([path, "--version"], "cmake --version"))
    if match is None or (int(match[1]), int(match[2])) < LEAST_CMAKE:
        least = ".".join(map(str, LEAST_CMAKE))
        raise AssemblyError(f"{path} is older than {least}; get one with: pip install cmake")
    return path


def _headers(folder: Path | None) -> Path:
    if folder is None:
        folder = debian.package("libonnxruntime-dev") / "usr" / "include" / "onnxruntime"
    if not (folder / "onnxruntime_c_api.h").is_file():
        raise AssemblyError(
            f"{folder} has no onnxruntime_c_api.h; name it by --onnxruntime-headers"
        )
    return folder


# ------------------------------------------------------------------------------------------ engines


def pinned(package: str) -> str:
    """The package's version in ``constraints.txt``."""
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version.strip()
    raise AssemblyError(f"constraints.txt has no version of {package}")


def _pip() -> list[str]:
    base = getattr(sys, "_base_executable", sys.executable)
    for python in (sys.executable, base, shutil.which("python3")):
        if python is None:
            continue
        command = [python, "-m", "pip"]
        done = subprocess.run([*command, "--version"], capture_output=True)  # noqa: S603
        if done.returncode == 0:
            return command
    raise AssemblyError("pip is missing; install it with: apt-get install python3-pip")


def _downloaded(package: str, arch: str) -> Path:
    """The unpacked wheel of another machine's package; it is downloaded once."""
    version = pinned(package)
    folder = debian.cache_folder() / "wheels" / f"{package}-{version}-{arch}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        platforms = [f"--platform=manylinux_2_{minor}_{arch}" for minor in (28, 27, 17)]
        command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        command += ["--python-version=3.11", "--dest", scratch, f"{package}=={version}"]
        _run(command, f"the download of {package} {version} for {arch}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(scratch) / "files")
        try:
            (Path(scratch) / "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    return folder


def engine_folder(package: str, arch: str) -> Path:
    """The folder that holds the package: of this environment, or a downloaded wheel."""
    if arch == platform.machine():
        try:
            installed = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            return _downloaded(package, arch)
        if installed.version == pinned(package):
            return Path(str(installed.locate_file("")))
    return _downloaded(package, arch)


# ----------------------------------------------------------------------------------------- assembly


def configure(preset: str, arch: str, headers: Path, executorch: Path) -> Path:
    """Configure and build a preset; returns its folder."""
    cmake = _cmake()
    compiler = "g++" if arch == platform.machine() else f"{arch}-linux-gnu-g++"
    _tool(compiler, "g++" if compiler == "g++" else f"g++-{arch}-linux-gnu")
    if not any(Path(root, "nlohmann", "json.hpp").is_file() for root in _include_folders()):
        raise AssemblyError(
            "nlohmann/json.hpp is missing; install it with: apt-get install nlohmann-json3-dev"
        )
    folder = ROOT / "build" / "runner-cmake" / preset
    ninja = shutil.which("ninja")
    if ninja is None:
        _tool("make", "make")
    _run(
        [
            *(cmake, "--preset", preset, *(["-G", "Ninja"] if ninja else [])),
            f"-DONNXRUNTIME_INCLUDE={headers}",
            f"-Dexecutorch_DIR={executorch / 'executorch' / 'lib' / 'cmake' / 'executorch'}",
        ],
        "cmake",
    )
    _run([cmake, "--build", folder, "--parallel"], "the compiler")
    return folder


def _include_folders() -> Iterator[str]:
    yield from filter(None, os.environ.get("CPATH", "").split(":"))
    yield from ("/usr/include", "/usr/local/include", "/opt/homebrew/include")


def library_folders(arch: str) -> list[Path]:
    """Where this machine keeps the C and C++ libraries of ``arch``."""
    names = [f"/usr/{arch}-linux-gnu/lib", f"/lib/{arch}-linux-gnu", f"/usr/lib/{arch}-linux-gnu"]
    return [Path(name) for name in names]


def close_over(folder: Path, arch: str) -> None:
    """Copy every library that a file of the folder needs and that is not there."""
    waiting = sorted(path for path in folder.iterdir() if read_elf(path))
    while waiting:
        elf = read_elf(waiting.pop())
        for name in elf.needed if elf else ():
            if (folder / name).exists():
                continue
            sources = [place / name for place in library_folders(arch) if (place / name).is_file()]
            if not sources:
                raise AssemblyError(
                    f"{name} of {arch} is missing; install it with: "
                    f"apt-get install g++-{arch.replace('_', '-')}-linux-gnu"
                )
            shutil.copy(sources[0].resolve(), folder / name)
            waiting.append(folder / name)


def _libc(folder: Path) -> str:
    library = folder / "libc.so.6"
    if library.is_file():
        match = re.search(rb"GNU C Library[^\n]*version (\d+\.\d+)", library.read_bytes())
        return f"glibc {match[1].decode()}" if match else "glibc"
    return (os.confstr("CS_GNU_LIBC_VERSION") or "").strip()


def describe(folder: Path, arch: str) -> dict[str, object]:
    """The folder's ``runner.json``: every file, with its alignment where it is ELF."""
    files = []
    for path in sorted(folder.iterdir()):
        data, elf = path.read_bytes(), read_elf(path)
        if elf is not None and elf.machine != MACHINES[arch]:
            raise AssemblyError(f"{path.name} is not of {arch}")
        entry: dict[str, object] = {"path": path.name, "bytes": len(data)}
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        files.append(entry | ({} if elf is None else {"alignment": elf.alignment}))
    source = (ROOT / "mtu_export" / "__init__.py").read_text("utf-8")
    version = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)
    return {
        "format": 1,
        "arch": arch,
        "libc": _libc(folder),
        "start": "run.sh",
        "versions": {
            "mtu-bench": version[1] if version else "",
            "onnxruntime": pinned("onnxruntime"),
            "executorch": pinned("executorch"),
        },
        "files": files,
    }


def _is_same(folder: Path, text: str) -> bool:
    try:
        entries = json.loads(text)["files"]
        sizes = all((folder / e["path"]).stat().st_size == e["bytes"] for e in entries)
        return sizes and (folder / "runner.json").read_text("utf-8") == text
    except OSError:
        return False


def assemble(arch: str, output: Path, headers: Path | None = None) -> dict[str, object]:
    """Build for ``arch`` and replace the folder ``output`` if it changed; returns its manifest."""
    is_phone = arch == "aarch64"
    preset = "host" if arch == platform.machine() else f"{arch}-linux-gnu"
    onnxruntime, executorch = engine_folder("onnxruntime", arch), engine_folder("executorch", arch)
    build = configure(preset, arch, _headers(headers), executorch)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        for name in ("mtu-bench", "libmtu_onnx.so", "libmtu_executorch.so"):
            shutil.copy(build / name, folder / name)
        (library,) = (onnxruntime / "onnxruntime" / "capi").glob("libonnxruntime.so*")
        shutil.copy(library, folder / "libonnxruntime.so")
        for name in ENGINE_LIBRARIES:
            shutil.copy(executorch / "executorch" / "lib" / name, folder / name)
        command = '"$here/mtu-bench"'
        if is_phone:
            close_over(folder, arch)
            command = f'"$here/ld-linux-{arch}.so.1" --library-path "$here" {command}'
        (folder / "run.sh").write_text(START.format(command=command), "utf-8")
        for path in folder.iterdir():
            path.chmod(0o755)
        manifest = describe(folder, arch)
        check_alignment(manifest, PAGE if is_phone else 0)
        text = json.dumps(manifest, indent=1) + "\n"
        (folder / "runner.json").write_text(text, "utf-8")
        if _is_same(output, text):
            return manifest  # it may be running
        shutil.rmtree(output, ignore_errors=True)
        folder.rename(output)
    return manifest


def check_alignment(manifest: dict[str, object], least: int) -> None:
    """Refuse a folder with an ELF file below ``least``, or one of ours below 64 KiB."""
    files: list[dict[str, object]] = manifest["files"]  # type: ignore[assignment]
    for entry in files:
        name, alignment = str(entry["path"]), entry.get("alignment")
        wanted = OWN_PAGE if name.startswith(("mtu-bench", "libmtu_")) else least
        if isinstance(alignment, int) and alignment < wanted:
            raise AssemblyError(f"{name} is aligned to {alignment} bytes, {wanted} are needed")


def main() -> int:
    """Assemble one folder and print what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, default=platform.machine())
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--onnxruntime-headers", type=Path, help="folder of onnxruntime_c_api.h")
    parser.add_argument("--asan", action="store_true", help="only build the preset asan")
    arguments = parser.parse_args()
    output = arguments.output or ROOT / "build" / "runner" / arguments.arch
    try:
        if platform.system() != "Linux" or arguments.arch not in ARCHITECTURES:
            raise AssemblyError("the runner is built on Linux, for x86_64 and aarch64")
        if arguments.asan:
            headers = _headers(arguments.onnxruntime_headers)
            print(configure("asan", platform.machine(), headers, Path("none")))
            return 0
        manifest = assemble(arguments.arch, output, arguments.onnxruntime_headers)
    except (AssemblyError, debian.DebianError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 4
    files: list[dict[str, object]] = manifest["files"]  # type: ignore[assignment]
    for entry in files:
        alignment = f"{entry['alignment']:>7}" if "alignment" in entry else "      -"
        print(f"{entry['bytes']:>12,} {alignment}  {entry['path']}")
    print(f"{output}: {manifest['arch']}, {manifest['libc']}, alignment in bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
