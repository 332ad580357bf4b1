"""Time of one export of the embedded model: each target, whole pipelines and the UNet alone.

    python benchmarks/export_times.py [NAME=TREE ...] [--targets onnx] [--scheme int8] [--rounds 3]

A measurement is one ``mtu-export TARGET --task inpaint`` in a process of its own with one thread:
CPU seconds of it and its children (`wait4`), which on an idle machine is its wall time, and wall
seconds. Each round exports with every TREE, a checkout of this repository, in turn; without one,
with this checkout. Figures are medians of the rounds. Rows of the results that a run does not
measure stay as they are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASK = "inpaint"
TARGETS = ("onnx", "coreml", "executorch")
PARTS = {"all": (), "unet": ("--components", "unet")}
"""What is exported, with its flags."""
GOALS_S = {"onnx": 15, "coreml": 15, "executorch": 40}
"""CPU seconds that the export of a whole pipeline may take."""
NOW = "now"


def measure(tree: Path, target: str, scheme: str, parts: str) -> dict[str, float]:
    """CPU and wall seconds of one export; raises ``SystemExit`` where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [target, "--task", TASK, "--scheme", scheme, *PARTS[parts]]
        command = [sys.executable, "-m", "mtu_export", *arguments, "-o", f"{folder}/bundle"]
        start = time.monotonic()
        with Path(folder, "log").open("w+") as log:
            # elsewhere than in a checkout, which would be imported in place of the tree
            child = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.monotonic() - start
            if os.waitstatus_to_exitcode(status):
                log.seek(0)
                raise SystemExit(f"{tree}: mtu-export {' '.join(arguments)} failed: {log.read()}")
    return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 2), "wall_s": round(wall, 2)}


def commit(tree: Path) -> str:
    """The commit of a checkout, with "+" where its files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, its vector instructions, and the versions that were measured."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = info.get("flags", "").split()
    packages = ("torch", "diffusers", "transformers", "onnx", "coremltools", "executorch")
    return {
        "processor": info.get("model name", platform.processor()),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_vnni") if name in flags],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def rows(
    results: Sequence[dict[str, Any]],
) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """(target, scheme, parts) of each kind of export, with its measurements by tree."""
    for key in dict.fromkeys((r["target"], r["scheme"], r["parts"]) for r in results):
        of_key = [r for r in results if (r["target"], r["scheme"], r["parts"]) == key]
        yield key, {r["tree"]: r for r in of_key}


def page(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    results, about = report["rows"], report["machine"]
    names = list(dict.fromkeys(row["tree"] for row in results))
    lines = [
        "# Time of one export of the embedded model",
        "",
        "Made by `make export-times` from `export_times.json`. CPU seconds (wall seconds) of "
        f"`mtu-export TARGET --task {TASK} --scheme SCHEME` in a process of its own with one "
        "thread, from the start of Python to the proven bundle: medians of rounds in which the "
        "commits take turns. On an idle machine both are equal; where wall is larger, other work "
        "ran beside it. `all` exports every part of the pipeline and proves the loop, `unet` is "
        "`--components unet`.",
        "",
        f"{about['processor']} ({', '.join(about['instructions'])}), Python {about['python']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ".",
        "",
        "| target | scheme | parts | " + " | ".join(names) + " | goal | rounds |",
        "|---|---|---|" + "---|" * (len(names) + 2),
    ]
    for (target, scheme, parts), by_tree in rows(results):
        cells = [_cell(by_tree.get(name)) for name in names]
        goal = f"{GOALS_S[target]} s" if parts == "all" else ""
        rounds = min(len(row["rounds"]) for row in by_tree.values())
        lines.append(f"| {target} | {scheme} | {parts} | {' | '.join(cells)} | {goal} | {rounds} |")
    trees = {row["tree"]: row["commit"] for row in results}
    lines += ["", "Commits: " + ", ".join(f"{name} {trees[name]}" for name in names) + "."]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['cpu_s']:.1f} s ({row['wall_s']:.1f} s)"


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: round(statistics.median(r[key] for r in rounds), 2) for key in rounds[0]}


def run(arguments: argparse.Namespace, trees: dict[str, Path]) -> list[dict[str, Any]]:
    """Measure every kind of export with every tree, in rounds."""
    kinds = [(target, parts) for target in arguments.targets for parts in arguments.parts]
    rounds: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        for target, parts in kinds:
            for name, tree in trees.items():
                figures = measure(tree, target, arguments.scheme, parts)
                rounds.setdefault((target, parts, name), []).append(figures)
                print(number, target, parts, name, figures, flush=True)
    return [
        {
            "target": target,
            "scheme": arguments.scheme,
            "parts": parts,
            "tree": name,
            "commit": commit(trees[name]),
            **medians(figures),
            "rounds": figures,
        }
        for (target, parts, name), figures in rounds.items()
    ]


def main() -> None:
    """Measure, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", metavar="NAME=TREE", help=f"default: {NOW}=.")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    trees = dict(tree.partition("=")[::2] for tree in arguments.trees) or {NOW: HERE.parent}
    measured = run(arguments, {name: Path(tree).resolve() for name, tree in trees.items()})
    path = arguments.out / "export_times.json"
    before = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    key = ("target", "scheme", "parts", "tree")
    kept = {tuple(row[name] for name in key): row for row in before}
    kept |= {tuple(row[name] for name in key): row for row in measured}
    report = {"machine": machine(), "rows": list(kept.values())}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (arguments.out / "export_times.md").write_text(page(report), "utf-8")


if __name__ == "__main__":
    main()
