"""How near whole loops of dense bundles are to diffusers' pipelines: last latent and picture.

    python benchmarks/dense.py [--out benchmarks/results] [--only NAME ...] [--pictures FOLDER]

Cases of ``mtu_export.testing.campaigns.dense``: ours is an ONNX fp32 bundle in ONNX Runtime, theirs
the pipeline of diffusers in PyTorch, latents and scheduler in float64; same weights, noise, prompts
and steps. ``--only`` measures these cases and keeps the other rows. ``--pictures`` keeps the
pictures of both sides, theirs above ours.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mtu_export.bundle import images  # noqa: E402
from mtu_export.testing.campaigns import dense, dense_cases  # noqa: E402
from mtu_export.testing.campaigns.pipelines import compare  # noqa: E402

KEYS = ("latents_db", "image_db")


def measure(pairs: dense.Pairs, case: dense_cases.Case, keep: Path | None) -> dict[str, Any]:
    """One row."""
    theirs, ours = pairs.make(case)
    compared = compare(theirs, ours)
    if keep is not None:
        both = np.concatenate([theirs.image, ours.image], 2)
        images.save(np.clip(both, -1, 1).astype(np.float32), keep / f"{case}.png")
    return {
        "case": case.name,
        "pipeline": case.pipeline,
        "scheduler": dense_cases.scheduler_of(case),
        "steps": case.steps,
        "strength": case.strength,
        "negative": case.negative is not None,
        "lora": case.lora,
        "latents_db": round(compared.latents_db, 1),
        "image_db": round(compared.image_db, 1),
    }


def page(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """The table in Markdown."""
    worst = min(rows, key=lambda row: min(row[key] for key in KEYS))
    lines = [
        "# Dense pipelines against diffusers' own",
        "",
        f"Made by `make dense` from `dense.json` (diffusers {versions['diffusers']}, "
        f"torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, "
        f"{platform.machine()}). Random tiny checkpoints, float32, 128 x 64; ours is "
        "`runner.generate` on an ONNX bundle, theirs the same folder in diffusers. Both have the "
        "same noise: the start's and, where the scheduler draws, each pass's. Their networks are "
        "float32, their latents and the scheduler's states float64. Image to image is handed the "
        "picture's latent, and mask filling a VAE whose posterior has no width: those pipelines "
        "sample it, a bundle takes its mean. PSNR = 20·log10(max|ref| / rmse); the floor is "
        f"{dense.FLOOR_DB:g} dB.",
        "",
        f"The worst of all: **{min(worst[key] for key in KEYS)} dB** ({worst['case']}).",
        "",
        "| case | pipeline of diffusers | scheduler | steps | last latent | image |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        steps = f"{row['steps']}" + (f", strength {row['strength']}" if row["strength"] else "")
        lines.append(
            f"| {row['case']} | {row['pipeline']} | {row['scheduler']} | {steps} "
            f"| {row['latents_db']} dB | {row['image_db']} dB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the rows, write the tables; exit 1 where one is below the floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    path = args.out / "dense.json"
    before = json.loads(path.read_text("utf-8"))["rows"] if args.only and path.is_file() else []
    rows = {row["case"]: row for row in before}
    with tempfile.TemporaryDirectory() as folder:
        pairs = dense.Pairs(Path(folder))
        for case in dense_cases.CASES:
            if args.only and case.name not in args.only:
                continue
            rows[case.name] = measure(pairs, case, args.pictures)
            print(rows[case.name], flush=True)
    versions = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    ordered = [rows[case.name] for case in dense_cases.CASES if case.name in rows]
    document = {"versions": versions, "floor_db": dense.FLOOR_DB, "rows": ordered}
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (args.out / "dense.md").write_text(page(ordered, versions), "utf-8")
    sys.exit(0 if all(row[key] >= dense.FLOOR_DB for row in ordered for key in KEYS) else 1)


if __name__ == "__main__":
    main()
