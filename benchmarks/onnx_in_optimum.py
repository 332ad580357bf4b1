"""ONNX bundles of t2i opened and run by optimum-onnx, against `mtu-export run` of the same bundle.

    python benchmarks/onnx_in_optimum.py --python build/optimum/bin/python [--out FOLDER]

optimum-onnx wants an older transformers than ours, so its side (``optimum_onnx.py``) runs in an
environment of its own; ``optimum.txt`` pins it. Each bundle is exported from a random tiny
checkpoint with ``--batch 2``, as guidance in diffusers sends two branches at once. Compared are
the last latent and the image in float32, and the PNGs, after 20 steps from the same noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtu_export import bundle
from mtu_export.authoring import upcycle
from mtu_export.bundle import runner, sampler
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.metrics import psnr
from mtu_export.spec import Guidance

HERE = Path(__file__).parent
ROOT = HERE.parent
CASES = (("tiny", None), ("tiny", "ddim"), ("tiny", "dpm++2m"), ("tiny-sdxl", None))
"""Architecture of the checkpoint, and what of ``--scheduler``."""
STEPS, GUIDANCE, SEED = 20, 7.5, 11
HEIGHT, WIDTH = 64, 128
PROMPT = "a photo of a red circle on a blue table"
FLOOR_DB = 60.0


def mtu_export(*arguments: str) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "mtu_export", *arguments], check=True, cwd=ROOT)


def export(architecture: str, scheduler: str | None, folder: Path) -> Path:
    """The bundle of a case."""
    checkpoint, out = folder / architecture, folder / f"{architecture}-{scheduler}"
    if not checkpoint.exists():
        upcycle.write_random(architecture, checkpoint, tasks=["t2i"])
    arguments = [
        "onnx",
        "--model",
        str(checkpoint),
        "--task",
        "t2i",
        "--scheme",
        "fp32",
        "--batch",
        "2",
    ]
    arguments += ["--height", str(HEIGHT), "--width", str(WIDTH), "--bake-steps", str(STEPS)]
    arguments += [] if scheduler is None else ["--scheduler", scheduler]
    mtu_export(*arguments, "-o", str(out))
    return out


def by_us(folder: Path, noise: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Last latent and clipped image; `mtu-export run` writes ``out`` (a PNG)."""
    arguments = ["run", str(folder), "-o", str(out), "--prompt", PROMPT, "--noise", str(noise)]
    mtu_export(*arguments, "--steps", str(STEPS), "--guidance", str(GUIDANCE))
    loop = runner.open_loop(bundle.read(folder))
    request = Request(
        prompt=PROMPT,
        noise=np.load(noise),
        steps=STEPS,
        guidance=Guidance(kind="text", text=GUIDANCE),
    )
    latents, image = runner.generate(loop, request)
    return latents[-1], np.clip(image, -1, 1)


def by_optimum(python: Path, folder: Path, noise: Path, out: Path) -> dict[str, str]:
    """Let the other environment write latent, image and PNG into ``out``; its versions."""
    request = {"prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE}
    request |= {"height": HEIGHT, "width": WIDTH}
    (folder.parent / "request.json").write_text(json.dumps(request), "utf-8")
    command = [python, HERE / "optimum_onnx.py", folder, folder.parent / "request.json", noise, out]
    subprocess.run([*map(str, command)], check=True)
    return json.loads((out / "versions.json").read_text("utf-8"))


def pixels(path: Path) -> np.ndarray:
    """A PNG as float32 within 0..1."""
    return np.asarray(Image.open(path), np.float32) / 255


def measure(
    case: tuple[str, str | None], python: Path, work: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """One row and the versions of the other environment."""
    folder = export(*case, work)
    loop = runner.open_loop(bundle.read(folder))
    noise = work / f"{folder.name}-noise.npy"
    assert loop.latent is not None
    np.save(noise, sampler.noise((1, *loop.latent), SEED))
    theirs = work / f"{folder.name}-optimum"
    versions = by_optimum(python, folder, noise, theirs)
    ours_png = work / f"{folder.name}-ours.png"
    latent, image = by_us(folder, noise, ours_png)
    row: dict[str, Any] = {
        "checkpoint": case[0],
        "scheduler": versions.pop("scheduler"),
        "option": case[1],
        "latents_db": round(psnr(np.load(theirs / "latent.npy"), latent), 1),
        "image_db": round(psnr(np.load(theirs / "image.npy"), image), 1),
        "png_db": round(psnr(pixels(theirs / "image.png"), pixels(ours_png)), 1),
    }
    row["passed"] = all(row[key] >= FLOOR_DB for key in ("latents_db", "image_db", "png_db"))
    return row, versions


def page(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """The table in Markdown."""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# ONNX bundles in optimum-onnx",
        "",
        f"Made by `make optimum` from `optimum.json` ({listed}; {platform.machine()}). Bundles of "
        f"t2i with `--batch 2`, {WIDTH} x {HEIGHT}, {STEPS} steps, guidance {GUIDANCE}, the same "
        "noise: `ORTStableDiffusion[XL]Pipeline.from_pretrained(BUNDLE)` against `mtu-export run "
        f"BUNDLE`. PSNR = 20·log10(max|ref| / rmse), floor {FLOOR_DB:g} dB; 300 dB is bit for bit "
        "equal.",
        "",
        "| checkpoint (random weights) | `--scheduler` | scheduler that optimum found "
        "| last latent | image | PNG |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['checkpoint']} | {r['option'] or 'none'} | {r['scheduler']} | {r['latents_db']} dB "
        f"| {r['image_db']} dB | {r['png_db']} dB |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row, write the table; exit 1 where one is below the floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, required=True, help="of optimum's environment")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--keep", type=Path, help="folder for bundles and pictures")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            row, versions = measure(case, args.python.absolute(), folder)
            rows.append(row)
            print(row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    document = {"versions": versions, "floor_db": FLOOR_DB, "rows": rows}
    (args.out / "optimum.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (args.out / "optimum.md").write_text(page(rows, versions), "utf-8")
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
