"""How near the loop over each table is to diffusers' own loop, both in float32.

    python benchmarks/schedulers.py [--out benchmarks/results]

For each scheduler, prediction type and step count: passes, history, and the PSNR of the worst
pass and of the result, against the scheduler's own loop with the same nonlinear stand-in for the
denoiser and the same noise [1, 4, 32, 32], of the start and of each pass. Then the schedulers of
distilled checkpoints at 1 to 8 steps, and every other scheduler class of diffusers, at 20 steps
with the config of Stable Diffusion 1.x: a table, or the line that refuses it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from mtu_export.bundle import sampler
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import schedule
from mtu_export.spec import MtuExportError, Pass
from mtu_export.spec.catalog import BAKED_STEPS

OFFERED = ("ddim", "euler", "dpm++2m", "dpm++2m-karras", "pndm", "unipc")
PREDICTIONS = ("epsilon", "v_prediction")
LATENT = (1, 4, 32, 32)
TRAILING = {"timestep_spacing": "trailing"}
FEW = {
    "LCMScheduler": {},
    "TCDScheduler": {},
    "EulerDiscreteScheduler": TRAILING,
    "EulerAncestralDiscreteScheduler": TRAILING,
    "DDIMScheduler": {**TRAILING, "steps_offset": 0},
}
"""Of LCM, TCD, Turbo, Lightning and Hyper checkpoints."""
SDE = {"algorithm_type": "sde-dpmsolver++"}
SOLVERS_WITH_NOISE = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")


def fake(scaled: torch.Tensor, timestep: float) -> torch.Tensor:
    """A nonlinear stand-in for a UNet, of slope 1: mixes neighbours and depends on time."""
    near = torch.roll(scaled, 1, -1) - 0.5 * torch.roll(scaled, 1, 1)
    return 0.8 * torch.sin(scaled + timestep / 300) + 0.3 * torch.tanh(near) * torch.cos(scaled)


def by_diffusers(scheduler: Any, steps: int, noise: np.ndarray) -> Iterator[np.ndarray]:
    """Latents after each pass of a pipeline's loop that draws ``noise`` [1 + P, C, h, w]."""
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise[:1]) * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for index, t in enumerate(scheduler.timesteps):
        own = torch.from_numpy(noise[index + 1 : index + 2])
        output = fake(scale(x, t), float(t))
        with mock.patch.object(torch, "randn", lambda *_, own=own, **__: own.clone()):
            x = scheduler.step(output, t, x, return_dict=False)[0]
        yield x.numpy().copy()


def measure(scheduler: Any, steps: int) -> dict[str, Any]:
    """One row; raises an error of ours where the scheduler is no table."""
    table = schedule.table(scheduler, steps)
    noise = sampler.noise((1 + len(table.passes), *LATENT[1:]), 0)
    expected = list(by_diffusers(scheduler, steps, noise))

    def ask(x: np.ndarray, step: Pass) -> np.ndarray:
        return fake(torch.from_numpy(x), step.timestep).numpy()

    latents = list(sampler.latents(table, noise, ask))
    db = [psnr(a, b) for a, b in zip(expected, latents, strict=True)]
    return {
        "passes": len(table.passes),
        "history": table.depth,
        "noise": sum(step.noise != 0 for step in table.passes),
        "worst_db": round(min(db), 1),
        "last_db": round(db[-1], 1),
    }


def starts_from_pictures(scheduler: Any) -> bool:
    """Whether the loop may start inside the schedule, from a picture."""
    try:
        return schedule.table(scheduler, 20, 0.5).start_picture > 0
    except MtuExportError:
        return False


def with_settings(name: str, **settings: Any) -> Any:
    """The scheduler with the config of Stable Diffusion 1.x and these settings."""
    scheduler = schedule.load(None, name)
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    return type(scheduler).from_config({**config, **settings})


def few() -> Iterator[dict[str, Any]]:
    """The schedulers of distilled checkpoints, at their step counts."""
    for name, settings in FEW.items():
        for steps in (1, 2, 4, 8):
            head = {"scheduler": name, "settings": settings, "steps": steps}
            yield {**head, **measure(with_settings(name, **settings), steps)}


