"""Published sizes: SD 1.5 and SDXL checkpoints through the targets and schemes.

    python benchmarks/sizes.py [--home ~/.cache/mtu-export/sizes] [--only sd15] [--out DIR]

A row is one export in a process of its own: wall time, peak resident memory (`wait4`), its
anonymous share by stage (read from /proc every 0.2 s; the rest is the mapped checkpoint, which the
kernel may drop), bytes, the exporter's proof, and PSNR on three inputs that the exporter did not
use. The rows of the UNet come first, whole pipelines last. Rows that are done are kept under
`--home`, so the run can be stopped at any time. What is refused is a row too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtu_export.bench import process

HERE = Path(__file__).parent
TASKS = ("t2i", "edit", "sr", "inpaint")
SIZE = {"sd15": ("512", "512"), "sdxl": ("512", "512")}
NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
FRESH_SEED = 20_261_121
FRESH = (901.0, 451.0, 151.0)
"""Timesteps; the goldens have 981, 501 and 21."""


def exports() -> Iterator[tuple[str, str, str, str]]:
    """(architecture, target, scheme, task) of the UNet alone: every task in int8, one in each."""
    for target in ("onnx", "executorch"):
        for task in TASKS:
            yield "sd15", target, "int8", task
    yield "sdxl", "onnx", "int8", "edit"
    yield "sd15", "coreml", "int8", "inpaint"
    yield "sdxl", "coreml", "int8", "edit"
    yield "sdxl", "executorch", "int8", "edit"
    for scheme in ("fp16", "fp32"):
        for target in ("onnx", "coreml", "executorch"):
            yield "sd15", target, scheme, "inpaint"
            yield "sdxl", target, scheme, "edit"
    for task in TASKS[:3]:
        yield "sd15", "coreml", "int8", task


def pipelines() -> Iterator[tuple[str, str, str, str]]:
    """(architecture, target, scheme, task) of whole pipelines."""
    for target in ("onnx", "executorch", "coreml"):
        yield "sd15", target, "int8", "inpaint"
    yield "sdxl", "onnx", "int8", "edit"


def measure(arguments: list[str], log: Path) -> dict[str, Any]:
    """Wall seconds, memory and exit code of one command of ours."""
    cost = process.measure([sys.executable, "-m", "mtu_export", *arguments], log)
    return {
        "exit": cost.exit,
        "wall_s": round(cost.wall_s, 1),
        "peak_rss_gb": round(cost.peak_rss / 1e9, 2),
        "anonymous_gb": {name: round(size / 1e9, 2) for name, size in cost.anonymous.items()},
        "error": cost.error,
    }


# ------------------------------------------------------------- inputs that the exporter did not use


def fresh(model: str, height: str, width: str, task: str, out: str) -> None:
    """Write three inputs and the live-router model's outputs for one task to ``out``."""
    from safetensors.numpy import save_file

    from mtu_export.exporter import golden_inputs, options
    from mtu_export.graph import capture
    from mtu_export.models.pipeline.layout import UNET

    resolved = options.resolve(
        target="onnx", model=model, task=task, height=int(height), width=int(width), out="none"
    )
    opened, first_task = resolved.model, resolved.tasks[0]
    graph = opened.load(UNET).graph(first_task, resolved.size, resolved.batch)
    cases = golden_inputs.of_pass(
        graph.inputs,
        opened.flow(first_task).call(UNET).inputs,
        opened.inputs(first_task),
        opened.constants(first_task, resolved.size),
        FRESH_SEED,
        timesteps=FRESH,
    )
    tensors = {}
    for i, pair in enumerate(zip(cases, capture.run(graph, cases), strict=True)):
        tensors |= {f"{i}/{name}": array for arrays in pair for name, array in arrays.items()}
    save_file(tensors, out)


