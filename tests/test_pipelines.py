"""Whole loops beside diffusers' pipelines, after 20 steps; ``tests.pipelines`` has the cases."""

from __future__ import annotations

import importlib.util

import pytest

from mtu_export.verify import psnr
from tests import pipelines

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipelines")]
LORA_FLOOR_DB = 90.0
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: diffusers cannot run a LoRA to compare with",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> pipelines.Pairs:
    return pipelines.Pairs(tmp_path_factory.mktemp("pipelines"))


@pytest.mark.parametrize("case", pipelines.CASES, ids=str)
def test_the_loop_is_that_of_diffusers(pairs: pipelines.Pairs, case: pipelines.Case) -> None:
    theirs, ours = pairs.make(case)
    found = pipelines.compare(theirs, ours)
    assert found.latents_db >= pipelines.FLOOR_DB
    assert found.image_db >= pipelines.FLOOR_DB
    assert theirs.image.std() > 0.1  # a picture, not one grey


@needs_peft
@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_folded_lora_is_that_of_diffusers(pairs: pipelines.Pairs, pipeline: str) -> None:
    """UNet and text encoders at once, through a whole bundle."""
    case = pipelines.Case(task="t2i", pipeline=pipeline, scheduler="ddim")
    plain = pipelines.pass_by_diffusers(pairs.pipe(case))
    pipe, loop = pairs.with_lora(case, 0.7)
    wanted = pipelines.pass_by_diffusers(pipe)
    assert psnr(plain, wanted) < 40  # it does something
    assert psnr(wanted, pipelines.pass_by_us(loop)) >= LORA_FLOOR_DB
    theirs = pipelines.by_diffusers(pipe, case, loop.task.guidance)
    table = pipelines.with_table(loop, case, pairs.folder(case), pairs.home / "lora-scheduler")
    found = pipelines.compare(theirs, pipelines.by_us(table))
    assert found.latents_db >= pipelines.FLOOR_DB
    assert found.image_db >= pipelines.FLOOR_DB
