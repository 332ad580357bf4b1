"""The table of a size as Markdown: means with their intervals, paired differences, the ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.shapes import checks
from benchmarks.shapes.cases import TASKS

MULTI = ("MTU N=1", "MTU N=4")
"""Models of several tasks, which single-task ones are compared with."""


def cells(by_measure: Mapping[str, Sequence[float]]) -> str:
    """Means with their intervals, one a measure, from one number a case."""
    return ", ".join(f"{name} {_cell(name, values)}" for name, values in by_measure.items())


def _cell(name: str, values: Sequence[float]) -> str:
    mean, low, high = checks.interval(torch.tensor(values), checks.is_share(name))
    if checks.is_share(name):
        return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{mean:.2f} dB ({low:.2f} to {high:.2f})"


def paired(exports: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Mean differences artefact less PyTorch over the same cases, with their intervals."""
    return {
        model: {
            task: {
                name: checks.difference(
                    torch.tensor(values) - torch.tensor(reference[task][name][: len(values)]),
                    checks.is_share(name),
                )
                for name, values in differences.items()
            }
            for task, differences in tasks.items()
            if task in reference
        }
        for model, tasks in exports.items()
    }


def _difference(name: str, values: Sequence[float]) -> str:
    scale, unit, digits = (100, "points", 1) if checks.is_share(name) else (1, "dB", 2)
    mean, low, high = (f"{scale * x:+.{digits}f}" for x in values)
    return f"{mean} {unit} ({low} to {high})"


def page(
    size: str,
    text: str,
    rows: Mapping[str, Any],
    exports: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    notes: Mapping[str, str],
) -> str:
    """The rows and the ladder as Markdown; ``notes`` stand below the tables of their tasks."""
    pictures = f"[pictures](shapes_{size}.png), [the routers' weights](shapes_{size}_router.png)"
    lines = [f"# The small world, size `{size}`", "", text, "", f"Beside it: {pictures}.", ""]
    reference = rows.get("MTU N=4", {})
    for task in TASKS:
        if task not in reference:
            continue
        names = list(reference[task])
        lines += [f"## {task}", "", "| model | " + " | ".join(names) + " |"]
        lines += ["|---|" + "---|" * len(names)]
        for model, by_task in rows.items():
            if task in by_task:
                cells = [_cell(name, by_task[task][name]) for name in names]
                lines.append(f"| {model} | " + " | ".join(cells) + " |")
        if task in notes:
            lines += ["", notes[task]]
        several = {model: by_task for model, by_task in rows.items() if model in MULTI}
        for head, pairs in (
            ("MTU less single-task, paired", paired(several, rows.get("single-task", {}))),
            ("artefact less PyTorch, paired", paired(exports, reference)),
        ):
            lines += ["", f"| {head} | " + " | ".join(names) + " |"]
            lines += ["|---|" + "---|" * len(names)]
            for model, by_task in pairs.items():
                if task in by_task:
                    cells = [_difference(name, by_task[task][name]) for name in names]
                    lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    if stages:
        lines += _ladder_page(stages)
    return "\n".join(lines)


def _ladder_page(
    stages: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> list[str]:
    lines = [
        "## The ladder",
        "",
        "dB (PSNR, the worst of the export's proofs): each part and the loop against PyTorch with "
        "the live router. An empty cell is a part that the task does not need.",
        "",
        "| artefact | task | " + " | ".join(_STAGES.values()) + " |",
        "|---" * (2 + len(_STAGES)) + "|",
    ]
    for model, tasks in stages.items():
        for task, by_stage in tasks.items():
            cells = [_stage(by_stage, name) for name in _STAGES]
            lines.append(f"| {model} | {task} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _stage(by_stage: Mapping[str, float | None], name: str) -> str:
    value = by_stage.get(name)
    return f"{value:.1f}" if value is not None else "not run" if name in by_stage else ""


_STAGES = {
    "text_encoder": "text encoder",
    "vae_encoder": "VAE encoder",
    "folded": "UNet folded",
    "unet": "UNet",
    "vae_decoder": "VAE decoder",
    "pipeline": "loop",
}
