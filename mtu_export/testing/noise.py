"""Vectors by which a reader in another language checks that a seed gives it numpy's noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mtu_export.bundle import sampler

VECTORS = {0: 8192, 1: 16384, 7: 16384, 2**32 - 1: 16384, 2**32 + 1: 16384, 2**64: 16384}
"""Seeds of one word of 32 bits, two and three, and how many draws: a latent of 4 x 64 x 64.

They are chosen so that no draw hangs on the last bit of a float32 logarithm, which the C library
has in numpy's tail; of other seeds two in five have such a draw among as many.
"""
FIRST = 32


def noise_vectors(counts: Mapping[int, int] = VECTORS) -> list[dict[str, Any]]:
    """One object per seed: ``seed`` in decimal digits, ``count``, ``first`` and ``sha256``.

    ``first`` are the first 32 draws as numbers that float32 holds exactly; ``sha256`` is of all
    ``count`` draws as little-endian float32.
    """
    vectors = []
    for seed, count in counts.items():
        draws = sampler.noise((1, 1, 1, count), seed).reshape(-1).astype("<f4")
        vectors.append(
            {
                "seed": str(seed),  # beyond what a number of JSON holds everywhere
                "count": count,
                "first": draws[:FIRST].tolist(),
                "sha256": hashlib.sha256(draws.tobytes()).hexdigest(),
            }
        )
    return vectors
