"""Shrinks and renames mtu-cli.jar by ProGuard, as R8 does it to an app.

    python shrink.py -o FILE.jar [--without-rules]

`--without-rules` leaves out the rules that the modules bring in META-INF/proguard; then what their
native libraries look up by name is gone, and the program crashes. ProGuard comes by Maven.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ANDROID = Path(__file__).resolve().parent.parent
TOOL = ANDROID / "tools" / "proguard"
JAR = ANDROID / "cli" / "target" / "mtu-cli.jar"
OURS = ("mtu-onnx.pro", "mtu-executorch.pro")
RULES = "META-INF/proguard/"
JDK = ("java.base", "java.desktop", "java.logging", "java.xml", "jdk.unsupported")


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def class_path() -> str:
    """ProGuard's jars, brought by Maven the first time."""
    folder = TOOL / "target" / "dependency"
    if not folder.is_dir():
        command = ("mvn", "-B", "-q", "-f", TOOL / "pom.xml", "package")
        if _run(*command, "-o").returncode != 0:
            done = _run(*command)
            if done.returncode != 0:
                raise SystemExit(f"error: Maven brings no ProGuard: {done.stdout[-500:]}")
    return os.pathsep.join(map(str, sorted(folder.glob("*.jar"))))


def rules(program: Path, *, without_ours: bool) -> str:
    """The rules of a program's libraries, as R8 takes them from its jar."""
    with zipfile.ZipFile(program) as archive:
        names = {name.removeprefix(RULES): name for name in archive.namelist() if RULES in name}
        texts = {
            short: archive.read(name).decode() for short, name in names.items() if ".pro" in short
        }
    if not set(OURS) <= texts.keys():
        raise SystemExit(f"error: {program.name} lacks rules: {', '.join(OURS)}")
    return "\n".join(text for name, text in texts.items() if not (without_ours and name in OURS))


def shrink(out: Path, program: Path = JAR, *, without_rules: bool = False) -> Path:
    """Write the shrunk program; returns ``out``."""
    compiler = shutil.which("javac")
    if compiler is None:
        raise SystemExit("error: a JDK is needed")
    home = Path(compiler).resolve().parents[1]
    lines = [f"-injars {program}", f"-outjars {out}"]
    lines += [f"-libraryjars {home}/jmods/{name}.jmod(!**.jar;!module-info.class)" for name in JDK]
    lines += [(TOOL / "program.pro").read_text("utf-8")]
    lines += [rules(program, without_ours=without_rules)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "all.pro"
        file.write_text("\n".join(lines) + "\n", "utf-8")
        done = _run("java", "-cp", class_path(), "proguard.ProGuard", f"@{file}")
    if done.returncode != 0:
        raise SystemExit(f"error: ProGuard failed: {done.stdout[-1000:]}")
    return out


def main() -> int:
    """Shrink, and say where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--without-rules", action="store_true")
    arguments = parser.parse_args()
    print(shrink(arguments.output, without_rules=arguments.without_rules))
    return 0


if __name__ == "__main__":
    sys.exit(main())
