"""The cache of latents: the same batches as without, resumed shard by shard, never mixed up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtu_export import training
from mtu_export.spec import CheckpointError, PlanError, ResourceError
from mtu_export.training import latents, state
from mtu_export.training.data import Sample
from tests.training.world import World, four, recipe, rows

CACHED = {"cache_latents": True, "steps": 1}


@pytest.mark.slow
def test_a_cached_run_equals_one_without(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "SHARD", 3)
    for name, options in (
        ("live", {}),
        ("cached", {"cache_latents": True}),
        ("half", {"cache_latents": True, "latents_dtype": "fp16"}),
    ):
        training.train(recipe(pipeline, tmp_path / name, steps=1, **options), World())
    assert (
        len(list((tmp_path / "cached" / "state" / "latents" / "fill").glob("*.safetensors"))) == 2
    )
    live, cached, half = (rows(tmp_path / name) for name in ("live", "cached", "half"))
    for one, two, three in zip(live, cached, half, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-5)
        assert float(one["loss"]) == pytest.approx(float(three["loss"]), rel=5e-3)


class Counted(World):
    """A world that counts what is read, and fails when it has had enough."""

    def __init__(self, most: int) -> None:
        super().__init__(("t2i", "edit", "sr", "inpaint"))
        self.left = most

    def __getitem__(self, index: int) -> Sample:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.slow
def test_filling_goes_on_and_a_full_cache_reads_no_picture(
    four_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.spec import Interrupted

    monkeypatch.setattr(latents, "SHARD", 2)
    options = recipe(four_tasks, tmp_path, **CACHED)
    with pytest.raises(Interrupted, match="before the first step; what is made stays in"):
        training.train(options, Counted(9))
    rest = Counted(11)
    training.train(options, rest)
    assert rest.left == 0  # of 20 samples 9 were in whole shards: 2 + 2 + 1 and 2 + 2
    again = replace(options, steps=2)
    training.train(again, Counted(0), force=True)
    shared = recipe(
        four_tasks, tmp_path / "b", latents=tmp_path / "state" / "latents", seed=5, **CACHED
    )
    training.train(shared, Counted(0))


@pytest.mark.slow
def test_other_latents_and_damaged_ones_are_refused(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, latents=tmp_path / "latents", **CACHED)
    training.train(options, four())
    other = recipe(four_tasks, tmp_path / "b", latents=tmp_path / "latents", **CACHED)
    for change, key in (
        ({"latents_dtype": "fp16"}, "dtype is 'fp32' there and 'fp16' here"),
        ({"height": 48}, r"size is \[32, 32\] there and \[48, 32\] here"),
    ):
        with pytest.raises(PlanError, match=key):
            training.train(replace(other, **change), World(count=5, side=32))
    with pytest.raises(PlanError, match="samples is 5 there and 6 here"):
        training.train(other, World(("t2i", "edit", "sr", "inpaint"), 6))
    path = tmp_path / "latents" / "edit" / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged, remove it"):
        training.train(other, four())
    path.unlink()
    training.train(other, four())
    (tmp_path / "latents" / "sr" / "latents.json").unlink()
    with pytest.raises(PlanError, match=r"has shards without latents\.json"):
        training.train(recipe(four_tasks, tmp_path / "c", latents=other.latents, **CACHED), four())


def test_the_disk_is_asked_before(
    four_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(state.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"the latents needs .* 0\.00 GB are free"):
        training.train(recipe(four_tasks, tmp_path, **CACHED), four())
    with pytest.raises(ResourceError, match="the state needs"):
        training.train(recipe(four_tasks, tmp_path, steps=1), four())
    assert not list((tmp_path / "state").glob("step-*"))


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk on which a file may have 4000 bytes, once latents are written: full in their midst."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any) -> latents.Cached:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        return latents.Cached(*arguments)

    monkeypatch.setattr("mtu_export.training.run.Cached", limited)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_is_said(four_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot write the latents .*: File too large"):
        training.train(recipe(four_tasks, tmp_path, **CACHED), four())
    tensors = {"weight/a": torch.ones(10_000)}
    with pytest.raises(ResourceError, match=r"cannot write the state .*: File too large"):
        state.save(tmp_path, state.Progress(step=3), {}, tensors)


def test_folders_that_are_none(four_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    options = recipe(four_tasks, tmp_path, latents=tmp_path / "file", **CACHED)
    with pytest.raises(ResourceError, match=r"cannot write the latents in .*: Not a directory"):
        training.train(options, four())
    (tmp_path / "other" / "lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match=r"cannot write in .*: Is a directory"):
        training.train(recipe(four_tasks, tmp_path, state=tmp_path / "other"), four())
