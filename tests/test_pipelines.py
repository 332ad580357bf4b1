"""Whole loops beside diffusers' pipelines, after 20 steps; ``tests.pipelines`` has the cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import pipelines

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipelines")]


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
