"""Largest relative error of the fold against the live router, by number of experts.

    python benchmarks/fold.py [--out benchmarks/results]

For each N the tiny SD and SDXL checkpoints are made with seeded random weights (N = 3 has unequal
widths), loaded, and every task folded: the largest error over blocks in float64 arithmetic, with
weights in float32 and in float64, and the PSNR of the folded UNet against the live one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from mtu_export.authoring import upcycle
from mtu_export.bundle.metrics import psnr
from mtu_export.models.mtu import network as mtu

TASKS = ("t2i", "edit", "sr", "inpaint", "fill")


def given(unet: Any, task: str, kind: torch.dtype) -> dict[str, Any]:
    """Seeded inputs of one task."""
    random = torch.Generator().manual_seed(0)
    channels = 4 + unet.task(task).channels
    values: dict[str, Any] = {
        "sample": torch.randn(1, channels, 16, 16, generator=random).to(kind),
        "timestep": torch.tensor([501.0], dtype=kind),
        "encoder_hidden_states": torch.randn(1, 77, 32, generator=random).to(kind),
    }
    if unet.config.get("addition_embed_type") == "text_time":
        ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).to(kind)
        pooled = torch.randn(1, 32, generator=random).to(kind)
        values["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    return values


def measure(folder: Path, task: str, kind: torch.dtype) -> tuple[float, float]:
    """Largest block error, and PSNR of the whole UNet in dB."""
    unet = mtu.load(folder)
    unet = unet.double() if kind is torch.float64 else unet
    values = given(unet, task, kind)
    with torch.no_grad():
        want = unet(**values, task=task).sample
        folded = mtu.specialise(unet, [unet.task(task)])[task]
        got = folded.module(**values).sample
    return max(folded.errors.values()), psnr(want.numpy(), got.numpy())


def main() -> None:
    """Measure every N, then write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for architecture in ("tiny", "tiny-sdxl"):
            for experts in (1, 2, 3, 4, 8):
                folder = Path(temporary) / f"{architecture}-{experts}"
                upcycle.write_random(architecture, folder, tasks=TASKS, experts=experts)
                row: dict[str, Any] = {"checkpoint": architecture, "experts": experts}
                for name, kind in (("fp32", torch.float32), ("fp64", torch.float64)):
                    errors = [measure(folder, task, kind) for task in TASKS]
                    row[f"{name}_error"] = max(error for error, _ in errors)
                    row[f"{name}_psnr_db"] = round(min(db for _, db in errors), 1)
                print(row, flush=True)
                rows.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fold.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    lines = [
        "# Fold: largest error against the live router",
        "",
        "Made by `make fold-table` from `fold.json`. Error: relative, the largest over blocks and "
        "five tasks, evaluated in float64. PSNR: the whole folded UNet, the worst task.",
        "",
        "| checkpoint | N | error, fp32 weights | error, fp64 weights | PSNR fp32 | PSNR fp64 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['checkpoint']} | {r['experts']} | {r['fp32_error']:.1e} | {r['fp64_error']:.1e} "
        f"| {r['fp32_psnr_db']} | {r['fp64_psnr_db']} |"
        for r in rows
    ]
    (args.out / "fold.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