def compare(bundle_folder: str, task: str, reference: str) -> None:
    """Print the worst PSNR of a bundle on the inputs of ``reference``, as JSON."""
    from safetensors.numpy import load_file

    from mtu_export import bundle, targets
    from mtu_export.bundle import metrics

    exported = bundle.read(Path(bundle_folder))
    part, target = exported.parts[0], targets.load(exported.manifest.target)
    runner, reason = targets.runtime(target).runner()
    if runner is None:
        print(json.dumps({"fresh_db": None, "fresh_reason": reason}))
        return
    tensors = load_file(reference)
    session = targets.runtime(target).open(part.path, part.entries[task])
    worst = min(
        metrics.psnr(tensors[f"{i}/{name}"], array)
        for i in range(len(FRESH))
        for name, array in session({s.name: tensors[f"{i}/{s.name}"] for s in part.inputs}).items()
    )
    print(json.dumps({"fresh_db": round(worst, 2), "fresh_reason": None}))


def child(function: str, *arguments: str) -> str:
    """Run one function of this file in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--call", function, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


# ---------------------------------------------------------------------------------------- one row


def row_of(root: Path, architecture: str, target: str, scheme: str, task: str) -> dict[str, Any]:
    """Export, look at the manifest, compare on fresh inputs, delete the bundle."""
    model, out, log = root / architecture / "checkpoint", root / "bundle", root / "log.txt"
    height, width = SIZE[architecture]
    shutil.rmtree(out, ignore_errors=True)
    arguments = [target, "-m", str(model), "--task", task, "--scheme", scheme, "-o", str(out)]
    arguments += ["--components", "unet"]
    row: dict[str, Any] = {"target": target, "scheme": scheme, "task": task}
    row = {"model": architecture, "height": int(height), **row}
    row |= measure([*arguments, "--height", height, "--width", width], log)
    if row["exit"]:
        return row
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    row["bytes"] = sum(part["bytes"] for part in manifest["parts"])
    row["cost"], row["proof"] = manifest["parts"][0]["cost"], manifest["proof"]
    row["of_fp32"] = round(row["bytes"] / (4 * row["cost"]["parameters"]), 4)
    row["options"], row["versions"] = manifest["options"], manifest["versions"]
    reference = root / architecture / f"fresh-{task}.safetensors"
    if not reference.is_file():
        child("fresh", str(model), height, width, task, str(reference))
    row |= json.loads(child("compare", str(out), task, str(reference)))
    shutil.rmtree(out)
    return row


def whole(root: Path, architecture: str, target: str, scheme: str, task: str) -> dict[str, Any]:
    """Export every part of a task; bytes, cost and proof by part."""
    model, out, log = root / architecture / "checkpoint", root / "bundle", root / "log.txt"
    height, width = SIZE[architecture]
    shutil.rmtree(out, ignore_errors=True)
    arguments = [target, "-m", str(model), "--task", task, "--scheme", scheme, "-o", str(out)]
    row: dict[str, Any] = {"model": architecture, "height": int(height), "target": target}
    row |= {"scheme": scheme, "task": task}
    row |= measure([*arguments, "--height", height, "--width", width], log)
    if row["exit"]:
        return row
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    row["parts"] = {
        part["name"]: {
            "bytes": part["bytes"],
            "parameters": part["cost"]["parameters"],
            "scheme": part["scheme"]["name"],
        }
        for part in manifest["parts"]
    }
    row["proof"], row["versions"] = manifest["proof"], manifest["versions"]
    row["bytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return row


def page(
    checkpoints: list[dict[str, Any]], rows: list[dict[str, Any]], wholes: list[dict[str, Any]]
) -> str:
    """The rows as Markdown."""
    lines = [
        "# Published sizes: SD 1.5 and SDXL, random weights, 512 x 512",
        "",
        "Made by `make sizes` from `sizes.json`. Wall time includes loading, folding, the goldens "
        "of the live router and the verification; 2 cores, shared with other work. Peak RSS counts "
        "the mapped checkpoint; anonymous memory is what the kernel cannot drop. `of fp32` is "
        "bytes over 4 x parameters. Fresh dB: three inputs that the exporter did not use, against "
        "the live router. A row that is not here was not run.",
        "",
        "## The UNet alone",
        "",
        "| model | target | scheme | task | wall | peak RSS | anonymous | bytes | of fp32 "
        "| folded dB | proof dB | fresh dB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        key = f"| {NAMES[row['model']]} | {row['target']} | {row['scheme']} | {row['task']} "
        if row["exit"]:
            lines.append(
                f"{key}| {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB | | "
                f"exit {row['exit']}: {row['error']} | | | | |"
            )
            continue
        folded, proof = (v["psnr_db"] for v in row["proof"])
        shown = "not run" if proof is None else f"{proof:.1f}"
        new = "not run" if row["fresh_db"] is None else f"{row['fresh_db']:.1f}"
        most = max(row["anonymous_gb"].values(), default=0)
        lines.append(
            f"{key}| {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB | {most:.1f} GB "
            f"| {row['bytes']:,} | {row['of_fp32']:.3f} | {folded:.1f} | {shown} | {new} |"
        )
    lines += ["", "## Whole pipelines", "", *_wholes(wholes)]
    lines += ["", "## Checkpoints", "", "| checkpoint | wall | peak RSS |", "|---|---|---|"]
    for row in checkpoints:
        name = f"upcycle --arch {row['model']} --random"
        lines.append(f"| {name} | {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB |")
    return "\n".join(lines) + "\n"


def _wholes(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | target | task | wall | peak RSS | part | scheme | bytes | proof dB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        key = f"| {NAMES[row['model']]} | {row['target']} | {row['task']} "
        key += f"| {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB "
        if row["exit"]:
            lines.append(f"{key}| exit {row['exit']}: {row['error']} | | | |")
            continue
        proof = {v["part"]: v["psnr_db"] for v in row["proof"] if v["stage"] != "folded"}
        sizes = {**row["parts"], "pipeline": {"bytes": row["bytes"], "scheme": row["scheme"]}}
        for name, part in sizes.items():
            value = proof.get(name)
            shown = "not run" if value is None else f"{value:.1f}"
            lines.append(f"{key}| {name} | {part['scheme']} | {part['bytes']:,} | {shown} |")
            key = "| | | | | "
    return lines


def main() -> None:
    """Run what is not done yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache/mtu-export/sizes")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--only", help="[whole-]model/target/scheme/task begins with this")
    parser.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        {"fresh": fresh, "compare": compare}[args.call[0]](*args.call[1:])
        return
    (args.home / "rows").mkdir(parents=True, exist_ok=True)
    checkpoints, rows = [], []
    for architecture in dict.fromkeys(row[0] for row in exports()):
        kept = args.home / "rows" / f"{architecture}.json"
        if not kept.is_file():
            model = args.home / architecture / "checkpoint"
            result = measure(
                ["upcycle", "--arch", architecture, "--random", str(model), "--force"],
                args.home / "log.txt",
            )
            kept.write_text(json.dumps({"model": architecture, **result}), "utf-8")
        checkpoints.append(json.loads(kept.read_text("utf-8")))
    wholes = []
    jobs = [(key, "", row_of, rows) for key in exports()]
    jobs += [(key, "whole-", whole, wholes) for key in pipelines()]
    for key, prefix, run, kind in jobs:
        kept = args.home / "rows" / f"{prefix}{'-'.join(key)}.json"
        if not kept.is_file():
            if not (prefix + "/".join(key)).startswith(args.only or ""):
                continue
            row = run(args.home, *key)
            kept.write_text(json.dumps(row), "utf-8")
            print(json.dumps(row), flush=True)
        kind.append(json.loads(kept.read_text("utf-8")))
    args.out.mkdir(parents=True, exist_ok=True)
    text = (
        json.dumps({"checkpoints": checkpoints, "rows": rows, "pipelines": wholes}, indent=1) + "\n"
    )
    (args.out / "sizes.json").write_text(text, "utf-8")
    (args.out / "sizes.md").write_text(page(checkpoints, rows, wholes), "utf-8")
    done = [*rows, *wholes]
    print(f"{sum(row['exit'] == 0 for row in done)} of {len(done)} exported")


if __name__ == "__main__":
    main()
