"""Four tasks on one set of weights against bundles of one task: bytes, dB, latency, memory, time.

    python benchmarks/shared.py [--only embedded/onnx/int8] [--home ~/.cache/mtu-export/shared]

A row is a size, target and scheme. Every export is a process of its own; `embedded` exports the
embedded checkpoint, all parts, each task alone too, `sd15` the UNet, for one task (`inpaint`) and
for all four.
Latency: five rounds of the suite, in which both bundles take turns, each in a process of its own.
Memory: the peak of a process that opens one task and runs a pass, against one that goes through all
four so. What is done, a row or an export of it, is kept under `--home`, so the run can be stopped
at any time. Rows of the results that `--only` does not name stay as they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mtu_export import bundle, targets
from mtu_export.bench import process
from mtu_export.bench.devices.host import Host
from mtu_export.bench.memory import Meter
from mtu_export.bench.suite import Contender, Suite, SuiteOptions
from mtu_export.bench.work import describe
from mtu_export.checkpoint import EMBEDDED

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "mtu-export"
TASKS = ("t2i", "edit", "sr", "inpaint")
ALONE = "inpaint"
ROUNDS = 5
ROWS = [
    (size, target, scheme)
    for size in ("embedded", "sd15")
    for target, schemes in (
        ("onnx", ("int8", "fp32")),
        ("coreml", ("int8", "fp16")),
        ("executorch", ("int8", "fp32")),
    )
    for scheme in schemes
] + [("sd15-whole", "onnx", "int8")]
LIMITS = {
    "weights": 1.01,
    "bundle": 1.01,
    "no goldens": 1.01,
    "latency": 1.01,
    "memory": 1.05,
    "memory, freed returned": 1.05,
    "made": 1.5,
    "cpu": 1.5,
    "rss": 1.2,
}
"""What four tasks may take of one; the bundle at SD 1.5 size."""


def export(model: Path, row: tuple[str, str, str], tasks: list[str], out: Path) -> Any:
    """One export: seconds by stage, peak memory, the manifest's figures and bytes of the files."""
    size, target, scheme = row
    arguments = [target, "--scheme", scheme, "-o", str(out), "--force", *tasks]
    arguments += ["-m", str(model), *([] if size == "embedded" else _LARGE)]
    arguments += ["--components", "unet"] if size == "sd15" else []
    arguments += ["--min-deployment-target", "iOS18"] if target == "coreml" else []
    command = [sys.executable, "-m", "mtu_export", *arguments]
    cost = process.measure(command, out.with_suffix(".log"))
    result: dict[str, Any] = {
        "exit": cost.exit,
        "wall_s": round(cost.wall_s, 1),
        "cpu_s": round(cost.cpu_s, 1),
        "peak_rss_gb": round(cost.peak_rss / 1e9, 2),
    }
    if result["exit"]:
        return result | {"error": cost.error or "killed"}
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    unet = next(part for part in manifest["parts"] if part["name"] == "unet")
    files = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    graphs = {str(p.relative_to(out)): n for p, n in files.items() if p.suffix in _GRAPHS}
    return result | {
        "stages_s": dict(cost.stages),
        "weight_bytes": unet["cost"]["weight_bytes"],
        "task_weight_bytes": unet["cost"].get("task_weight_bytes"),
        "shared_weight_bytes": unet["cost"]["shared_weight_bytes"],
        "unet_bytes": unet["bytes"],
        "graph_bytes": {name: n for name, n in graphs.items() if "unet" in name.lower()},
        "golden_bytes": (out / "goldens.safetensors").stat().st_size,
        "bundle_bytes": sum(files.values()),
        "db": {
            f"{v['part']}/{v['task']}": v["psnr_db"]
            for v in manifest["proof"]
            if v["stage"] != "folded"
        },
        "versions": manifest["versions"],
    }


_LARGE = ("--height", "512", "--width", "512")
_GRAPHS = (".onnx", ".mlmodel")


def opened(folder: Path, task: str) -> tuple[Any, Any]:
    """A session of a bundle's UNet and the inputs of its first golden."""
    exported = bundle.read(folder)
    part = exported.part("unet")
    inputs, _ = bundle.Goldens(exported).cases("unet", task)[0]
    runtime = targets.runtime(targets.load(exported.manifest.target))
    return runtime.open(part.path, part.entries[task]), inputs


