"""The shared vectors are what their generators make today."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import testdata
from benchmarks.vectors import fits, hostile, loops, tokens
from mtu_export.testing.noise import noise_vectors

HERE = testdata.HERE


def test_lists_are_those_that_are_made() -> None:
    folder = HERE / testdata.NAME
    documents = {
        "hostile.json": hostile.make(folder),
        "noise.json": noise_vectors(),
        "tokens.json": tokens.make(folder / "tokenizer", testdata.PROMPT),
        "loops.json": loops.make()[0],
        "fits.json": fits.make()[0],
    }
    for name, document in documents.items():
        assert (HERE / name).read_text("utf-8") == testdata.lines(document) + "\n", name
        assert json.loads(testdata.lines(document)) == json.loads(json.dumps(document))


def test_loops_and_pictures_are_those_that_are_made() -> None:
    """Of the loops all that mtu-export comes to; sums of another order move the last bits."""
    for name, (_, tensors) in (
        ("loops.safetensors", loops.make()),
        ("fits.safetensors", fits.make()[:2]),
    ):
        committed = load_file(HERE / name)
        assert committed.keys() == tensors.keys()
        for key, array in tensors.items():
            assert committed[key].dtype == array.dtype
            assert committed[key].shape == array.shape
            atol = 2e-5 * max(1.0, float(np.abs(committed[key]).max()))
            if name == "fits.safetensors":
                atol = max(atol, 1.001 * np.abs(array).max() / 127)  # a level
            np.testing.assert_allclose(array, committed[key], rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", fits.pixels())
def test_raw_pixels_are_those_that_are_made(name: str) -> None:
    assert (HERE / name).read_bytes() == fits.pixels()[name].tobytes()
