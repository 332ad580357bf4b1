"""Core ML packages evaluated from disk: dB by task, deployment target and scheme; one of full size.

    python benchmarks/coreml_ladder.py                 a tiny random checkpoint, four tasks
    python benchmarks/coreml_ladder.py --full          the UNet of SD 1.5 in fp16 and int8 (7 GB)

One export is one child process of `mtu-export coreml ... --json`, and so is one evaluation of full
size, whose wall time and peak memory are its own. Rows that are done are kept under
`~/.cache/mtu-export/coreml-ladder`; `--fresh` starts anew. A failing export is a row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mtu_export.bench import process

CACHE = Path.home() / ".cache" / "mtu-export"
STATE = CACHE / "coreml-ladder"
SD15 = CACHE / "sizes" / "sd15" / "checkpoint"
TASKS = ("t2i", "edit", "sr", "inpaint")
DEPLOYMENT = ("iOS16", "iOS17", "iOS18")
SCHEMES = ("fp16", "int8")
PARTS = ("text_encoder", "vae_encoder", "unet", "vae_decoder", "pipeline")


def export(arguments: list[str], out: Path) -> dict[str, Any]:
    """One export: exit code, seconds, dB by part, operators."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mtu_export", "coreml", *arguments, "-o", str(out)]
    cost = process.measure(command, out.with_suffix(".log"))
    row: dict[str, Any] = {"exit": cost.exit, "export_s": round(cost.wall_s, 1)}
    if cost.exit:
        return row | {"error": cost.error or "killed"}
    result = json.loads((out / "manifest.json").read_text("utf-8"))
    proof = [verdict for verdict in result["proof"] if verdict["stage"] != "folded"]
    row["db"] = {verdict["part"]: verdict["psnr_db"] for verdict in proof}
    row["runner"], row["versions"] = proof[-1]["runner"], result["versions"]
    row["operators"] = dict(operators(out))
    return row


def operators(bundle: Path) -> Counter[str]:
    """Operators of all packages of a bundle, without the constants."""
    from mtu_export import targets

    counts: Counter[str] = Counter()
    for path in sorted(bundle.glob("*.mlpackage")):
        counts.update(targets.load("coreml").structure(path, "main").operators)
    del counts["const"]
    return counts


def evaluate(folder: Path) -> dict[str, Any]:
    """dB of the UNet of a bundle against its goldens, seconds a pass, peak memory.

    ``narrow_db`` is that of the first golden where float16 accumulates.
    """
    from mtu_export import bundle
    from mtu_export.bench.memory import Meter
    from mtu_export.bundle import metrics
    from mtu_export.targets.coreml import mil

    exported = bundle.read(folder)
    part, cases = exported.part("unet"), bundle.Goldens(exported)
    ((task, entry),) = part.entries.items()
    start, meter = time.monotonic(), Meter()
    session = mil.open(part.path, entry)
    opened, seconds, figures = time.monotonic() - start, [], []
    for inputs, outputs in cases.cases("unet", task):
        start = time.monotonic()
        got = session(inputs)
        seconds.append(round(time.monotonic() - start, 2))
        figures.append(round(min(metrics.psnr(v, got[name]) for name, v in outputs.items()), 2))
    peak = round((meter.read()["peak"] or 0) / 1e9, 2)
    row = {"db": figures, "pass_s": seconds, "open_s": round(opened, 2), "peak_rss_gb": peak}
    (inputs, outputs), *_ = cases.cases("unet", task)
    got = mil.open(part.path, entry, accumulate="float16")(inputs)
    narrow = min(metrics.psnr(v, got[name]) for name, v in outputs.items())
    return row | {"narrow_db": round(narrow, 2), "bytes": part.bytes, "runner": mil.runner()[0]}


def kept(name: str, make: Any) -> dict[str, Any]:
    """A row from the state folder, or made now and kept."""
    path = STATE / "rows" / f"{name}.json"
    if not path.is_file():
        row = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row), "utf-8")
        print(name, row, flush=True)
    return json.loads(path.read_text("utf-8"))


def tiny_rows() -> list[dict[str, Any]]:
    """Every task, deployment target and scheme on a tiny checkpoint with random weights."""
    from mtu_export.authoring import upcycle

    model, rows = STATE / "tiny", []
    if not model.is_dir():
        upcycle.write_random("tiny", model, tasks=TASKS, dtype="fp16")
    for task in TASKS:
        for target in DEPLOYMENT:
            for scheme in SCHEMES:
                arguments = ["-m", str(model), "--task", task, "--scheme", scheme]
                arguments += ["--min-deployment-target", target]
                out = STATE / f"bundle-{os.getpid()}"
                row = kept(f"{task}-{target}-{scheme}", lambda w=arguments, o=out: export(w, o))
                rows.append({"task": task, "deployment": target, "scheme": scheme, **row})
                shutil.rmtree(out, ignore_errors=True)
    return rows


