"""The table of a size: every model and artefact on the same held-out cases, with 95 % intervals.

Rows that are done are kept under ``rows/`` of the size's home, one number a case and measure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import checks, guidance, sampling
from benchmarks.shapes.cases import TASKS, Case, case, inputs
from benchmarks.shapes.shipping import SHIPPED
from benchmarks.shapes.world import WORLDS, World, draw
from mtu_export import bundle, generate
from mtu_export.catalog import TASKS as TASK_PRESETS
from mtu_export.spec import Task

RESULTS = Path(__file__).parent.parent / "results"
TORCH_CASES, ARTEFACT_CASES = 500, 100
ARTEFACTS = [
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("executorch", "fp32"),
    ("executorch", "int8"),
    ("coreml", "fp32"),
    ("coreml", "fp16"),
    ("coreml", "int8"),
]
Made = Callable[[Sequence[Case]], Tensor]


def held_out(world: World, task: str, count: int) -> list[Case]:
    """Cases with combinations that no model was trained on."""
    return [case(world, task, "test", index) for index in range(count)]


def row(home: Path, name: str, world: World, task: str, count: int, made: Made) -> dict[str, Any]:
    """The numbers of one row and task; taken from its file where that is there."""
    path = home / "rows" / f"{name.replace(' ', '-')}-{task}.json"
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    cases = held_out(world, task, count)
    found = {key: v.tolist() for key, v in checks.measures(world, cases, made(cases)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), "utf-8")
    print(f"{name}, {task}: {_cells(found)}", flush=True)
    return found


def torch_rows(size: str, home: Path) -> dict[str, dict[str, Any]]:
    """What the models of a size do in PyTorch, by row and task."""
    world, parts = WORLDS[size], sampling.Parts.of(home / SHIPPED)
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, task: str, made: Made) -> None:
        found.setdefault(name, {})[task] = row(home, name, world, task, TORCH_CASES, made)

    def through(cases: Sequence[Case]) -> Tensor:
        with torch.no_grad():
            truth = draw(world, [one.after for one in cases])
            return torch.cat([parts.decoded(parts.latents(some)) for some in truth.split(100)])

    add("bicubic", "sr", lambda cases: checks.bicubic(world, cases))
    add("input unchanged", "inpaint", lambda cases: _given(world, cases))
    for task in TASKS:
        add("truth through the VAE", task, through)
        for name, load in (
            ("single-task", lambda t: single(home, t)),
            ("MTU N=1", lambda t: sampling.live(home / "mtu-n1", t)),
            ("MTU N=4", lambda t: sampling.live(home / SHIPPED, t)),
            ("MTU N=4 folded", lambda t: sampling.folded(home / SHIPPED, t)),
        ):
            add(name, task, _sampled(home, world, parts, task, load))
    return found


def _sampled(
    home: Path, world: World, parts: sampling.Parts, task: str, load: Callable[[str], Any]
) -> Made:
    def made(cases: Sequence[Case]) -> Tensor:
        denoise, said = load(task)
        chosen = guidance.guided(said, home)
        return sampling.pictures(world, parts, (denoise, chosen), cases)

    return made


def single(home: Path, task: str) -> tuple[sampling.Denoiser, Task]:
    """The model that was trained for one task alone."""
    if task == "t2i":
        return sampling.dense(home / "t2i", TASK_PRESETS["t2i"]["sd"])
    return sampling.live(home / task, task)


def _given(world: World, cases: Sequence[Case]) -> Tensor:
    found = inputs(world, cases)
    assert found is not None
    return found


# ----------------------------------------------------------------------------------- artefacts


def exported(home: Path, target: str, scheme: str) -> Path:
    """The bundle of all tasks of the model, exported where it is not there."""
    out = home / "bundles" / f"{target}-{scheme}"
    if not (out / "manifest.json").is_file():
        words = [target, "--scheme", scheme, "--all-tasks", "-m", str(home / SHIPPED)]
        subprocess.run([sys.executable, "-m", "mtu_export", *words, "-o", str(out)], check=True)
    return out


def artefact(folder: Path, world: World, task: str) -> Made:
    """Pictures of a bundle in its own runtime; case i has the noise of number i, as in PyTorch."""

    def made(cases: Sequence[Case]) -> Tensor:
        loop, given, found = generate.loop(bundle.read(folder), task), inputs(world, cases), []
        for number, one in enumerate(cases):
            request = generate.Request(
                prompt=one.prompt if loop.task.prompt is None else loop.task.prompt,
                noise=generate.noise((1, *loop.latent), number),
                steps=loop.task.steps,
                image=None if given is None else given[number : number + 1].numpy(),
            )
            _, picture = generate.picture(loop, request)
            found.append(torch.from_numpy(picture).clamp(-1, 1))
        return torch.cat(found)

    return made


def artefact_rows(size: str, home: Path) -> dict[str, dict[str, Any]]:
    """What the artefacts do, by row and task."""
    found: dict[str, dict[str, Any]] = {}
    for target, scheme in ARTEFACTS:
        name = f"{target} {scheme}"
        for task in TASKS:
            made = artefact(exported(home, target, scheme), WORLDS[size], task)
            numbers = row(home, name, WORLDS[size], task, ARTEFACT_CASES, made)
            found.setdefault(name, {})[task] = numbers
    return found


# ---------------------------------------------------------------------------------------- page


def _cells(found: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{name} {_cell(name, values)}" for name, values in found.items())


def _cell(name: str, values: Sequence[float]) -> str:
    mean, low, high = checks.interval(torch.tensor(values), checks.is_share(name))
    if checks.is_share(name):
        return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{mean:.2f} dB ({low:.2f} to {high:.2f})"


def _difference(name: str, one: Sequence[float], other: Sequence[float]) -> str:
    count = len(one)
    mean, low, high = checks.interval(
        torch.tensor(one) - torch.tensor(list(other)[:count]), share=False
    )
    scale, unit, digits = (100, "points", 1) if checks.is_share(name) else (1, "dB", 2)
    mean, low, high = (f"{scale * x:+.{digits}f}" for x in (mean, low, high))
    return f"{mean} {unit} ({low} to {high})"


def page(size: str, rows: Mapping[str, Any], exports: Mapping[str, Any], said: str) -> str:
    """The rows as Markdown."""
    lines = [f"# The small world, size `{size}`", "", said, ""]
    reference = rows["MTU N=4"]
    for task in TASKS:
        names = list(reference[task])
        lines += [f"## {task}", "", "| model | " + " | ".join(names) + " |"]
        lines += ["|---|" + "---|" * len(names)]
        for model, found in rows.items():
            if task in found:
                cells = [_cell(name, found[task][name]) for name in names]
                lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines += ["", "| artefact less PyTorch, paired | " + " | ".join(names) + " |"]
        lines += ["|---|" + "---|" * len(names)]
        for model, found in exports.items():
            cells = [_difference(n, found[task][n], reference[task][n]) for n in names]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def make(size: str, home: Path) -> None:
    """Run what is not done, write ``results/shapes_SIZE.{json,md}``."""
    rows, exports = torch_rows(size, home), artefact_rows(size, home)
    said = (
        f"Made by `python -m benchmarks.shapes {size}`: {TORCH_CASES} held-out cases a task in "
        f"PyTorch, the first {ARTEFACT_CASES} of them for artefacts, each in its own runtime (Core "
        "ML: the evaluator of saved packages); every row from the same noise. 95 % intervals."
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"shapes_{size}.json").write_text(
        json.dumps({"torch": _means(rows), "artefacts": _means(exports)}, indent=1) + "\n", "utf-8"
    )
    (RESULTS / f"shapes_{size}.md").write_text(page(size, rows, exports, said), "utf-8")


def _means(rows: Mapping[str, Any]) -> dict[str, Any]:
    return {
        model: {
            task: {
                name: [
                    round(x, 4)
                    for x in checks.interval(torch.tensor(values), checks.is_share(name))
                ]
                for name, values in found.items()
            }
            for task, found in tasks.items()
        }
        for model, tasks in rows.items()
    }
