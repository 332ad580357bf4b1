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

from mtu_export import calibrate, capture, exporter, generate, plan, schedule
from mtu_export.exporter.reference import PROMPT, Reference
from mtu_export.models import mtu, stock

PROMPTS = {"sr": "", "edit": PROMPT}
ZEROS = "force_zeros_for_empty_prompt"


def empty_prompt(source: Path, out: Path, said: bool | None) -> dict[str, np.ndarray]:
    """The constants of the empty prompt, of encoders that give ones for every prompt."""
    shutil.copytree(source, out)
    index = json.loads((out / "model_index.json").read_text("utf-8"))
    index.pop(ZEROS, None)
    (out / "model_index.json").write_text(
        json.dumps(index if said is None else {**index, ZEROS: said}), "utf-8"
    )
    row = plan.resolve(target="onnx", model=out, task="t2i")
    scheduler = schedule.load(out, None)
    reference = Reference(row, row.tasks[0], scheduler, schedule.tables(scheduler, [4]))
    ones = {"hidden_states": np.ones((1, 77, 8), np.float32), "pooled": np.ones((1, 8), np.float32)}
    for encoder in reference.encoders:
        reference.take_text(encoder, [ones] * len(reference.prompts))
    found = reference.constants()
    return {name: value for name, value in found.items() if name.startswith("empty/")}


@pytest.mark.parametrize("said", [True, False, None])
def test_the_empty_prompt_of_sdxl_is_what_diffusers_takes(
    pipeline_sdxl: Path, tmp_path: Path, said: bool | None
) -> None:
    default = inspect.signature(StableDiffusionXLPipeline.__init__).parameters[ZEROS].default
    found = empty_prompt(pipeline_sdxl, tmp_path / "xl", said)
    assert set(found) == {"empty/encoder_hidden_states", "empty/text_embeds"}
    zero = default if said is None else said
    assert all((value == (0 if zero else 1)).all() for value in found.values())


@pytest.mark.parametrize("said", [True, None])
def test_the_empty_prompt_of_sd_is_encoded(
    pipeline: Path, tmp_path: Path, said: bool | None
) -> None:
    (value,) = empty_prompt(pipeline, tmp_path / "sd", said).values()
    assert (value == 1).all()


@pytest.mark.parametrize("most", [8, 2])
def test_ranges_come_from_another_loop_than_the_golden_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Every branch of every pass, or of the first, the last and some between."""
    monkeypatch.setattr(calibrate, "LOOP_PASSES", most)
    row = plan.resolve(target="executorch", model=tiny, task="inpaint", scheme="int8")
    (task,), scheduler = row.tasks, schedule.load(tiny, None)
    reference = Reference(row, task, scheduler, schedule.tables(scheduler, [4]))
    graph = mtu.graph(mtu.load(tiny).components["unet"], row, task)
    seeded = calibrate.calibration(graph.inputs, task, row)
    met, origin = reference.calibration(graph, seeded)
    assert origin == calibrate.SEEDED  # neither text encoder nor VAE is there
    times = [row.timestep for row in reference.schedule.passes]
    kept = times if most > len(times) else [times[0], times[-1]]
    branches = task.guidance.passes
    assert [float(case["timestep"][0]) for case in met] == [
        t for t in kept for _ in range(branches)
    ]
    scale = reference.schedule.init_noise_sigma * reference.schedule.passes[0].input_scale
    first, width = met[0]["sample"], row.config["out_channels"]
    noise = generate.noise((1, width, *row.latent_size), row.seed + 1)
    np.testing.assert_allclose(first[:, :width], np.float32(scale) * noise, rtol=1e-6)
    assert not first[:, width:].any()  # the first branch has no image
    assert np.abs(met[-1]["sample"][:, width:]).max() > 1
    golden = calibrate.goldens(graph.inputs, task, row)
    assert not any(np.array_equal(a["sample"], b["sample"]) for a in golden for b in met)


def test_ranges_see_another_picture_and_other_words_than_the_goldens(pipeline: Path) -> None:
    row = plan.resolve(target="executorch", model=pipeline, task="edit", scheme="int8")
    (task,), scheduler = row.tasks, schedule.load(pipeline, None)
    reference = Reference(row, task, scheduler, schedule.tables(scheduler, [4]))
    encoder = stock.load_text_encoder(pipeline, "text_encoder")
    text = stock.text_encoder_graph(encoder, encoder.config, penultimate=False, pooled=False)
    reference.take_text("text_encoder", list(capture.run(text, reference.ids("text_encoder"))))
    vae = stock.load_vae(pipeline)
    reference.take_encoder(stock.vae_encoder_graph(vae, row.height, row.width))
    graph = mtu.graph(mtu.load(pipeline).components["unet"], row, task)
    met, origin = reference.calibration(graph, calibrate.calibration(graph.inputs, task, row))
    assert origin == calibrate.LOOP
    golden, shown = reference.arrays["channels"], met[-1]["sample"][:, row.config["out_channels"] :]
    assert not np.allclose(shown, golden, atol=0.1)
    assert not np.allclose(shown, 0, atol=0.1)
    words = [case["encoder_hidden_states"] for case in met]
    told = {
        case
        for case in range(3)
        for found in words
        if np.array_equal(found, reference.words(case)["encoder_hidden_states"])
    }
    assert told == {1, 2}  # the empty prompt, and one that is not the goldens'
    other = plan.resolve(target="onnx", model=pipeline, task="edit", scheme="int8")
    assert not Reference(other, task, scheduler, schedule.tables(scheduler, [4])).calibrated


def test_the_golden_request_is_that_of_a_task_which_takes_a_prompt(
    make_tiny: Callable[..., Path],
) -> None:
    """`sr` comes first and has a prompt of its own, which is none of `edit`'s."""
    folder = make_tiny("tiny", whole=True, tasks=["sr", "edit"])
    row = plan.resolve(target="onnx", model=folder, task=list(PROMPTS))
    scheduler = schedule.load(folder, None)
    tables = schedule.tables(scheduler, [4])
    references = [Reference(row, task, scheduler, tables) for task in row.tasks]
    assert {one.task.name: one.request.prompt for one in references} == PROMPTS
    for one in references:
        one.arrays["image"] = np.zeros((1, 3, row.height, row.width), np.float32)
    assert exporter.loop(references)["golden"] == {"prompt": PROMPT, "steps": 4}
    assert exporter.loop(references[:1])["golden"] == {"prompt": "", "steps": 4}
