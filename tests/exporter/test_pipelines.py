"""Whole loops beside diffusers' pipelines, after 20 steps: ``campaigns.pipelines``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mtu_export.spec import Guidance
from mtu_export.testing.campaigns import pipelines, pipelines_lora

pytestmark = pytest.mark.slow
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: diffusers cannot run a LoRA to compare with",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> pipelines.Pairs:
    return pipelines.Pairs(tmp_path_factory.mktemp("pipelines"), "atom")


def _few() -> list[Any]:
    """Every scheduler once, and one case a task, pipeline and prediction type.

    One of each pipeline stays where time is short; ``make pipelines`` runs all there are.
    """
    cases: dict[object, pipelines.Case] = {}
    for case in pipelines.CASES:
        stock = case.pipeline == "StableDiffusionPipeline"
        key = (case.task, case.pipeline, case.prediction, case.scheduler if stock else None)
        cases.setdefault(key, case)
    corners = {case.pipeline: case for case in reversed(cases.values())}.values()
    return [
        pytest.param(case, marks=() if case in corners else pytest.mark.exhaustive)
        for case in cases.values()
    ]


@pytest.mark.parametrize("case", _few(), ids=str)
def test_the_loop_is_that_of_diffusers(pairs: pipelines.Pairs, case: pipelines.Case) -> None:
    theirs, ours = pairs.make(case)
    compared = pipelines.compare(theirs, ours)
    assert compared.latents_db >= pipelines.FLOOR_DB
    assert compared.image_db >= pipelines.FLOOR_DB
    assert theirs.image.std() > 0.1  # a picture, not one grey


@pytest.mark.parametrize("case", pipelines.CASES[:1], ids=str)
def test_the_floor_tells_prompts_and_guidance_apart(tmp_path: Path, case: pipelines.Case) -> None:
    """One other word, or a scale of 7.4 for 7.5, is below the floor that the cases keep.

    With ``tiny``: what an ``atom`` makes hardly depends on the prompt.
    """
    loop = pipelines.Pairs(tmp_path, "tiny").loop(case)
    expected = pipelines.by_us(loop)
    other = pipelines.by_us(loop, pipelines.PROMPT.replace("table", "chair"))
    assert pipelines.compare(expected, other).latents_db < 45
    assert loop.task.scales == Guidance(kind="text", text=7.5)
    weaker = pipelines.by_us(loop, guidance=Guidance(kind="text", text=7.4))
    compared = pipelines.compare(expected, weaker)
    assert compared.latents_db < pipelines.FLOOR_DB


@needs_peft
@pytest.mark.parametrize(
    "pipeline",
    [
        "StableDiffusionPipeline",
        pytest.param("StableDiffusionXLPipeline", marks=pytest.mark.exhaustive),
    ],
)
def test_a_folded_lora_is_that_of_diffusers(pairs: pipelines.Pairs, pipeline: str) -> None:
    """UNet and text encoders at once, through a whole bundle."""
    measured = pipelines_lora.measure(pairs, pipeline)
    assert measured.without_db < 40  # it does something
    assert measured.pass_db >= pipelines_lora.FLOOR_DB
    assert measured.loop.latents_db >= pipelines.FLOOR_DB
    assert measured.loop.image_db >= pipelines.FLOOR_DB
