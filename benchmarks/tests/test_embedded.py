"""The embedded checkpoint: what it weighs, what its card says, and that it can do its tasks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.shapes import checks, sampling, table
from benchmarks.shapes.world import WORLDS
from mtu_export import checkpoint, exporter
from mtu_export.checkpoint import EMBEDDED
from mtu_export.exporter import options
from mtu_export.models.mtu.model import MTUModel

WORLD = WORLDS["small"]
LIMIT = 24_000_000


def test_it_is_small_and_has_a_card() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ""}
    for part, stem in (
        ("unet", checkpoint.WEIGHTS),
        ("vae", checkpoint.WEIGHTS),
        ("text_encoder", checkpoint.TEXT_WEIGHTS),
    ):
        kinds = {header.dtype for header in checkpoint.headers(EMBEDDED / part, stem).values()}
        assert kinds <= {"F16", "I64"}
    card = (EMBEDDED / "README.md").read_text("utf-8")
    for heading in (
        "Seed",
        "Hardware",
        "hours",
        "Data",
        "| t2i |",
        "| edit |",
        "| sr |",
        "| inpaint",
    ):
        assert heading in card


def test_experts_are_mixed_by_task() -> None:
    model = MTUModel(EMBEDDED)
    assert [task.name for task in model.tasks] == ["t2i", "edit", "sr", "inpaint"]
    for name, weights in model.expert_weights().items():
        assert all(len(task_weights) == 4 for task_weights in weights)
        for one, other in itertools.combinations(weights, 2):
            apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
            assert apart > 1e-3, f"{name}: two tasks have the same experts"


def _mean(task: str, count: int, sample: table.Sampler | None = None) -> dict[str, float]:
    """Means of measures over held-out cases; by the live router where no ``made`` is given."""
    cases = table.held_out(WORLD, task, count)
    if sample is None:
        parts, model = sampling.Parts.of(EMBEDDED), sampling.live(EMBEDDED, task)
        pictures = sampling.pictures(WORLD, parts, model, cases)
    else:
        pictures = sample(cases)
    measured = checks.measures(WORLD, cases, pictures)
    return {name: values.mean().item() for name, values in measured.items()}


@pytest.mark.slow
def test_it_does_its_tasks_on_combinations_it_never_saw() -> None:
    assert _mean("t2i", 24)["all right"] >= 0.8
    assert _mean("edit", 24)["done"] >= 0.4
    bicubic = _mean("sr", 12, lambda cases: checks.bicubic(WORLD, cases))["PSNR"]
    assert _mean("sr", 12)["PSNR"] >= bicubic + 2
    removed = _mean("inpaint", 24)
    wiped = _mean("inpaint", 24, lambda cases: table.wiped(WORLD, cases))
    assert removed["removed, rest unchanged"] >= 0.5 > wiped["removed, rest unchanged"]
    assert min(removed["PSNR inside"], removed["PSNR outside"]) >= 26


@pytest.mark.slow
def test_int8_removes_as_pytorch_does(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    exporter.export(options.resolve(target="onnx", task="inpaint", scheme="int8", out=out))
    int8 = _mean("inpaint", 4, table.artefact(out, WORLD, "inpaint"))
    live = _mean("inpaint", 4)
    assert abs(int8["PSNR inside"] - live["PSNR inside"]) < 1
