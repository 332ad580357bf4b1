"""A pipeline with trained tokens, exported: its bundle makes the ids and states of diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from mtu_export import exporter, targets
from mtu_export.bundle import tokenizer
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter.options import resolve
from mtu_export.testing.dense import write_dense


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_bundle_knows_the_trained_tokens(tmp_path: Path, count: int) -> None:
    """Textual inversion: a name of n embedded tokens is n added ones."""
    pipe = StableDiffusionPipeline.from_pretrained(write_dense("atom", tmp_path / "plain"))
    width = pipe.text_encoder.config.hidden_size
    trained = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion({"<cat>": trained.squeeze(0)})
    pipe.save_pretrained(tmp_path / "trained")
    prompt = "a photo of <cat> in the snow"
    converted = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
    bundle = exporter.export(
        resolve(
            target="onnx",
            model=tmp_path / "trained",
            components=["text_encoder"],
            scheme="fp32",
            out=tmp_path / "b",
        )
    )
    batch = pipe.tokenizer(converted, padding="max_length", max_length=77, return_tensors="pt")
    ids, cut = tokenizer.load(bundle.folder / "tokenizer").encode(prompt)
    assert (ids.tolist(), cut) == (batch.input_ids.tolist(), "")
    with torch.no_grad():
        expected = pipe.text_encoder(batch.input_ids).last_hidden_state.numpy()
    part = bundle.part("text_encoder")
    session = targets.runtime(targets.load("onnx")).open(part.path, part.entry_of("t2i"))
    (states,) = session({"input_ids": ids}).values()
    assert psnr(expected, np.asarray(states)) > 90
