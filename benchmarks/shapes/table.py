"""The table of a size: every model and artefact on the same held-out cases, with 95 % intervals.

Rows that are done are kept under ``rows/`` of the size's home, one number a case and measure. Rows
and bundles of other weights or scales have other names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import checks, guidance, page, sampling, stamps
from benchmarks.shapes.cases import TASKS, Case, case, inputs
from benchmarks.shapes.shipping import SHIPPED, gates_said, read_gates
from benchmarks.shapes.stamps import PARTS, UNET
from benchmarks.shapes.world import WORLDS, World, draw, is_fresh
from mtu_export import bundle
from mtu_export.bundle import runner, sampler
from mtu_export.bundle.evaluation import Request
from mtu_export.models.mtu.presets import TASKS as TASK_PRESETS
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
Sampler = Callable[[Sequence[Case]], Tensor]


def held_out(world: World, task: str, count: int) -> list[Case]:
    """Cases with combinations that no model was trained on."""
    return [case(world, task, "test", index) for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model or artefact on the cases of one task; ``of`` changes with what it depends on."""

    name: str
    task: str
    count: int
    sample: Sampler
    of: str
    exported: bool = False

    def kept(self, root: Path) -> Path:
        """Where its numbers lie."""
        names = [*self.name.split(), self.task, str(self.count), self.of]
        return root / "rows" / f"{'-'.join(names)}.json"


def stamp(root: Path, folder: str, task: str = "") -> str:
    """What changes with a model's weights, its parts' or its task's scales."""
    files = [root / SHIPPED / name for name in PARTS] + [root / folder / name for name in UNET]
    return stamps.stamp(files, guidance.chosen(root, task) if task else {})


def torch_rows(size: str, root: Path) -> list[Row]:
    """The models of a size in PyTorch, as far as they are trained, and what they are to beat."""
    world, parts = WORLDS[size], sampling.Parts.of(root / SHIPPED)

    def through(cases: Sequence[Case]) -> Tensor:
        with torch.no_grad():
            truth = draw(world, [one.after for one in cases])
            return torch.cat([parts.decoded(parts.latents(some)) for some in truth.split(100)])

    entries: list[tuple[str, str, Sampler, str]] = [
        ("bicubic", "sr", lambda cases: checks.bicubic(world, cases), size),
        ("input unchanged", "inpaint", lambda cases: _given(world, cases), size),
        ("wiped", "inpaint", lambda cases: wiped(world, cases), size),
        *(("truth through the VAE", task, through, stamp(root, SHIPPED)) for task in TASKS),
    ]
    models: list[tuple[str, str, Callable[[str], Any]]] = [
        ("single-task", "", lambda task: single(root, task)),
        ("MTU N=1", "mtu-n1", lambda task: sampling.live(root / "mtu-n1", task)),
        ("MTU N=4", SHIPPED, lambda task: sampling.live(root / SHIPPED, task)),
        ("MTU N=4 folded", SHIPPED, lambda task: sampling.folded(root / SHIPPED, task)),
    ]
    for name, folder, load in models:
        for task in TASKS:
            if (root / (folder or task) / "model_index.json").is_file():
                sample = _sampled(root, world, parts, task, load)
                entries.append((name, task, sample, stamp(root, folder or task, task)))
    return [
        Row(name=n, task=t, count=TORCH_CASES, sample=sample, of=of) for n, t, sample, of in entries
    ]


def _sampled(
    root: Path, world: World, parts: sampling.Parts, task: str, load: Callable[[str], Any]
) -> Sampler:
    def sample(cases: Sequence[Case]) -> Tensor:
        denoise, manifest = load(task)
        chosen = guidance.guided(manifest, root)
        return sampling.pictures(world, parts, (denoise, chosen), cases)

    return sample


def single(root: Path, task: str) -> tuple[sampling.Denoiser, Task]:
    """The model that was trained for one task alone."""
    if task == "t2i":
        return sampling.dense(root / "t2i", TASK_PRESETS["t2i"]["sd"])
    return sampling.live(root / task, task)


def _given(world: World, cases: Sequence[Case]) -> Tensor:
    images = inputs(world, cases)
    assert images is not None
    return images


def wiped(world: World, cases: Sequence[Case]) -> Tensor:
    """Everything removed, whatever the prompt says: right where nothing is to stay."""
    return draw(world, [replace(one.after, things=()) for one in cases])


# ----------------------------------------------------------------------------------- artefacts


def _folder(root: Path, target: str, scheme: str) -> Path:
    return root / "bundles" / f"{target}-{scheme}-{stamp(root, SHIPPED)}"


def exported(root: Path, target: str, scheme: str) -> Path:
    """The bundle of all tasks of the model, exported where it is not there."""
    out = _folder(root, target, scheme)
    if not (out / "manifest.json").is_file():
        arguments = [target, "--scheme", scheme, "--all-tasks", "-m", str(root / SHIPPED)]
        subprocess.run([sys.executable, "-m", "mtu_export", *arguments, "-o", str(out)], check=True)
    return out


def artefact(folder: Path, world: World, task: str) -> Sampler:
    """Pictures of a bundle in its own runtime; case i has the noise of number i, as in PyTorch."""

    def sample(cases: Sequence[Case]) -> Tensor:
        loop, arguments = runner.open_loop(bundle.read(folder), task), inputs(world, cases)
        assert loop.latent is not None
        opened = []
        for number, one in enumerate(cases):
            own = arguments is not None
            request = Request(
                prompt=one.prompt if loop.task.prompt is None else loop.task.prompt,
                noise=sampler.noise((1, *loop.latent), number),
                steps=loop.task.steps,
                pictures={"image": arguments[number : number + 1].numpy()} if own else {},
            )
            _, picture = runner.generate(loop, request)
            opened.append(torch.from_numpy(picture).clamp(-1, 1))
        return torch.cat(opened)

    return sample


