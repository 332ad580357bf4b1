"""Swift for runtime/ios: this machine's own, or Debian 13's in a folder of its own.

python toolchain.py env              make the folder (root, once), say which Swift there is
python toolchain.py check            build, test and lint the package: `make ios`
python toolchain.py run -- CMD...    a command in runtime/ios, where `swift` is on the path

The folder is ``~/.cache/mtu-export/swift``: a Debian 13 by debootstrap, from the mirror of this
machine's own apt sources. A command runs in it with ``/proc``, ``/dev`` and the checkout mounted,
in a mount namespace of its own, so that nothing stays mounted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent.parent
FORMATTED = ("Package.swift", "Sources", "Tests", "Stub", "Apps")
BUILD = CHECKOUT / "build" / "swift"
SUITE = "trixie"
PACKAGES = ("swiftlang", "libc6-dev", "libstdc++-14-dev")
LEAST = (6, 0)
REQUIRED = "MTU_REQUIRE_TOOLS"
_TOLD = re.compile(r"warning|Test run with|bytes differ| dB, floor")


class ToolchainError(Exception):
    """One line: what is missing or failed, and what to do."""


def _debian() -> ModuleType:
    """Our reader of Debian's packages, which lies beside the runner for phones."""
    path = CHECKOUT / "runtime" / "android" / "runner" / "debian.py"
    specification = importlib.util.spec_from_file_location("mtu_debian", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


debian = _debian()


@dataclass(frozen=True)
class Swift:
    """A Swift: this machine's where ``root`` is None, else that of a Debian in a folder."""

    root: Path | None
    mounts: tuple[Path, ...] = (CHECKOUT,)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in runtime/ios."""
        values = {**(environment or {})}
        if self.root is None:
            return subprocess.run(  # noqa: S603
                [*words], cwd=PACKAGE, env={**os.environ, **values}, text=True, **options
            )
        folders = {path.resolve() for path in self.mounts}
        for path in folders:
            (self.root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        lines = [
            f"mount -t proc proc {self.root}/proc",
            f"mount --rbind /dev {self.root}/dev",
            *(f"mount --bind {path} {self.root}{path}" for path in sorted(folders)),
            'exec chroot "$MTU_ROOT" env -i "$@"',
        ]
        inner = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
        pairs = [f"{key}={value}" for key, value in {**inner, **values}.items()]
        shell = ["sh", "-c", f'cd "{PACKAGE}" && exec "$@"', "sh", *words]
        command = ["unshare", "--mount", "sh", "-ec", "\n".join(lines), "sh", *pairs, *shell]
        environ = {**os.environ, "MTU_ROOT": str(self.root)}
        return subprocess.run(command, env=environ, text=True, **options)  # noqa: S603

    def version(self) -> tuple[int, int] | None:
        """Its version; None where it does not run."""
        try:
            done = self.run(["swift", "--version"], capture_output=True)
        except OSError:
            return None
        match = re.search(r"Swift version (\d+)\.(\d+)", done.stdout)
        return (int(match[1]), int(match[2])) if match else None


def folder() -> Path:
    """Where Debian's Swift lies."""
    return debian.cache_folder() / "swift"


def find() -> Swift | None:
    """A Swift that is new enough: this machine's own, or Debian's where it has been made."""
    own = Swift(None)
    if shutil.which("swift") and (own.version() or (0, 0)) >= LEAST:
        return own
    made = Swift(folder())
    if made.root and made.root.is_dir() and os.geteuid() == 0 and made.version():
        return made
    return None


def make() -> Swift:
    """Debian's Swift, made where it is missing. Raises ``ToolchainError``."""
    there = find()
    if there is not None:
        return there
    if os.geteuid() != 0:
        raise ToolchainError(
            f"Swift {LEAST[0]}.{LEAST[1]} is not on this machine; making a folder with Debian's"
            " needs root (chroot and mount): sudo make swift-env"
        )
    for tool in ("debootstrap", "unshare", "chroot"):
        if shutil.which(tool) is None:
            raise ToolchainError(f"{tool} is missing: apt-get install debootstrap util-linux")
    partial = folder().with_name("swift.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    words = ["debootstrap", "--variant=minbase", SUITE, str(partial), debian.mirror()]
    _quiet(subprocess.run(words, capture_output=True, text=True), "debootstrap")  # noqa: S603
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    _quiet(Swift(partial).run(install, environment, capture_output=True), "apt-get")
    if (Swift(partial).version() or (0, 0)) < LEAST:
        raise ToolchainError(f"swift --version in {partial} does not say {LEAST[0]}.{LEAST[1]}")
    shutil.rmtree(partial / "var" / "cache" / "apt", ignore_errors=True)
    partial.rename(folder())
    return Swift(folder())


def _quiet(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        raise ToolchainError(f"{what} failed: {lines[-1]}")


def library() -> Path | None:
    """ONNX Runtime's library in the Python package; None where there is none."""
    specification = importlib.util.find_spec("onnxruntime")
    for place in (specification and specification.submodule_search_locations) or []:
        for path in sorted(Path(place, "capi").glob("libonnxruntime.so*")):
            return path
    return None


def with_engine(swift: Swift) -> tuple[Swift, dict[str, str]]:
    """Swift and the environment in which the package's tests run whole loops by ONNX Runtime, and
    Core ML's part against the stub.

    Raises ``ToolchainError`` where its header or library cannot be had.
    """
    engine = library()
    if engine is None:
        raise ToolchainError("libonnxruntime.so is not in the Python package onnxruntime")
    try:
        package = debian.package("libonnxruntime-dev")
    except debian.DebianError as error:
        raise ToolchainError(str(error)) from None
    headers = package / "usr" / "include" / "onnxruntime"
    environment = {"MTU_ORT_HEADERS": str(headers), "MTU_ORT_LIBRARY": str(engine)}
    environment["MTU_STUB_COREML"] = "1"
    return Swift(swift.root, (CHECKOUT, headers, engine.parent)), environment


def check(swift: Swift) -> int:
    """Builds, tests and lints the package; the first failing exit code."""
    swift, environment = with_engine(swift) if sys.platform == "linux" else (swift, {})
    build = ["--scratch-path", str(BUILD), "-Xswiftc", "-warnings-as-errors"]
    for words in (
        ["swift", "format", "lint", "--strict", "--recursive", *FORMATTED],
        ["swift", "build", "--build-tests", *build],
        ["swift", "test", "--skip-build", *build],
    ):
        done = swift.run(words, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            print(done.stdout)
            return done.returncode
        told = [line for line in done.stdout.splitlines() if re.search(_TOLD, line)]
        print("\n".join([" ".join(words[:3]), *told]), flush=True)
    return 0


def main() -> int:
    """The command line; 4 where Swift is missing and ``MTU_REQUIRE_TOOLS`` is set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("goal", choices=("env", "check", "run"))
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    try:
        if arguments.goal == "env":
            swift = make()
            version = ".".join(map(str, swift.version() or ()))
            print(f"Swift {version}: {swift.root or shutil.which('swift')}")
            return 0
        swift = find()
        if swift is None:
            reason = (
                "runtime/ios is not built: there is no Swift 6 here; `make swift-env` makes one"
            )
            if os.environ.get(REQUIRED):
                raise ToolchainError(reason)
            print(f"skipped: {reason}")
            return 0
        if arguments.goal == "check":
            return check(swift)
        return swift.run(arguments.words).returncode
    except (ToolchainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())