def others() -> Iterator[dict[str, Any]]:
    """The scheduler classes of diffusers that are not offered by name, and solvers with noise."""
    for name in sorted(dir(diffusers.schedulers)):
        if name.endswith("Scheduler") and name not in schedule.NAMES:
            row: dict[str, Any] = {"scheduler": name, "steps": 20, "refused": None}
            try:
                scheduler = schedule.load(None, name)
                row |= {**measure(scheduler, 20), "picture": starts_from_pictures(scheduler)}
            except MtuExportError as error:
                row["refused"] = str(error)
            yield row
        if name in SOLVERS_WITH_NOISE:
            scheduler = with_settings(name, **SDE)
            row = {"scheduler": f"{name}, sde-dpmsolver++", "steps": 20, "refused": None}
            yield {**row, **measure(scheduler, 20), "picture": starts_from_pictures(scheduler)}


def page(
    rows: list[dict[str, Any]], distilled: list[dict[str, Any]], rest: list[dict[str, Any]]
) -> str:
    """The table in Markdown."""
    worst = min(rows, key=lambda row: row["worst_db"])
    lines = [
        "# Loop over a table against diffusers' own loop",
        "",
        f"Made by `make schedulers` from `schedulers.json` (diffusers {diffusers.__version__}, "
        f"torch {torch.__version__}, {platform.machine()}). Both sides in float32 with a nonlinear "
        "stand-in for the denoiser. PSNR = 20·log10(max|ref| / rmse): of the worst pass, and of "
        "the result.",
        "",
        f"The worst of all: **{worst['worst_db']} dB** ({worst['scheduler']}, "
        f"{worst['prediction']}, {worst['steps']} steps).",
        "",
        "| scheduler | prediction | steps | passes | history | worst pass | result |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['scheduler']} | {r['prediction']} | {r['steps']} | {r['passes']} | {r['history']} "
        f"| {r['worst_db']} dB | {r['last_db']} dB |"
        for r in rows
    ]
    lines += [
        "",
        "## Few steps",
        "",
        "Of LCM, TCD, Turbo, Lightning and Hyper checkpoints; TCD with the eta of its step, 0.3. "
        "Noise: passes that add fresh noise.",
        "",
        "| scheduler | settings | steps | noise | worst pass | result |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['scheduler']} | {', '.join(f'{k}: {v}' for k, v in r['settings'].items())} "
        f"| {r['steps']} | {r['noise']} | {r['worst_db']} dB | {r['last_db']} dB |"
        for r in distilled
    ]
    lines += [
        "",
        "## Other scheduler classes that a checkpoint may name",
        "",
        "20 steps, config of Stable Diffusion 1.x. A class is taken if its step is a table: that "
        "says that the loop is diffusers' own, not that the class suits a model (the inverse ones "
        "go from a picture to noise; flow matching wants a model that predicts velocities). Noise: "
        "passes that add fresh noise. img2img: the loop may start from a picture. "
        "300 dB is bit for bit equal: that class itself sums in float64.",
        "",
        "| scheduler | passes | history | noise | img2img | worst pass | refused because |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['scheduler']} | | | | | | {r['refused'].replace('|', '/')} |"
        if r["refused"]
        else f"| {r['scheduler']} | {r['passes']} | {r['history']} | {r['noise'] or ''} "
        f"| {'yes' if r['picture'] else ''} | {r['worst_db']} dB | |"
        for r in rest
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row, then write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in OFFERED:
        for prediction in PREDICTIONS:
            scheduler = with_settings(name, prediction_type=prediction)
            for steps in BAKED_STEPS:
                head = {"scheduler": name, "prediction": prediction, "steps": steps}
                rows.append({**head, **measure(scheduler, steps)})
                print(rows[-1], flush=True)
    distilled, rest = list(few()), list(others())
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    document = {"versions": versions, "offered": rows, "few": distilled, "others": rest}
    (args.out / "schedulers.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (args.out / "schedulers.md").write_text(page(rows, distilled, rest), "utf-8")


if __name__ == "__main__":
    main()
