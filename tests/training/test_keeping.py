"""What a run keeps when something goes wrong, and what it refuses to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtu_export import training
from mtu_export.spec import PlanError
from mtu_export.training import run, state
from mtu_export.training.data import Sample
from mtu_export.training.state import Progress
from tests.training.world import World, four, recipe, rows


class Failing(World):
    """A world whose files go away after so many reads."""

    def __init__(self, reads: int) -> None:
        super().__init__(("t2i", "edit", "sr", "inpaint"))
        self.left = reads

    def __getitem__(self, index: int) -> Sample:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.slow
def test_an_error_of_the_data_keeps_the_steps_before(four_tasks: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training.train(recipe(four_tasks, whole, steps=3), four())
    options = recipe(four_tasks, broken, steps=3)
    a_step = len(four().tasks) * options.samples_a_step
    with pytest.raises(PlanError, match=r"sample \d+: OSError: .*; the state of step 2 is in"):
        training.train(options, Failing(2 * a_step + 3))
    training.train(options, four())
    assert rows(whole) == rows(broken)


@pytest.mark.slow
def test_a_state_is_of_its_model(four_tasks: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(four_tasks, model)
    options = recipe(model, tmp_path, steps=2, checkpointing_steps=1)
    with pytest.raises(PlanError, match="the state of step 1 is in"):
        training.train(options, Failing(len(four().tasks) * options.samples_a_step))
    (path,) = (model / "unet").glob("*.safetensors")
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, path, {"format": "pt"})
    with pytest.raises(PlanError, match="of another run: weights of the model is "):
        training.train(options, four())
    assert state.newest(tmp_path / "state") is not None


@pytest.mark.parametrize("steps", [[4], [4, 4], [0, 4]])
def test_processes_must_see_one_state(tmp_path: Path, steps: list[int]) -> None:
    others: Any = SimpleNamespace(gather=lambda here: torch.tensor(steps, dtype=here.dtype))
    trainer: Any = SimpleNamespace(
        accelerator=others,
        device=torch.device("cpu"),
        progress=Progress(step=4),
        recipe=recipe(tmp_path / "model", tmp_path),
    )
    if len(set(steps)) == 1:
        run.require_same_step(trainer)
        return
    with pytest.raises(PlanError, match=r"at steps 0 and 4: .* on a disk that all of them share"):
        run.require_same_step(trainer)
