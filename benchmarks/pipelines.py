"""How near whole loops of bundles are to diffusers' pipelines: last latent and picture, float32.

    python benchmarks/pipelines.py [--out benchmarks/results] [--pictures FOLDER]

Cases of ``mtu_export.testing.campaigns.pipelines``: ours is an ONNX fp32 bundle in ONNX Runtime,
theirs a pipeline of diffusers in PyTorch, UNet folded; same weights, noise, prompt, schedule and
guidance. Then a LoRA of UNet and text encoders, which diffusers runs beside the weights.
``--pictures`` keeps both sides' pictures, theirs above ours.
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
from mtu_export.testing.campaigns import pipelines, pipelines_lora  # noqa: E402

KEYS = ("latents_db", "image_db")
LORA_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def measure(pairs: pipelines.Pairs, case: pipelines.Case, keep: Path | None) -> dict[str, Any]:
    """One row of the loops."""
    theirs, ours = pairs.make(case)
    compared = pipelines.compare(theirs, ours)
    if keep is not None:
        both = np.concatenate([theirs.image, ours.image], 2)
        images.save(np.clip(both, -1, 1).astype(np.float32), keep / f"{case}.png")
    return {
        "task": case.task,
        "pipeline": case.pipeline,
        "scheduler": case.scheduler,
        "prediction": case.prediction,
        "zeros": case.zeros,
        "latents_db": round(compared.latents_db, 1),
        "image_db": round(compared.image_db, 1),
    }


def measure_lora(pairs: pipelines.Pairs, pipeline: str) -> dict[str, Any]:
    """One row of the LoRAs: what it changes, one pass, the loop."""
    measured = pipelines_lora.measure(pairs, pipeline)
    return {
        "pipeline": pipeline,
        "without_db": round(measured.without_db, 1),
        "pass_db": round(measured.pass_db, 1),
        "latents_db": round(measured.loop.latents_db, 1),
        "image_db": round(measured.loop.image_db, 1),
    }


def page(rows: list[dict[str, Any]], loras: list[dict[str, Any]]) -> str:
    """The tables in Markdown."""
    worst = min(rows, key=lambda row: min(row["latents_db"], row["image_db"]))
    lines = [
        "# Bundles against diffusers' pipelines",
        "",
        f"Made by `make pipelines` from `pipelines.json` (diffusers {diffusers.__version__}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{platform.machine()}). Random tiny checkpoints, float32, 128 x 64, "
        f"{pipelines.STEPS} steps, the same noise; ours is `runner.generate` "
        "on an ONNX bundle, theirs the pipeline with the folded UNet. PSNR = 20·log10(max|ref| / "
        f"rmse); the floor is {pipelines.FLOOR_DB:g} dB.",
        "",
        f"The worst of all: **{min(worst['latents_db'], worst['image_db'])} dB** "
        f"({worst['task']}, {worst['pipeline']}, {worst['scheduler']}).",
        "",
        "| task | pipeline of diffusers | scheduler | prediction | last latent | image |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['task']} | {r['pipeline']}{'' if r['zeros'] else ', empty prompt encoded'} "
        f"| {r['scheduler']} | {r['prediction']} | {r['latents_db']} dB | {r['image_db']} dB |"
        for r in rows
    ]
    lines += [
        "",
        "`edit-scaled` has an image latent that is multiplied by the scaling factor, which "
        "InstructPix2Pix is handed as a latent. Mask filling is handed a VAE whose posterior has "
        "no width: that pipeline samples it, a bundle takes its mean.",
        "",
        "## A LoRA folded against the same LoRA beside the weights",
        "",
        f"Of UNet and text encoders, random, scale {pipelines_lora.SCALE}; one pass of the "
        f"denoiser after the text encoders (floor {pipelines_lora.FLOOR_DB:g} dB), then the loop "
        "with DDIM.",
        "",
        "| pipeline | with against without | one pass | last latent | image |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['pipeline']} | {r['without_db']} dB | {r['pass_db']} dB | {r['latents_db']} dB "
        f"| {r['image_db']} dB |"
        for r in loras
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row, write the tables; exit 1 where one is below its floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    loras: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = pipelines.Pairs(Path(folder))
        for case in pipelines.CASES:
            rows.append(measure(pairs, case, args.pictures))
            print(rows[-1], flush=True)
        for pipeline in LORA_PIPELINES:
            loras.append(measure_lora(pairs, pipeline))
            print(loras[-1], flush=True)
    versions = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    floors = {"loop": pipelines.FLOOR_DB, "lora_pass": pipelines_lora.FLOOR_DB}
    document = {"versions": versions, "floors_db": floors, "loops": rows, "loras": loras}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pipelines.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (args.out / "pipelines.md").write_text(page(rows, loras), "utf-8")
    good = all(row[key] >= floors["loop"] for row in rows + loras for key in KEYS)
    sys.exit(0 if good and all(r["pass_db"] >= floors["lora_pass"] for r in loras) else 1)


if __name__ == "__main__":
    main()
