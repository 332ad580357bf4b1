"""SD 1.5 size: the MTU UNet of one task beside its baselines, on ONNX Runtime and ExecuTorch.

    python benchmarks/bench_sd15.py export [--home FOLDER] [--only dense-onnx]
    python benchmarks/bench_sd15.py measure [--only onnx]

Exports each of {folded, dense, unfolded, plain} x {onnx, executorch} x {fp32, int8} to
`HOME/bundles/<kind>-<target>-<scheme>`, one after the other, the UNet alone, from a checkpoint of
random weights (HOME: `~/.cache/mtu-export/bench-sd15`). What is there is kept, what was stopped
continues; `HOME/exports.json` has time, memory, bytes and proof of each, or the reason why there is
none. Measuring keeps each result below `HOME/state` and writes
benchmarks/results/bench_sd15_<target>_<scheme>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mtu_export import bundle
from mtu_export.bench import process, record, work
from mtu_export.bench.baseline_export import reason_of
from mtu_export.bench.checkout import head_commit
from mtu_export.bench.devices.host import Host
from mtu_export.bench.record import Kind
from mtu_export.bench.suite import Contender, Suite, SuiteOptions

TASKS = ("t2i", "edit", "sr", "inpaint")
TASK, SIDE, PARTS = "inpaint", 512, ("unet",)
BASELINES: tuple[Kind, ...] = ("dense", "unfolded", "plain")
THREADS, SAMPLES = 2, 2
RESULTS = Path(__file__).parent / "results"
HOME = Path.home() / ".cache" / "mtu-export" / "bench-sd15"


def exports() -> Iterator[tuple[str, str, str]]:
    """(kind, target, scheme), the most telling first."""
    pair = ("folded", "dense")
    for target, scheme in (("onnx", "fp32"), ("onnx", "int8"), ("executorch", "int8")):
        yield from ((kind, target, scheme) for kind in pair)
    for kind in ("unfolded", "plain"):
        yield from ((kind, "onnx", scheme) for scheme in ("fp32", "int8"))
    yield from ((kind, "executorch", "fp32") for kind in pair)
    for scheme in ("int8", "fp32"):
        yield from ((kind, "executorch", scheme) for kind in ("unfolded", "plain"))


def run(command: list[str], log: Path) -> dict[str, Any]:
    """Exit code, wall seconds and peak resident memory of a command, and its last line."""
    cost = process.measure(command, log)
    result: dict[str, Any] = {"exit": cost.exit, "wall_s": round(cost.wall_s, 1)}
    result["peak_rss_gb"] = round(cost.peak_rss / 1e9, 2)
    if cost.exit:
        result["error"] = reason_of(log) if cost.exit > 0 else f"signal {-cost.exit}"
    return result


def checkpoint(home: Path) -> Path:
    """The checkpoint of random weights, made where it is not there."""
    folder = home / "checkpoint"
    if not folder.is_dir():
        command = [sys.executable, "-m", "mtu_export", "upcycle", "--arch", "sd15", "--random"]
        command += [word for task in TASKS for word in ("--task", task)]
        result = run([*command, str(folder)], home / "logs" / "checkpoint.log")
        if result["exit"]:
            raise SystemExit(f"upcycle failed: {result['error']}")
    return folder


def export(home: Path, kind: str, target: str, scheme: str) -> dict[str, Any]:
    """One export in a process of its own."""
    name = f"{kind}-{target}-{scheme}"
    options = {
        "model": str(checkpoint(home)),
        "target": target,
        "scheme": scheme,
        "task": TASK,
        "height": SIDE,
        "width": SIDE,
        "components": PARTS,
        "out": str(home / "bundles" / name),
        "skip_existing": True,
    }
    job = json.dumps({"kind": "single" if kind == "folded" else kind, "options": options})
    module = "mtu_export.bench.baseline_export"
    return run([sys.executable, "-m", module, job], home / "logs" / f"{name}.log")


def described(folder: Path) -> dict[str, Any]:
    """Bytes, work and proof of a bundle."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (part,) = manifest["parts"]
    proof = {verdict["stage"]: verdict["psnr_db"] for verdict in manifest["proof"]}
    return {"bytes": part["bytes"], "cost": part["cost"], "psnr_db": proof}


