"""Pictures of held-out cases to look at: input, PyTorch, artefacts, truth; a row a case."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.shapes import sampling, table
from benchmarks.shapes.cases import TASKS, Case, inputs
from benchmarks.shapes.shipping import SHIPPED
from benchmarks.shapes.world import WORLDS, World, draw
from mtu_export.bundle.images import to_image

_CELL, _GAP, _CAPTION, _HEAD = 96, 8, 250, 28
_INK, _PAPER, _NONE = (30, 30, 30), (255, 255, 255), (225, 225, 225)


def _tile(picture: Tensor | None) -> Image.Image:
    """One picture [3, side, side] at the cell's size, its pixels kept; grey where there is none."""
    if picture is None:
        return Image.new("RGB", (_CELL, _CELL), _NONE)
    return to_image(picture[None].numpy()).resize((_CELL, _CELL), Image.Resampling.NEAREST)


def sheet(
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Tensor | None]]],
    out: Path,
    blocks: int = 1,
) -> None:
    """Rows, each a caption and pictures [3, side, side], under headings, in blocks side by side."""
    font = ImageFont.load_default(14)
    width = _CAPTION + len(heads) * (_CELL + _GAP)
    length = math.ceil(len(rows) / blocks)
    canvas = Image.new("RGB", (blocks * width, _HEAD + length * (_CELL + _GAP)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for left in range(0, blocks * width, width):
        for number, head in enumerate(heads):
            pen.text((left + _CAPTION + number * (_CELL + _GAP), 6), head, _INK, font)
    for number, (caption, pictures) in enumerate(rows):
        block, place = divmod(number, length)
        left, top = block * width, _HEAD + place * (_CELL + _GAP)
        lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, 32)]
        pen.multiline_text((left + _GAP, top + 8), "\n".join(lines), _INK, font, spacing=4)
        for column, picture in enumerate(pictures):
            canvas.paste(_tile(picture), (left + _CAPTION + column * (_CELL + _GAP), top))
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out, optimize=True)


def _words(one: Case) -> str:
    return f"{one.task}\n{one.prompt or '(no prompt)'}"


def samples(size: str, root: Path, task: str, name: str, model: table.Sampler, count: int) -> Path:
    """A sheet of held-out cases of one task by one model: input, what is made, truth."""
    world = WORLDS[size]
    cases = table.held_out(world, task, count)
    out = root / "sheets" / f"{name}-{task}.png"
    truth = draw(world, [one.after for one in cases])
    sheet(
        ["input", name, "truth"],
        [
            (_words(one), [source, picture, true])
            for one, source, picture, true in zip(
                cases, _given(world, cases), model(cases), truth, strict=True
            )
        ],
        out,
    )
    return out


def _given(world: World, cases: Sequence[Case]) -> Sequence[Tensor | None]:
    images = inputs(world, cases)
    return [None] * len(cases) if images is None else list(images)


def compare(
    world: World,
    model: Path,
    bundles: Mapping[str, Path],
    tasks: Mapping[str, int],
    out: Path,
    blocks: int = 1,
) -> dict[str, dict[str, Tensor]]:
    """The first held-out cases of tasks: input, the model in PyTorch, its bundles, truth.

    Returns what was made by task and by "PyTorch" or bundle, [count, 3, side, side] each.
    """
    parts, rows, measured = sampling.Parts.of(model), [], {}
    for task, count in tasks.items():
        cases = table.held_out(world, task, count)
        columns_ = {"PyTorch": sampling.pictures(world, parts, sampling.live(model, task), cases)}
        columns_ |= {name: table.artefact(f, world, task)(cases) for name, f in bundles.items()}
        truth = draw(world, [one.after for one in cases])
        columns = [_given(world, cases), *columns_.values(), truth]
        rows += [(_words(cases[i]), [column[i] for column in columns]) for i in range(count)]
        measured[task] = columns_
    sheet(["input", "PyTorch", *bundles, "truth"], rows, out, blocks)
    return measured


def all_sheets(size: str, root: Path, count: int = 12) -> list[Path]:
    """Sheets of every task by the shipped model."""
    world, parts = WORLDS[size], sampling.Parts.of(root / SHIPPED)

    def made(task: str) -> table.Sampler:
        def pictures(cases: Sequence[Case]) -> Tensor:
            model = sampling.live(root / SHIPPED, task)
            return sampling.pictures(world, parts, model, cases)

        return pictures

    return [samples(size, root, task, "MTU N=4", made(task), count) for task in TASKS]
