"""``default_rng(seed).standard_normal(n, float32)`` of numpy from first principles.

SeedSequence, PCG64 (XSL-RR 128/64), 32 bits at a time, and the ziggurat of 256 layers in float32:
what the contract's appendix says, for readers in other languages to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

M32, M64, M128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341
R, AREA = 3.654152885361009, 0.004928673233974655
"""Where the tail begins, and the area of a layer: R·exp(−R²/2) + ∫ exp(−x²/2) beyond R."""
LAYERS, BITS = 256, 2**23
f32 = np.float32


def seed_words(seed: int) -> list[int]:
    """Eight words of 32 bits: SeedSequence(seed).generate_state(8)."""
    entropy = [seed >> shift & M32 for shift in range(0, max(seed.bit_length(), 1), 32)]
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & M32
        value = value * constant & M32
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & M32
        return value ^ value >> 16

    pool = [hashed(word) for word in (entropy + [0] * 4)[:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[4:]:
        for target in range(4):
            pool[target] = mixed(pool[target], hashed(word))
    words, constant = [], 0x8B51F9DD
    for index in range(8):
        value = pool[index % 4] ^ constant
        constant = constant * 0x58F38DED & M32
        value = value * constant & M32
        words.append(value ^ value >> 16)
    return words


def bits(seed: int) -> Iterator[int]:
    """The stream of 32-bit numbers of PCG64: the low half of each 64 first."""
    w = [low | high << 32 for low, high in zip(*[iter(seed_words(seed))] * 2, strict=True)]
    increment = ((w[2] << 64 | w[3]) << 1 | 1) & M128
    state = (increment + (w[0] << 64 | w[1])) & M128  # a step from 0, and the seed added
    state = (state * MULTIPLIER + increment) & M128
    while True:
        state = (state * MULTIPLIER + increment) & M128
        folded, turn = state >> 64 ^ state & M64, state >> 122
        number = (folded >> turn | folded << (64 - turn)) & M64
        yield number & M32
        yield number >> 32


def tables() -> tuple[list[int], list[np.float32], list[np.float32]]:
    """Thresholds k, widths w and heights f of the layers; layer 0 is the base with the tail."""
    heights = [1.0] * LAYERS
    heights[-1] = math.exp(-0.5 * R * R)
    edges = [AREA / heights[-1]] + [0.0] * (LAYERS - 2) + [R]
    thresholds = [round(R * heights[-1] / AREA * BITS)] + [0] * (LAYERS - 1)
    for i in range(LAYERS - 2, 0, -1):
        edges[i] = math.sqrt(-2 * math.log(AREA / edges[i + 1] + heights[i + 1]))
        thresholds[i + 1] = round(edges[i] / edges[i + 1] * BITS)
        heights[i] = math.exp(-0.5 * edges[i] * edges[i])
    return thresholds, [f32(edge / BITS) for edge in edges], [f32(height) for height in heights]


K, W, F = tables()


def uniform(source: Iterator[int]) -> np.float32:
    """A multiple of 2^-24 in [0, 1)."""
    return f32(next(source) >> 8) * f32(2**-24)


def log1p(value: np.float32) -> np.float32:
    """The logarithm of 1 + value, in float64, rounded once."""
    return f32(math.log1p(float(value)))


def normal(source: Iterator[int]) -> np.float32:
    """One standard normal number."""
    while True:
        number = next(source)
        layer, negative, distance = number & 255, number >> 8 & 1, number >> 9
        x = f32(distance) * W[layer]
        x = -x if negative else x
        if distance < K[layer]:
            return x
        if layer == 0:
            while True:
                beyond = -f32(1 / R) * log1p(-uniform(source))
                y = -log1p(-uniform(source))
                if y + y > beyond * beyond:
                    return -(f32(R) + beyond) if distance >> 8 & 1 else f32(R) + beyond
        height = (F[layer - 1] - F[layer]) * uniform(source) + F[layer]
        if float(height) < math.exp(-0.5 * float(x) * float(x)):
            return x


def standard_normal(seed: int, count: int) -> np.ndarray:
    """The first ``count`` draws of a seed, float32."""
    source = bits(seed)
    return np.array([normal(source) for _ in range(count)], np.float32)