def full_rows(checkpoint: Path) -> list[dict[str, Any]]:
    """The UNet of SD 1.5 for `inpaint`: exported in one process, evaluated in another."""

    def measure(scheme: str) -> dict[str, Any]:
        out = STATE / f"full-{scheme}"
        arguments = ["-m", str(checkpoint), "--task", "inpaint", "--components", "unet"]
        row = export([*arguments, "--scheme", scheme], out)
        if row["exit"]:
            return row
        done = subprocess.run(
            [sys.executable, __file__, "--evaluate", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return row | {"exit": done.returncode, "error": done.stderr.strip().splitlines()[-1]}
        shutil.rmtree(out)
        return row | {"evaluated": json.loads(done.stdout.splitlines()[-1])}

    return [
        {"scheme": scheme, **kept(f"full-{scheme}", lambda s=scheme: measure(s))}
        for scheme in SCHEMES
    ]


def page(rows: list[dict[str, Any]], full: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    from mtu_export.targets.coreml.mil import evaluate, operators

    assert evaluate
    lines = [
        "# Core ML packages, evaluated from disk",
        "",
        "Made by `make coreml-ladder` from `coreml_ladder.json`. PSNR against the live-router "
        "model in PyTorch, the worst of three cases a part (`pipeline`: the last latent and the "
        "picture of the whole loop); tiny checkpoint, random weights, MIL evaluator, sums in "
        "float32.",
        "",
        f"| task | system | scheme | {' | '.join(PARTS)} |",
        f"|---|---|---|{'---|' * len(PARTS)}",
    ]
    for row in rows:
        key = f"| {row['task']} | {row['deployment']} | {row['scheme']} "
        if row["exit"]:
            lines.append(f"{key}| exit {row['exit']}: {row['error']} |{' |' * (len(PARTS) - 1)}")
            continue
        cells = (row["db"].get(part) for part in PARTS)
        lines.append(key + "| " + " | ".join("" if v is None else f"{v:.1f}" for v in cells) + " |")
    if full:
        lines += [
            "",
            "## The UNet of SD 1.5 (860 M, 64 x 64 latent, 9 channels in)",
            "",
            "| scheme | bytes | dB (three timesteps) | where float16 accumulates | open | a pass "
            "| peak RSS |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in full:
            if row["exit"]:
                lines.append(f"| {row['scheme']} | exit {row['exit']}: {row['error']} | | | | | |")
                continue
            run = row["evaluated"]
            figures = ", ".join(f"{v:.1f}" for v in run["db"])
            passes = ", ".join(f"{v:.0f}" for v in run["pass_s"])
            lines.append(
                f"| {row['scheme']} | {run['bytes']:,} | {figures} | {run['narrow_db']:.1f} "
                f"| {run['open_s']:.0f} s | {passes} s | {run['peak_rss_gb']:.1f} GB |"
            )
    there = sorted({kind for row in [*rows, *full] for kind in row.get("operators", ())})
    missing = sorted(set(there) - set(operators.names()))
    lines += [
        "",
        "## Operators",
        "",
        f"In these packages ({len(there)}): {', '.join(there)}.",
        "",
        f"Of them not covered: {', '.join(missing) or 'none'}.",
        "",
        f"Covered ({len(operators.names())}): {', '.join(operators.names())}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not done yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="the UNet of SD 1.5 too")
    parser.add_argument("--checkpoint", type=Path, default=SD15, help="of SD 1.5 size")
    parser.add_argument("--evaluate", type=Path, help="a bundle: print its row, and nothing else")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    if args.evaluate:
        print(json.dumps(evaluate(args.evaluate)))
        return
    if args.fresh:
        shutil.rmtree(STATE, ignore_errors=True)
    if args.full and not args.checkpoint.is_dir():
        make = f"mtu-export upcycle --arch sd15 --random {args.checkpoint}"
        raise SystemExit(f"{args.checkpoint} is not there; make it with: {make}")
    rows = tiny_rows()
    done = all((STATE / "rows" / f"full-{scheme}.json").is_file() for scheme in SCHEMES)
    full = full_rows(args.checkpoint) if args.full or done else []
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"tiny": rows, "sd15": full}, indent=1) + "\n"
    (args.out / "coreml_ladder.json").write_text(text, "utf-8")
    (args.out / "coreml_ladder.md").write_text(page(rows, full), "utf-8")
    failed = sum(1 for row in [*rows, *full] if row["exit"])
    print(f"{len(rows) + len(full) - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
