"""What Android apps embed, and a picture in Java beside Python -> benchmarks/results/android.*

    python benchmarks/android.py [--rounds 9]

Sizes are of the jars and native libraries as they are downloaded or built here; the AARs of an app
hold others, compiled for Android. Alignment is the smallest of a library's loaded segments: kernels
with pages of 16 KiB load what is aligned to them. Times are of one picture of the embedded model,
int8 on ONNX Runtime, by `java -jar mtu-cli.jar run` and `mtu-export run` in turn: of the whole
process, and of the picture alone, with the loading of its parts, as both programs tell it.

With `--rounds 0` the times stay as they are. `make android` comes before it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtu_export.bench import builds
from mtu_export.bench.record import Round
from mtu_export.bench.statistics import ratios

ROOT = Path(__file__).resolve().parent.parent
ANDROID = ROOT / "runtime" / "android"
OUT = ROOT / "benchmarks" / "results" / "android.json"
JAR = ANDROID / "cli" / "target" / "mtu-cli.jar"
MODULES = ("core", "onnx", "executorch", "android")
REPOSITORY = Path.home() / ".m2" / "repository"
LIBRARIES = {
    "kotlin-stdlib": "org/jetbrains/kotlin/kotlin-stdlib",
    "kotlinx-coroutines-core": "org/jetbrains/kotlinx/kotlinx-coroutines-core-jvm",
}
PAGE = 16_384
TASK, PROMPT = "edit", "make the small square yellow"


# -------------------------------------------------------------------------- sizes and alignment


def alignment(library: Path) -> int:
    """The smallest alignment of the segments that are loaded, by readelf."""
    listed = subprocess.run(
        ["readelf", "-lW", library], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in listed.splitlines() if line.strip().startswith("LOAD")]
    return min(int(words[-1], 16) for words in lines)


def libraries(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Every arm64 library that is built or packed here, with where it is."""
    with zipfile.ZipFile(JAR) as archive:
        for name in archive.namelist():
            if "linux-aarch64" in name and name.endswith(".so"):
                yield "mtu-cli.jar, of ONNX Runtime's jar", Path(archive.extract(name, scratch))
    built = subprocess.run(
        [sys.executable, ANDROID / "executorch-jvm" / "assemble.py", "--arch", "aarch64"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for path in sorted(Path(built).glob("*.so*")):
        yield "executorch-jvm, Linux", path
    runner = builds.find_runner("aarch64")
    for path in sorted(runner.iterdir()) if runner else ():
        if path.read_bytes()[:4] == b"\x7fELF":
            yield "the runner's folder for phones", path


def aligned() -> list[dict[str, Any]]:
    """Each library with its alignment."""
    with tempfile.TemporaryDirectory() as name:
        return [
            {"where": where, "file": path.name, "bytes": path.stat().st_size}
            | {"alignment": alignment(path), "pages_of_16_kib": alignment(path) % PAGE == 0}
            for where, path in libraries(Path(name))
        ]


def sizes() -> list[dict[str, Any]]:
    """Bytes of what an app adds to itself, as jars before R8."""
    jars = {f"mtu-{name}": next((ANDROID / name / "target").glob("mtu-*.jar")) for name in MODULES}
    for name, folder in LIBRARIES.items():
        jars[name] = max(
            (path for path in (REPOSITORY / folder).rglob("*.jar") if "sources" not in path.name),
            key=lambda path: path.parent.name,
        )
    jars["mtu-cli.jar, with ONNX Runtime for two architectures"] = JAR
    return [
        *({"name": name, "bytes": path.stat().st_size} for name, path in jars.items()),
        {"name": "core, onnx, executorch and cli in it after ProGuard", "bytes": shrunk()},
    ]


def shrunk() -> int:
    """Bytes of our classes in the program after ProGuard, as its jar stores them."""
    with tempfile.TemporaryDirectory() as name:
        small = Path(name) / "small.jar"
        tool = ANDROID / "tools" / "shrink.py"
        subprocess.run([sys.executable, tool, "-o", small], check=True, stdout=subprocess.DEVNULL)
        with zipfile.ZipFile(small) as archive:
            ours = [i for i in archive.infolist() if i.filename.startswith("io/mtuexport/")]
            return sum(each.compress_size for each in ours)


# ------------------------------------------------------------------------------------- pictures


def bundle_of(scratch: Path) -> Path:
    """The embedded model's task, exported once."""
    folder = Path.home() / ".cache" / "mtu-export" / "bench-fixtures" / f"{TASK}-onnx-int8"
    if not (folder / "manifest.json").is_file():
        words = ["onnx", "--task", TASK, "--int8", "-o", str(folder), "--force"]
        subprocess.run([sys.executable, "-m", "mtu_export", *words], check=True)
    shutil.copy(ROOT / "runtime" / "testdata" / "input.png", scratch / "input.png")
    return folder


def picture(program: Sequence[str], folder: Path, scratch: Path) -> dict[str, float]:
    """Seconds of one picture: of the process, and as the program tells them."""
    words = ["run", str(folder), "-o", "out.png", "--force", "--json", "--seed", "7"]
    words += ["--prompt", PROMPT, "--image", "input.png"]
    begin = time.monotonic()
    done = subprocess.run(
        [*program, *words], cwd=scratch, capture_output=True, text=True, check=True
    )
    whole = time.monotonic() - begin
    return {"process_s": whole, "picture_s": json.loads(done.stdout)["seconds"]}


def times(rounds: int) -> dict[str, Any]:
    """Seconds a picture of both programs, in turn."""
    programs = {
        "java": ["java", "-jar", str(JAR)],
        "python": [sys.executable, "-m", "mtu_export"],
    }
    before = os.getloadavg()
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = bundle_of(scratch)
        for number in range(rounds + 1):  # the first fills the page cache and counts for nothing
            order = list(programs) if number % 2 else list(reversed(programs))
            for each in order:
                measured = picture(programs[each], folder, scratch)
                if number:
                    seconds[each].append(measured)
    figures = {}
    for key in ("process_s", "picture_s"):
        medians = {n: statistics.median(s[key] for s in seconds[n]) for n in programs}
        java, python = (
            [Round(load_s=0, load_again_s=None, first_s=0, samples_s=(s[key],)) for s in seconds[n]]
            for n in programs
        )
        each = sorted(ratios(java, python))
        figures[key] = {
            **{f"{name}_median": round(value, 3) for name, value in medians.items()},
            "ratio": round(statistics.median(each), 3),
            "ratio_low": round(each[0], 3),
            "ratio_high": round(each[-1], 3),
        }
    return {
        "bundle": folder.name,
        "rounds": rounds,
        "load_before": [round(value, 2) for value in before],
        "load_after": [round(value, 2) for value in os.getloadavg()],
        **figures,
        "seconds": seconds,
    }


# ------------------------------------------------------------------------------------------ page


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# What Android apps embed", "", "Made by `make android-results`.", ""]
    lines += ["| jar | kB |", "|---|---:|"]
    lines += [f"| {each['name']} | {each['bytes'] / 1e3:,.0f} |" for each in result["sizes"]]
    lines += ["", "Native libraries for arm64, as built or packed here. Those of an app's AARs are"]
    lines += ["others, and were not to be had.", ""]
    lines += ["| where | library | MB | aligned to | 16 KiB pages |", "|---|---|---:|---:|---|"]
    for each in result["libraries"]:
        fits = "yes" if each["pages_of_16_kib"] else "no"
        lines.append(
            f"| {each['where']} | {each['file']} | {each['bytes'] / 1e6:.2f} | "
            f"{each['alignment'] // 1024} KiB | {fits} |"
        )
    if "times" in result:
        lines += ["", *_times(result["times"])]
    return "\n".join(lines) + "\n"


def _times(times: dict[str, Any]) -> list[str]:
    load = times["load_before"][0]
    lines = [f"One picture of {times['bundle']}, {times['rounds']} rounds in turn, load {load}"]
    lines[0] += f" before and {times['load_after'][0]} after:"
    lines += ["", "| | Java | Python | Java / Python |", "|---|---:|---:|---:|"]
    for key, name in (("process_s", "the whole process"), ("picture_s", "the picture alone")):
        each = times[key]
        lines.append(
            f"| {name} | {each['java_median']:.2f} s | {each['python_median']:.2f} s | "
            f"{each['ratio']:.2f} ({each['ratio_low']:.2f} to {each['ratio_high']:.2f}) |"
        )
    return lines


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    result: dict[str, Any] = {"sizes": sizes(), "libraries": aligned()}
    if rounds:
        result["times"] = times(rounds)
    elif OUT.is_file():
        earlier = json.loads(OUT.read_text("utf-8"))
        result |= {key: earlier[key] for key in ("times",) if key in earlier}
    OUT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    OUT.with_suffix(".md").write_text(page(result), "utf-8")


if __name__ == "__main__":
    main()
