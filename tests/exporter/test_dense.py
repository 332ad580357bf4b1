"""Dense bundles beside diffusers' own pipelines, to the last latent: ``campaigns.dense``."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from mtu_export.testing.campaigns import dense
from mtu_export.testing.campaigns.dense_cases import CASES, Case
from mtu_export.testing.campaigns.pipelines import compare

pytestmark = pytest.mark.slow
CORNERS = (
    "sd1-negative",
    "sd1-embedding-3",
    "sdxl-embedding-2",
    "sd1-clip-skip-negative",
    "sdxl-clip-skip",
    "taesd",
    "sd1-img2img-0.6",
    "sd2-v-zero-snr-euler",
    "sdxl-encoded-negative",
    "pix2pix-negative",
    "inpaint",
    "lcm",
    "turbo-euler-ancestral-4",
)
"""What stays where time is short; ``make dense`` runs all there are."""
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: diffusers cannot run a LoRA to compare with",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dense.Pairs:
    return dense.Pairs(tmp_path_factory.mktemp("dense"))


def _marked(case: Case) -> Any:
    marks = [] if case.name in CORNERS else [pytest.mark.exhaustive]
    return pytest.param(case, marks=[*marks, *([needs_peft] if case.lora else [])])


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", [_marked(case) for case in CASES], ids=str)
def test_the_loop_is_that_of_diffusers(pairs: dense.Pairs, case: Case) -> None:
    theirs, ours = pairs.make(case)
    compared = compare(theirs, ours)
    assert compared.latents_db >= dense.FLOOR_DB
    assert compared.image_db >= dense.FLOOR_DB
    assert theirs.image.std() > 0.05  # a picture, not one grey


def test_the_floor_tells_requests_apart(pairs: dense.Pairs) -> None:
    """No negative prompt, the empty one written out, another strength: all far below the floor."""
    case = named("sd1-negative")
    loop = pairs.loop(case)
    expected = dense.by_us(loop, case)
    without, empty = (replace(case, negative=text) for text in (None, ""))
    assert compare(expected, dense.by_us(loop, without)).latents_db < 60
    assert compare(dense.by_us(loop, without), dense.by_us(loop, empty)).latents_db > 110
    start = named("sd1-img2img-0.6")
    other = replace(start, strength=0.3)
    pictures = [dense.by_us(pairs.loop(each), each) for each in (start, other)]
    assert compare(*pictures).latents_db < 60