def latency(shared: str, alone: str) -> None:
    """Print the medians of a pass of both, and of their ratio by round, as JSON."""
    four, one = bundle.read(Path(shared)), bundle.read(Path(alone))
    options = SuiteOptions(rounds=ROUNDS, tasks=(ALONE,), parts=("unet",), checks=False)
    contenders = [
        Contender(kind="bundle", bundle=four, label=describe(four)),
        Contender(kind="single", bundle=one, label=describe(one)),
    ]
    run = Suite(Host(), options).run([contenders])
    medians = [m.latency.median if m.latency else None for m in run.measurements]
    if not run.comparisons or None in medians:
        raise SystemExit("; ".join(str(m.reason) for m in run.measurements))
    (comparison,) = run.comparisons
    ratios = [round(ratio, 4) for ratio in comparison.rounds]
    names = {"shared": round(medians[0], 5), "alone": round(medians[1], 5)}
    print(json.dumps({**names, "ratio": round(comparison.ratio, 4), "ratios": ratios}))


def memory(folder: str, *tasks: str) -> None:
    """Print the peak memory of this process after a pass of each task in turn, GB, as JSON."""
    peaks, meter = {}, Meter()
    for task in tasks:
        session, inputs = opened(Path(folder), task)
        session(inputs)
        del session
        gc.collect()
        peaks[task] = round((meter.read()["peak"] or 0) / 1e9, 3)
    print(json.dumps(peaks))


RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Lets glibc give back what is freed: by itself it raises this threshold and keeps large blocks."""


def call(function: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Any:
    """Run one function of this file in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--call", function, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    lines = done.stderr.strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(done.stdout.splitlines()[-1])


def kept(file: Path, make: Callable[..., Any], *arguments: Any) -> Any:
    """The figures in ``file``, made where it is not there."""
    if not file.is_file():
        result = make(*arguments)
        private = file.with_suffix(".partial")
        private.write_text(json.dumps(result), "utf-8")
        private.replace(file)
        print(file.parent.name, file.stem, json.dumps(result), flush=True)
    return json.loads(file.read_text("utf-8"))


def measure(work: Path, row: tuple[str, str, str]) -> dict[str, Any]:
    """One row; ``work`` has its bundles, and the figures of what is done."""
    size, target, scheme = row
    model = EMBEDDED if size == "embedded" else CACHE / "sizes" / "sd15" / "checkpoint"
    if not model.is_dir():
        how = f"mtu-export upcycle --arch sd15 --random {model}"
        raise SystemExit(f"{model} is not there; make it with: {how}")
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"size": size, "target": target, "scheme": scheme, "alone": {}}
    for task in TASKS if size == "embedded" else (ALONE,):
        name, arguments = f"one-{task}", ["--task", task]
        results["alone"][task] = kept(
            work / f"{name}.json", export, model, row, arguments, work / name
        )
    one, four = work / f"one-{ALONE}", work / "four"
    results["shared"] = kept(work / "four.json", export, model, row, ["--all-tasks"], four)
    if results["shared"]["exit"] == results["alone"][ALONE]["exit"] == 0 and size != "sd15-whole":
        if target != "coreml":
            results["latency"] = kept(work / "latency.json", call, "latency", four, one)
        for key, env in (("memory", None), ("returned", RETURNED)):
            asks = {"one": (one, ALONE), "four": (four, *TASKS)}
            results[key] = {
                name: kept(
                    work / f"{key}-{name}.json", partial(call, env=env), "memory", *arguments
                )
                for name, arguments in asks.items()
            }
    return results


def making(export: dict[str, Any]) -> int:
    """Seconds of the stages that are no proof."""
    return sum(s for name, s in export["stages_s"].items() if re.search(_MAKING, name))


_MAKING = r"^(\w+: )?(load checkpoint|fold$|rewrite and quantise|capture|lower to )"


