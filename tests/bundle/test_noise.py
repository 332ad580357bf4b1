"""The noise of a seed: one stream, and the same from first principles as from numpy."""

from __future__ import annotations

import hashlib
import json
from itertools import islice

import numpy as np
import pytest

from mtu_export.bundle import sampler
from mtu_export.testing.noise import FIRST, VECTORS, noise_vectors
from tests.support import numpy_noise

MANY = 50_000
WIDE = [0, 1, 42, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 2**64 + 12345, 2**128 + 3, 10**60]
TABLES = (
    "b00c1701b8ee9b5e5bb285bef552e979942af25328141d131b0ad8183643fd39",
    "7e876b6f831f031c494d3f21c00f1845928d7ba8984b207e08b3fcba766a67fd",
    "3ec75aef4fc5308b6f948d1fd8d0eef691a752eebbaa91914fc111948aea6ad8",
)


@pytest.mark.parametrize("seed", WIDE)
def test_words_are_those_of_numpys_seed_sequence(seed: int) -> None:
    expected = np.random.SeedSequence(seed).generate_state(8)
    assert numpy_noise.seed_words(seed) == expected.tolist()


@pytest.mark.parametrize("seed", WIDE)
def test_bits_are_those_of_numpys_pcg64(seed: int) -> None:
    expected = np.random.PCG64(seed).random_raw(1000)
    halves = np.array(list(islice(numpy_noise.bits(seed), 2000)), np.uint64).reshape(-1, 2)
    assert np.array_equal(halves[:, 0] | halves[:, 1] << np.uint64(32), expected)


def test_tables_are_those_of_numpys_binary() -> None:
    """Hashes of ki_float, wi_float and fi_float as libnpyrandom.a of numpy 2.4 has them."""
    kinds = ("<u4", "<f4", "<f4")
    arrays = (np.array(t, kind) for t, kind in zip(numpy_noise.tables(), kinds, strict=True))
    assert tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays) == TABLES


@pytest.mark.parametrize("seed", WIDE)
def test_draws_are_those_of_numpy(seed: int) -> None:
    """Bit for bit; in the tail within one step, as numpy takes log1pf of the C library."""
    expected = np.random.default_rng(seed).standard_normal(MANY, np.float32)
    actual = numpy_noise.standard_normal(seed, MANY)
    tail = np.abs(expected) > numpy_noise.R
    assert 4 <= tail.sum() <= 40
    assert np.array_equal(actual[~tail], expected[~tail])
    steps = actual[tail].view(np.int32) - expected[tail].view(np.int32)
    assert np.abs(steps).max() <= 1


@pytest.mark.parametrize("passes", [0, 1, 4])
def test_noise_is_one_stream(passes: int) -> None:
    """The start's first, then pass by pass, and the start's is the same whatever follows."""
    shape, seed = (1, 4, 6, 8), 11
    noise = sampler.noise((1 + passes, *shape[1:]), seed)
    generator = np.random.default_rng(seed)
    expected = [generator.standard_normal(shape, np.float32) for _ in range(1 + passes)]
    assert (noise.shape, noise.dtype) == ((1 + passes, *shape[1:]), np.float32)
    assert np.array_equal(noise, np.concatenate(expected))
    assert np.array_equal(noise[:1], sampler.noise(shape, seed))


# ------------------------------------------------------------------------------------- vectors


def test_vectors_are_met_from_first_principles() -> None:
    vectors = json.loads(json.dumps(noise_vectors()))
    assert [int(vector["seed"]) for vector in vectors] == list(VECTORS)
    assert len(json.dumps(vectors)) < 10_000
    for vector in vectors:
        draws = numpy_noise.standard_normal(int(vector["seed"]), vector["count"])
        assert np.array_equal(draws[:FIRST], np.array(vector["first"], np.float32))
        assert hashlib.sha256(draws.astype("<f4").tobytes()).hexdigest() == vector["sha256"]


@pytest.mark.parametrize("toward", [-np.inf, np.inf])
def test_vectors_do_not_hang_on_the_last_bit_of_a_logarithm(
    monkeypatch: pytest.MonkeyPatch, toward: float
) -> None:
    """A log1p of float32 that is one step off gives the same draws for these seeds."""
    true = numpy_noise.log1p
    logarithms = []

    def nudged(value: np.float32) -> np.float32:
        logarithms.append(value)
        return np.nextafter(true(value), np.float32(toward))

    expected = [numpy_noise.standard_normal(*vector) for vector in VECTORS.items()]
    monkeypatch.setattr(numpy_noise, "log1p", nudged)
    for vector, draws in zip(VECTORS.items(), expected, strict=True):
        assert np.array_equal(numpy_noise.standard_normal(*vector), draws)
    assert len(logarithms) > 2 * len(VECTORS)