def artefact_rows(size: str, root: Path) -> list[Row]:
    """The shipped model's bundles, each exported when its first row is made."""

    def sample(target: str, scheme: str, task: str) -> Sampler:
        return lambda cases: artefact(exported(root, target, scheme), WORLDS[size], task)(cases)

    return [
        Row(
            name=f"{target} {scheme}",
            task=task,
            count=ARTEFACT_CASES,
            sample=sample(target, scheme, task),
            of=stamp(root, SHIPPED),
            exported=True,
        )
        for target, scheme in ARTEFACTS
        for task in TASKS
    ]


def ladder(root: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """dB by artefact, task and stage or part, from the proofs of the bundles."""
    stages: dict[str, dict[str, dict[str, float | None]]] = {}
    for target, scheme in ARTEFACTS:
        folder = _folder(root, target, scheme)
        if (folder / "manifest.json").is_file():
            tasks = stages.setdefault(f"{target} {scheme}", {})
            for one in bundle.read(folder).proof:
                column = "folded" if one.stage == "folded" else one.part
                tasks.setdefault(one.task, {})[column] = one.psnr_db
    return stages


def _changed(world: World) -> str:
    """In how many edits it is the changed thing that no model was trained on."""
    count = 0
    for one in held_out(world, "edit", TORCH_CASES):
        before = one.before.things if one.before else ()
        count += any(is_fresh(world, thing) for thing in one.after.things if thing not in before)
    return (
        f"What is added or changed is of a combination that was never trained on in {count} of "
        f"the {TORCH_CASES} cases; in the others one that stays is."
    )


def _left(world: World) -> str:
    """In how many removals nothing is to stay, and what dB say of them."""
    held = held_out(world, "inpaint", TORCH_CASES)
    count = sum(not one.after.things for one in held)
    return (
        f"Nothing is to stay in {count} of the {TORCH_CASES} cases: there a picture that is wiped "
        f"is right, and means of PSNR are high. {checks.MOST_DB:.1f} dB is the limit of the "
        "measure, which equal pictures have."
    )


def make(size: str, root: Path, rows: str = "") -> None:
    """Run the rows that are not done and whose name has ``rows`` in it, then write the page.

    The page has the rows that are done: ``results/shapes_SIZE.{json,md}``.
    """
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for row in [*torch_rows(size, root), *artefact_rows(size, root)]:
        path = row.kept(root)
        if not _numbers(row, path) and rows in row.name:
            _measure(WORLDS[size], row, path)
        if numbers := _numbers(row, path):
            found[row.exported].setdefault(row.name, {})[row.task] = numbers
    note = (
        f"Sampler by `python -m benchmarks.shapes {size}`: {TORCH_CASES} held-out cases a task in "
        f"PyTorch, the first {ARTEFACT_CASES} of them for artefacts, each in its own runtime (Core "
        "ML: the evaluator of saved packages); every row from the same noise. 95 % intervals. "
        "Every model begins with the dense T2I UNet, which is the single-task model of t2i; each "
        "other task has the same number of samples in its single-task model as in MTU, where t2i "
        "is trained on. Not as in the paper: Min-SNR weights, value rows times N at the start, and "
        "a learning rate of the routers' own."
    )
    gates = read_gates(root)
    note += f" Gates: {gates_said(gates)}."
    RESULTS.mkdir(exist_ok=True)
    several = {model: tasks for model, tasks in found[0].items() if model in page.MULTI}
    figures = {
        "cases": {"torch": TORCH_CASES, "artefacts": ARTEFACT_CASES},
        "torch": _means(found[0]),
        "artefacts": _means({**_first(found[0]), **found[1]}),
        "multi": page.paired(several, found[0].get("single-task", {})),
        "paired": page.paired(found[1], found[0].get("MTU N=4", {})),
        "ladder": ladder(root),
        "gates": gates,
    }
    text = json.dumps(figures, indent=1)
    (RESULTS / f"shapes_{size}.json").write_text(text + "\n", "utf-8")
    world = WORLDS[size]
    notes = {"edit": _changed(world), "inpaint": _left(world)}
    written = page.page(size, note, *found, figures["ladder"], notes)
    (RESULTS / f"shapes_{size}.md").write_text(written, "utf-8")


def _first(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The model in PyTorch on the artefacts' cases."""
    return {
        "MTU N=4": {
            task: {name: values[:ARTEFACT_CASES] for name, values in found.items()}
            for task, found in rows.get("MTU N=4", {}).items()
        }
    }


def _numbers(row: Row, path: Path) -> dict[str, Any]:
    """What is kept of a row; nothing where its measures are not today's."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return kept if tuple(kept) == checks.MEASURES[row.task] else {}


def _measure(world: World, row: Row, path: Path) -> None:
    cases = held_out(world, row.task, row.count)
    measured = checks.measures(world, cases, row.sample(cases))
    numbers = {key: values.tolist() for key, values in measured.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    private = path.with_suffix(".partial")
    private.write_text(json.dumps(numbers), "utf-8")
    private.replace(path)
    print(f"{row.name}, {row.task}: {page.cells(numbers)}", flush=True)


def _means(rows: Mapping[str, Any]) -> dict[str, Any]:
    return {
        model: {
            task: {
                name: [
                    round(x, 6)
                    for x in checks.interval(torch.tensor(values), checks.is_share(name))
                ]
                for name, values in by_task.items()
            }
            for task, by_task in tasks.items()
        }
        for model, tasks in rows.items()
    }
