"""Guidance scales of the world's tasks, chosen on the single-task models.

The paper's scales (text 7.5 for t2i) are those of SD 1.5. Here each task's are chosen on cases that
are neither trained on nor in the table; all rows of the table and the shipped model use them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shapes import checks, sampling
from benchmarks.shapes.cases import case
from benchmarks.shapes.stamps import PARTS, UNET, stamp
from benchmarks.shapes.world import WORLDS
from mtu_export.spec import Guidance, Task

_CASES = 64
_TEXT = (1.25, 1.5, 2.0, 3.0, 4.5, 7.5)
_IMAGE = (1.0, 1.25, 1.6, 2.2)


def grid(task: Task) -> list[Guidance]:
    """What is tried for a task."""
    if task.guidance.kind == "text":
        return [Guidance(kind="text", text=text) for text in _TEXT]
    if task.guidance.kind == "text_image":
        return [
            Guidance(kind="text_image", text=text, image=image)
            for text in _TEXT
            for image in _IMAGE
        ]
    return []


def choose(size: str, root: Path, single: Mapping[str, tuple[sampling.Denoiser, Task]]) -> None:
    """Write ``guidance.json`` of the size's home: the best scales and every score, by task."""
    path = root / "guidance.json"
    document: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    world, parts = WORLDS[size], sampling.Parts.of(root / "parts")
    for name, (denoise, task) in single.items():
        cases = [case(world, name, "valid", index) for index in range(_CASES)]
        files = [*(root / "parts" / part for part in PARTS), *(root / name / n for n in UNET)]
        of = stamp(files, _CASES)
        kept = document.get(name, {})
        tried = kept.get("tried", []) if kept.get("of") == of else []
        before = {(row["text"], row["image"]): row for row in tried}
        scores = []
        for scales in grid(task):
            row = before.get((scales.text, scales.image))
            if row is None:
                pictures = sampling.pictures(world, parts, (denoise, task), cases, scales)
                values = next(iter(checks.measures(world, cases, pictures).values()))
                row = {"text": scales.text, "image": scales.image, "score": values.mean().item()}
                print(f"{name}: {row}", flush=True)
            scores.append(row)
        if scores:
            best = middle_best(scores)
            scales = {key: best[key] for key in ("text", "image") if best[key] is not None}
            document[name] = {"kind": task.guidance.kind, **scales, "of": of, "tried": scores}
            path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def middle_best(scores: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the best score; of equals the middle one."""
    top = max(row["score"] for row in scores)
    equals = [row for row in scores if row["score"] == top]
    return equals[len(equals) // 2]


def chosen(root: Path, name: str) -> dict[str, Any]:
    """The scales that were chosen for a task; empty where there was nothing to choose."""
    row = dict(json.loads((root / "guidance.json").read_text("utf-8")).get(name, {}))
    return {key: row[key] for key in ("kind", "text", "image") if key in row}


def guided(task: Task, root: Path) -> Task:
    """The task with the scales that were chosen for it."""
    row = chosen(root, task.name)
    return replace(task, guidance=Guidance(**row)) if row else task