def export_all(home: Path, only: str) -> None:
    """Export what is not there; a failure is kept with its reason, and tried again next time."""
    for folder in (home / "bundles", home / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    state = home / "exports.json"

    def kept() -> dict[str, Any]:
        return json.loads(state.read_text("utf-8")) if state.is_file() else {}

    for kind, target, scheme in exports():
        name = f"{kind}-{target}-{scheme}"
        folder = home / "bundles" / name
        if not name.startswith(only) or (folder.is_dir() and "bytes" in kept().get(name, {})):
            continue
        result = {} if folder.is_dir() else export(home, kind, target, scheme)
        if folder.is_dir():
            result |= described(folder)
        rows = kept()  # another process may have added its own
        rows[name] = rows.get(name, {}) | result
        state.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
        print(name, json.dumps(result), flush=True)


# --------------------------------------------------------------------------------------- measure


def measure(
    home: Path, out: Path, only: str, kinds: Sequence[str], *, checks: bool, rounds: int | None
) -> None:
    """Measure the bundles that are there; those of one target and scheme take turns.

    Bundles in float32 have two rounds, without a second loading: the files of a group are larger
    than the memory that is left for them, so each loading reads the disk.
    """
    for target, scheme in dict.fromkeys((target, scheme) for _, target, scheme in exports()):
        group = [
            each for each in contenders(home, target, scheme) if each.kind in ("bundle", *kinds)
        ]
        if not f"{target}-{scheme}".startswith(only) or not group:
            continue
        large = scheme == "fp32"
        settings = work.Settings(threads=THREADS, deadline_s=3600.0, load_again=not large)
        options = SuiteOptions(
            settings=settings,
            rounds=rounds or (2 if large else 3),
            samples=SAMPLES,
            parts=PARTS,
            checks=checks,
            commit=head_commit(),
            state=home / "state",
        )
        with closing(Host(progress=lambda _: None)) as host:
            run = Suite(host, options, lambda line: print(line, flush=True)).run([group])
        record.write(run, out / f"bench_sd15_{target}_{scheme}.json")


def contenders(home: Path, target: str, scheme: str) -> list[Contender]:
    """The folded bundle and its baselines; one that is not there is a row that says why."""
    state = home / "exports.json"
    reasons = json.loads(state.read_text("utf-8")) if state.is_file() else {}
    folders = {
        kind: home / "bundles" / f"{kind}-{target}-{scheme}"
        for kind in ("folded", "dense", "unfolded", "plain")
    }
    if not (folders["folded"] / bundle.MANIFEST).is_file():
        return []
    folded = bundle.read(folders["folded"])
    label = work.describe(folded)
    group = [Contender(kind="bundle", bundle=folded, label=label)]
    for kind in BASELINES:
        there = (folders[kind] / bundle.MANIFEST).is_file()
        error = reasons.get(folders[kind].name, {}).get("error", "it was not exported")
        group.append(
            Contender(
                kind=kind,
                bundle=bundle.read(folders[kind]) if there else None,
                label=label,
                reason=None if there else error,
            )
        )
    return group


def main() -> None:
    """Export what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=("export", "measure"))
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--only", default="", help="a name begins with this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--kind", action="append", choices=BASELINES, help="to measure; repeat")
    parser.add_argument("--rounds", type=int, help="default: 3, of float32 2")
    parser.add_argument("--no-checks", action="store_true", help="measure times and memory alone")
    args = parser.parse_args()
    if args.command != "measure":
        export_all(args.home, args.only)
    if args.command != "export":
        kinds = args.kind or BASELINES
        checks = not args.no_checks
        measure(args.home, args.out, args.only, kinds, checks=checks, rounds=args.rounds)


if __name__ == "__main__":
    main()
