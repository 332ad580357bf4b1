"""Every task x target x scheme on tiny SD and SDXL pipelines: dB by part and of the loop, bytes.

    python benchmarks/conformance.py [--targets onnx coreml] [--checkpoints tiny tiny-sdxl]

One export is one child process of `mtu-export ... --json`. A row that is done is kept under
`~/.cache/mtu-export/conformance` and not run again, so the run can be stopped at any time;
`--fresh` starts anew, `--done` writes the page of what is done and runs nothing. Rows of the
results that are not named, or not done, stay as they are. A failing export is a row, not the end
of the run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATE = Path.home() / ".cache" / "mtu-export" / "conformance"
RELIGHT = {
    "name": "relight",
    "conditioning": [
        {"kind": "image", "channels": 3},
        {"kind": "image_latent", "channels": 4, "scaled": False},
    ],
    "guidance": {"kind": "text", "text": 6.0},
    "steps": 12,
    "prompt": None,
}
TASKS = ("t2i", "edit", "sr", "inpaint", "fill", "relight")
CHECKPOINTS = ("tiny", "tiny-sdxl")
TARGETS = ("onnx", "executorch", "coreml")
SCHEMES = ("fp32", "fp16", "int8")
KEY = ("target", "checkpoint", "scheme", "task")
"""What a row of the results is found by."""
REFUSED = 2
"""Exit code of a plan that a target does not take, such as fp16 on ExecuTorch."""
COLUMNS = (
    "text_encoder",
    "text_encoder_2",
    "vae_encoder",
    "folded",
    "unet",
    "vae_decoder",
    "pipeline",
)
"""Of the page: parts, the folded UNet in PyTorch before its artefact, the whole loop last."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of ours in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mtu_export", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def checkpoint(architecture: str) -> Path:
    """A random pipeline with all presets and one task that is none."""
    folder = STATE / "checkpoints" / architecture
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        task = STATE / "relight.json"
        task.write_text(json.dumps(RELIGHT), "utf-8")
        arguments = [argument for name in TASKS[:-1] for argument in ("--task", name)]
        done = run(
            "upcycle",
            "--arch",
            architecture,
            "--random",
            str(folder),
            *arguments,
            "--task",
            str(task),
        )
        if done.returncode:
            raise SystemExit(done.stderr)
    return folder


def measure(architecture: str, target: str, scheme: str, task: str) -> dict[str, Any]:
    """The row of one export: verdicts, bytes, seconds, or the error."""
    out = STATE / f"bundle-{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ("--task", task, "--scheme", scheme, "-o", str(out), "--json")
    start = time.monotonic()
    done = run(target, "-m", str(checkpoint(architecture)), *arguments)
    row: dict[str, Any] = {
        "checkpoint": architecture,
        "target": target,
        "scheme": scheme,
        "task": task,
        "seconds": round(time.monotonic() - start, 1),
        "exit": done.returncode,
    }
    if done.returncode:
        return row | {"error": done.stderr.strip().splitlines()[-1]}
    result = json.loads(done.stdout)
    row["bytes"] = result["bytes"]
    row["parts"] = {part["name"]: part["bytes"] for part in result["parts"]}
    row["proof"] = {_column(v): v["psnr_db"] for v in result["proof"]}
    row["runner"] = result["proof"][-1]["runner"]
    row["reason"] = result["proof"][-1]["reason"]
    row["versions"] = result["versions"]
    shutil.rmtree(out)
    return row


def _column(verdict: dict[str, Any]) -> str:
    return "folded" if verdict["stage"] == "folded" else verdict["part"]


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("text", "text 2", "VAE encoder", "UNet folded", "UNet", "VAE decoder", "loop")
    lines = [
        "# Conformance: tiny pipelines, random weights",
        "",
        "Made by `make conformance` from `conformance.json`. The ladder of a bundle in dB (PSNR "
        "against PyTorch, the worst case): each part in its own runtime, the folded UNet in "
        "PyTorch, the UNet's artefact, then the loop of all parts against the live-router loop in "
        "PyTorch. An empty cell is a part that the task does not need; a row that is not here was "
        "not run. Random weights are harder to quantise than trained ones.",
        "",
        "| checkpoint | target | scheme | task | " + " | ".join(names) + " | bytes | runner |",
        "|---" * (len(names) + 6) + "|",
    ]
    for row in rows:
        key = f"| {row['checkpoint']} | {row['target']} | {row['scheme']} | {row['task']} |"
        if row["exit"]:
            lines.append(f"{key}{' |' * len(names)} | exit {row['exit']}: {row['error']} |")
            continue
        cells = [_cell(row["proof"], name) for name in COLUMNS]
        lines.append(
            f"{key} {' | '.join(cells)} | {row['bytes']:,} | {row['runner'] or row['reason']} |"
        )
    return "\n".join(lines) + "\n"


def _cell(proof: dict[str, float | None], name: str) -> str:
    value = proof.get(name)
    return f"{value:.1f}" if value is not None else "not run" if name in proof else ""


def main() -> None:
    """Run what is not done yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--checkpoints", nargs="+", default=CHECKPOINTS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--done", action="store_true")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(STATE, ignore_errors=True)
    results = args.out / "conformance.json"
    before = json.loads(results.read_text("utf-8")) if results.is_file() else []
    by_key = {tuple(row[name] for name in KEY): row for row in before}
    order = list(itertools.product(TARGETS, CHECKPOINTS, SCHEMES, TASKS))
    for target, architecture, scheme, task in order:
        kept = STATE / "rows" / f"{architecture}-{target}-{scheme}-{task}.json"
        meant = (args.targets, args.checkpoints, args.schemes)
        named = all(x in row for x, row in zip((target, architecture, scheme), meant, strict=True))
        if named and not kept.is_file() and not args.done:
            row = measure(architecture, target, scheme, task)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row), "utf-8")
            print(row, flush=True)
        if named and kept.is_file():
            by_key[target, architecture, scheme, task] = json.loads(kept.read_text("utf-8"))
    rows = [by_key[key] for key in order if key in by_key]
    args.out.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (args.out / "conformance.md").write_text(page(rows), "utf-8")
    refused = sum(1 for row in rows if row["exit"] == REFUSED)
    failed = sum(1 for row in rows if row["exit"]) - refused
    print(f"{len(rows) - failed - refused} passed, {refused} refused, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
