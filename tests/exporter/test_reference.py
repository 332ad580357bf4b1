"""What the reference's loop keeps for a bundle, without running a model."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from mtu_export.bundle.manifest import Golden
from mtu_export.exporter import manifest, options, schedule
from mtu_export.exporter.reference import PROMPT, PROMPTS, Contribution, Reference
from tests.exporter.test_plan import denoiser_record

OWN_PROMPTS = {"sr": "", "edit": PROMPT}
ZEROS = "force_zeros_for_empty_prompt"


def empty_prompt(source: Path, out: Path, flag: bool | None) -> dict[str, np.ndarray]:
    """The constants of the empty prompt, of encoders that give ones for every prompt."""
    shutil.copytree(source, out)
    index = json.loads((out / "model_index.json").read_text("utf-8"))
    index.pop(ZEROS, None)
    (out / "model_index.json").write_text(
        json.dumps(index if flag is None else {**index, ZEROS: flag}), "utf-8"
    )
    plan = options.resolve(target="onnx", model=out, task="t2i")
    reference = Reference(plan, plan.tasks[0], None, None)
    ones = {"hidden_states": np.ones((1, 77, 8), np.float32), "pooled": np.ones((1, 8), np.float32)}
    assert plan.model.text is not None
    for encoder in plan.model.text.calls:
        cases = range(len(PROMPTS))
        reference.add(Contribution(once={(case, encoder.id): ones for case in cases}))
    constants = reference.constants
    return {name: value for name, value in constants.items() if name.startswith("empty/")}


@pytest.mark.parametrize("flag", [True, False, None])
def test_the_empty_prompt_of_sdxl_is_what_diffusers_takes(
    pipeline_sdxl: Path, tmp_path: Path, flag: bool | None
) -> None:
    default = inspect.signature(StableDiffusionXLPipeline.__init__).parameters[ZEROS].default
    constants = empty_prompt(pipeline_sdxl, tmp_path / "xl", flag)
    assert set(constants) == {"empty/encoder_hidden_states", "empty/text_embeds"}
    zero = default if flag is None else flag
    assert all((value == (0 if zero else 1)).all() for value in constants.values())


@pytest.mark.parametrize("flag", [True, None])
def test_the_empty_prompt_of_sd_is_encoded(
    pipeline: Path, tmp_path: Path, flag: bool | None
) -> None:
    (value,) = empty_prompt(pipeline, tmp_path / "sd", flag).values()
    assert (value == 1).all()


def test_the_golden_request_is_that_of_a_task_which_takes_a_prompt(
    make_tiny: Callable[..., Path],
) -> None:
    """`sr` comes first and has a prompt of its own, which is none of `edit`'s."""
    folder = make_tiny("tiny", whole=True, tasks=["sr", "edit"])
    plan = options.resolve(target="onnx", model=folder, task=list(OWN_PROMPTS))
    baked = schedule.bake(schedule.load(folder, None), [8], required=True)
    table = baked.golden_table(None)
    references = [Reference(plan, task, table, baked.golden) for task in plan.tasks]
    assert {one.task.name: one.request.prompt for one in references} == OWN_PROMPTS
    for one in references:
        image = np.zeros((1, 3, plan.height, plan.width), np.float32)
        one.add(Contribution(picture=image))
    identity = manifest.identity(plan)
    both = manifest.describe(plan, identity, [denoiser_record()], baked, references)
    assert both.golden == Golden(prompt=PROMPT, steps=4)
    assert both.loop is not None
    assert [record.steps for record in both.loop.schedules] == [4, 8]
    assert "skipped" not in both.loop.to_json()
    alone = manifest.describe(plan, identity, [denoiser_record()], baked, references[:1])
    assert alone.golden == Golden(prompt="", steps=4)


def test_a_contribution_comes_back_from_its_arrays() -> None:
    values = [np.full((1, 2), number, np.float32) for number in range(12)]
    contributions = [
        Contribution(
            once={
                (0, "text_encoder"): {"a": values[0], "b": values[1]},
                (2, "text_encoder"): {"a": values[2], "b/c": values[3]},
                (0, "vae_encoder"): {"latent": values[4]},
            }
        ),
        Contribution(outputs=tuple(values), latents=tuple(values[::-1])),
        Contribution(picture=values[0]),
        Contribution(),
    ]
    for contribution in contributions:
        again = Contribution.from_arrays(contribution.to_arrays())
        assert again.to_arrays().keys() == contribution.to_arrays().keys()
        assert again.once.keys() == contribution.once.keys()
        for name, value in contribution.to_arrays().items():
            assert np.array_equal(again.to_arrays()[name], value)