def ratios(row: dict[str, Any]) -> dict[str, float | None]:
    """Four tasks over one, by what :data:`LIMITS` is of."""
    one, four = row["alone"][ALONE], row["shared"]
    results: dict[str, float | None] = {
        name: four[key] / one[key]
        for name, key in (
            ("weights", "weight_bytes"),
            ("bundle", "bundle_bytes"),
            ("cpu", "cpu_s"),
            ("rss", "peak_rss_gb"),
        )
    }
    files = [export["bundle_bytes"] - export["golden_bytes"] for export in (four, one)]
    results["no goldens"] = files[0] / files[1]
    results["made"] = making(four) / making(one)
    results["latency"] = row.get("latency", {}).get("ratio")
    for name, key in (("memory", "memory"), ("memory, freed returned", "returned")):
        peaks = row.get(key, {})
        measured = "error" not in peaks.get("one", {"error": 1}) and "error" not in peaks["four"]
        results[name] = max(peaks["four"].values()) / peaks["one"][ALONE] if measured else None
    return results


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = tuple(LIMITS)
    lines = [
        "# Four tasks on one set of weights",
        "",
        "Made by `make shared` from `shared.json`. Each figure is four tasks (t2i, edit, sr, "
        f"inpaint) over one ({ALONE}): bytes of the UNet's weights; bytes of the whole folder "
        "with graphs and goldens, and without goldens (embedded and sd15-whole: all parts, "
        "sd15: the UNet alone); "
        f"a pass (medians of {ROUNDS} rounds; rows measured before the suite had passes that took "
        "turns in one process, ONNX with nothing beside them, others with other work on 2 cores); "
        "peak memory of a process that goes through the four tasks, and of one in which glibc "
        "gives back what is freed "
        "(`MALLOC_MMAP_THRESHOLD_=131072`); seconds of what makes "
        "the file (load, fold, quantise, capture, lower); seconds of CPU (one thread, so wall on "
        "an idle machine) and peak memory of the whole export with its proofs, of which four tasks "
        "have four: each task is run in PyTorch, folded, and as a file. `own` "
        "is what a task has for itself in bytes of weights, `dB` the largest difference of a "
        "part's PSNR from that of the task's own bundle.",
        "",
        "| size | target | scheme | " + " | ".join(names) + " | own | graphs | dB |",
        "|---|---|---|" + "---|" * (len(names) + 3),
        "| | | wanted: at most | "
        + " | ".join(f"{LIMITS[name]:g}" for name in names)
        + " | | | 0.1 |",
    ]
    for row in rows:
        key = f"| {row['size']} | {row['target']} | {row['scheme']} | "
        failed = [one for one in (*row["alone"].values(), row["shared"]) if one["exit"]]
        if failed:
            text = f"exit {failed[0]['exit']}: {failed[0]['error']}"
            lines.append(key + text + " |" + " |" * (len(names) + 2))
            continue
        results = ratios(row)
        cells = [f"{results[n]:.3f}" if results[n] is not None else "not run" for n in names]
        own = max((row["shared"]["task_weight_bytes"] or {"": 0}).values())
        graphs = row["shared"]["graph_bytes"].values()
        lines.append(
            key
            + " | ".join(cells)
            + f" | {own:,} | {' + '.join(f'{n:,}' for n in graphs) or 'inside'} "
            + f"| {difference(row):.2f} |"
        )
    return "\n".join([*lines, "", "Above what is wanted:", "", *_WHY]) + "\n"


_WHY = (
    "- Bytes of the embedded model: its matrices are few, so vectors of a task, graphs and "
    "goldens weigh more. Goldens hold a whole loop of each task; an app need not ship them.",
    "- Latency: in int8 a task's graph has the same operators as that of its own bundle (ONNX) and "
    "its rounds scatter around 1; in floats, and on ExecuTorch, gates are products more.",
    "- Memory: glibc keeps what the session before has freed; where it gives that back (measured "
    "on ONNX), nothing is left of one task in the next. Core ML: of the evaluator, "
    "which keeps a program a task.",
    "- Making: ExecuTorch lowers each method by itself. The whole export: four proofs.",
    "- dB: above 60 dB it is the order of roundings that differs, and the gate is a product of its "
    "own.",
)


def difference(row: dict[str, Any]) -> float:
    """Largest difference of a PSNR, dB, over the parts that both bundles have goldens of."""
    together = row["shared"]["db"]
    return max(
        abs(db - together[key])
        for one in row["alone"].values()
        for key, db in one["db"].items()
        if key in together and not key.startswith("pipeline")
    )


def main() -> None:
    """Run what is not done yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, default=CACHE / "shared")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--only", default="", help="size/target/scheme begins with this")
    parser.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        {"latency": latency, "memory": memory}[args.call[0]](*args.call[1:])
        return
    (args.home / "rows").mkdir(parents=True, exist_ok=True)
    results, rows = args.out / "shared.json", []
    before = json.loads(results.read_text("utf-8")) if results.is_file() else []
    others = {(row["size"], row["target"], row["scheme"]): row for row in before}
    for key in ROWS:
        file, work = (args.home / kind / "-".join(key) for kind in ("rows", "work"))
        file = file.with_suffix(".json")
        if "/".join(key).startswith(args.only):
            kept(file, measure, work, key)
            shutil.rmtree(work, ignore_errors=True)
        if file.is_file():
            rows.append(json.loads(file.read_text("utf-8")))
        elif key in others:
            rows.append(others[key])
    args.out.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (args.out / "shared.md").write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
