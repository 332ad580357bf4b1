"""Pictures that the table of shapes is made of, against diffusers' own pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.shapes import cases, sampling, world
from mtu_export.models.mtu import presets
from mtu_export.spec import Task


def _task(name: str) -> Task:
    return replace(presets.TASKS[name]["sd"], steps=4)


def test_text_to_image_is_that_of_diffusers(dense: Path) -> None:
    parts = sampling.Parts.of(dense)
    batch = [cases.case(world.SMALL, "t2i", "test", i) for i in range(3)]
    task = _task("t2i")
    pictures = sampling.pictures(world.SMALL, parts, sampling.dense(dense, task), batch)
    stock: Any = StableDiffusionPipeline.from_pretrained(
        dense,
        text_encoder=CLIPTextModel.from_pretrained(dense / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(dense / "tokenizer"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    noise = sampling.noise(parts, range(3), world.SMALL.side)
    expected = stock(
        [item.prompt for item in batch],
        height=32,
        width=32,
        latents=torch.from_numpy(noise),
        num_inference_steps=4,
        guidance_scale=task.guidance.text,
        output_type="pt",
    ).images
    assert torch.allclose(pictures, expected * 2 - 1, atol=1e-4)


@pytest.mark.slow
def test_live_and_folded_models_make_the_same_pictures(four_tasks: Path) -> None:
    parts = sampling.Parts.of(four_tasks)
    for name in ("edit", "sr"):
        batch = [cases.case(world.SMALL, name, "test", i) for i in range(2)]
        pairs = [load(four_tasks, name) for load in (sampling.live, sampling.folded)]
        one, other = (
            sampling.pictures(world.SMALL, parts, (denoise, replace(task, steps=3)), batch)
            for denoise, task in pairs
        )
        assert np.abs((one - other).numpy()).max() < 1e-4
        assert float(one.std()) > 0.01
