"""A pipeline with trained tokens, exported: its bundle makes the ids and states of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from mtu_export import exporter, targets
from mtu_export.bundle import tokenizer
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter.options import resolve


@pytest.mark.slow
def test_a_bundle_knows_the_trained_tokens(atom_pipeline: Path, tmp_path: Path) -> None:
    """The textual inversion of field reports: a token more in tokenizer and text encoder."""
    folder = Path(shutil.copytree(atom_pipeline, tmp_path / "ti"))
    reference = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    reference.add_tokens(["<cat-toy>"])
    encoder.resize_token_embeddings(len(reference))
    for part, saved in (("tokenizer", reference), ("text_encoder", encoder)):
        shutil.rmtree(folder / part)
        saved.save_pretrained(folder / part)
    options = {"components": ["text_encoder"], "scheme": "fp32", "out": tmp_path / "b"}
    bundle = exporter.export(resolve(target="onnx", model=folder, task="t2i", **options))  # type: ignore[arg-type]
    prompt = "a photo of <cat-toy> in the snow"
    batch = reference(prompt, padding="max_length", max_length=77, return_tensors="pt")
    ids, cut = tokenizer.load(bundle.folder / "tokenizer").encode(prompt)
    assert (ids.tolist(), cut) == (batch.input_ids.tolist(), "")
    with torch.no_grad():
        expected = encoder(batch.input_ids).last_hidden_state.numpy()
    part = bundle.part("text_encoder")
    session = targets.runtime(targets.load("onnx")).open(part.path, part.entry_of("t2i"))
    (states,) = session({"input_ids": ids}).values()
    assert psnr(expected, np.asarray(states)) > 90
