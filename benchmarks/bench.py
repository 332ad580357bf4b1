"""The benchmark suite on the embedded model: every answer of it, on this host.

    python benchmarks/bench.py [--home DIR] [--only onnx]

Exports `inpaint` and all four tasks to each target and scheme, measures them beside their
baselines, the ONNX int8 bundle by both runners, and writes benchmarks/results/bench_*.json. Exports
are kept under `--home`. A Core ML bundle is "not run" here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from mtu_export.bench import api, peak, record
from mtu_export.spec.options import BenchOptions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TASK = "inpaint"
BUNDLES = (
    ("onnx", "fp32", False),
    ("onnx", "int8", False),
    ("onnx", "int8", True),
    ("executorch", "fp32", False),
    ("executorch", "int8", False),
    ("coreml", "int8", False),
)
"""Target, scheme, and whether it holds all tasks."""


def main() -> None:
    """Export what is missing, measure, write the records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, default=peak.cache() / "embedded")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", help="part of a bundle's name")
    options = parser.parse_args()
    names = {_name(*each): each for each in BUNDLES if options.only in _name(*each)}
    for name, each in names.items():
        _export(options.home / name, *each)
    folders = [options.home / name for name in names]
    begin = time.monotonic()
    options.home.mkdir(parents=True, exist_ok=True)
    single = [folder for folder in folders if "four" not in folder.name]
    four = [folder for folder in folders if "four" in folder.name]
    for label, chosen, values in (
        ("embedded", single, {"baseline": True}),
        ("embedded_four", four, {"baseline": True, "task": TASK, "part": "unet"}),
        ("embedded_python", [f for f in single if f.name == "onnx-int8"], {"runner": "python"}),
    ):
        if chosen:
            run = api.bench(chosen, BenchOptions(**values), progress=_progress)
            record.write(run, options.out / f"bench_{label}.json")
    print(f"measured in {time.monotonic() - begin:.0f} s")


def _name(target: str, scheme: str, all_tasks: bool) -> str:
    return f"{target}-{scheme}" + "-four" * all_tasks


def _export(folder: Path, target: str, scheme: str, all_tasks: bool) -> None:
    """Export a bundle in a process of its own; one of this code and checkpoint is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tasks = ["--all-tasks"] if all_tasks else ["--task", TASK]
    command = [sys.executable, "-m", "mtu_export", target, "--scheme", scheme, *tasks]
    _progress(f"export {folder.name}")
    for how in ("--skip-existing", "--force"):
        done = subprocess.run(
            [*command, how, "-o", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
    raise SystemExit(done.stderr[-2000:])


def _progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
