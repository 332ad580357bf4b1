"""Builds and tests runtime/android by Maven, in one run: `make android`.

    python runtime/android/build.py           # modules and tests -> cli/target/mtu-cli.jar
    python runtime/android/build.py docs      # the pages of the public names -> target/dokka

Without a JDK or Maven it says so in one line and ends with 0; with MTU_REQUIRE_TOOLS set, with 4.
Maven works offline where its repository has what is needed, and fetches the rest once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
JDK = 17
PACKAGES = "openjdk-17-jdk-headless maven"
DOCUMENTED = ("core", "onnx", "executorch", "android")
GOALS = {
    "test": ["package"],
    "docs": ["compile", "dokka:dokka", "-Pdocs", "-pl", ",".join(DOCUMENTED), "-am"],
}
"""Words of Maven by what is asked."""
_OFFLINE = re.compile("offline|has not been downloaded", re.IGNORECASE)


def missing() -> str | None:
    """What this machine lacks, in one line; None where it lacks nothing."""
    compiler = shutil.which("javac")
    if compiler is None or shutil.which("mvn") is None:
        return f"no JDK {JDK} or no Maven here (Debian: apt install {PACKAGES})"
    done = _run([compiler, "-version"])
    match = re.search(r"(\d+)", done.stdout)
    if match is None or int(match[1]) < JDK:
        return f"JDK {JDK} or newer is needed (Debian: apt install {PACKAGES})"
    return None


def executorch() -> list[str]:
    """What tells tests where ExecuTorch's library for Java is; nothing where it is not built."""
    builder = HERE / "executorch-jvm" / "assemble.py"
    if shutil.which("cmake") is None or shutil.which("g++") is None or not builder.is_file():
        print("android: no cmake or g++: what needs ExecuTorch is not tested", flush=True)
        return []
    done = _run([sys.executable, str(builder)])
    if done.returncode != 0:
        reason = (done.stdout.strip().splitlines() or ["it failed"])[-1]
        print(f"android: what needs ExecuTorch is not tested: {reason}", flush=True)
        return []
    return [f"-Dexecutorch={done.stdout.strip().splitlines()[-1]}"]


def maven(words: list[str]) -> int:
    """Run Maven, offline first; its exit code."""
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), *words]
    done = _run([*command, "-o"])
    if done.returncode != 0 and _OFFLINE.search(done.stdout):
        print("android: Maven fetches what it lacks", flush=True)
        done = _run(command)
    sys.stdout.write(done.stdout)
    return done.returncode


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of this file's own and read both of its streams as one."""
    return subprocess.run(  # noqa: S603
        command,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> int:
    """Build, or say why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=GOALS, default="test")
    what = parser.parse_args().what
    reason = missing()
    if reason is not None:
        is_needed = bool(os.environ.get("MTU_REQUIRE_TOOLS"))
        print(f"android: {'failed' if is_needed else 'skipped'}: {reason}", flush=True)
        return 4 if is_needed else 0
    words = GOALS[what] + (executorch() if what == "test" else [])
    code = maven(words)
    if code == 0 and what == "test":
        print(f"android: built and tested; {(HERE / 'cli/target/mtu-cli.jar').relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
