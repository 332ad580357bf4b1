"""Operators that sum products: convolution, linear layers, matrix products, attention.

``terms``, from the evaluator, is null where sums are float32, as hardware does. Otherwise partial
sums of so many terms (or input channels) are rounded to float16 and so is each running total: the
worst that a float16 accumulator does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu_export.targets.coreml.mil.operators import Ints, arithmetic

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_POOL: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _summed(size: int, terms: int | None, part: Callable[[slice], Tensor]) -> Tensor:
    """The sum of ``part`` over slices of ``size`` terms."""
    if terms is None:
        return part(slice(None))
    total = _half(part(slice(0, terms)))
    for begin in range(terms, size, terms):
        total = _half(total + _half(part(slice(begin, begin + terms))))
    return total


def _half(x: Tensor) -> Tensor:
    return x.half().float()


@arithmetic
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, terms: int | None = None
) -> Tensor:
    """``x · weightᵀ + bias`` with weight [out, in] and bias [out]."""
    if terms is None:
        return F.linear(x, weight, bias)
    found = _summed(x.shape[-1], terms, lambda s: F.linear(x[..., s], weight[:, s]))
    return found if bias is None else found + bias


@arithmetic
def matmul(
    x: Tensor,
    y: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    *,
    terms: int | None = None,
) -> Tensor:
    """Products of the matrices in the last two dimensions, the others broadcast.

    A flag transposes its operand's matrices first, and does nothing to a vector.
    """
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    if terms is None or y.ndim < 2:
        return torch.matmul(x, y)
    return _summed(x.shape[-1], terms, lambda s: torch.matmul(x[..., s], y[..., s, :]))


@arithmetic
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    *,
    terms: int | None = None,
) -> Tensor:
    """Cross-correlation of x [n, in, *d] with weight [out, in / groups, *k] in 1 to 3 dimensions.

    ``pad`` holds (before, after) of each dimension and counts only with pad_type ``custom``.
    ``same`` keeps ceil(d / stride) values; it is refused where more padding would be on one side.
    """
    rank = x.ndim - 2
    steps, apart = strides or (1,) * rank, dilations or (1,) * rank
    sides = _padding(pad_type, pad, x.shape[2:], weight.shape[2:], steps, apart)
    if any(sides):
        x = F.pad(x, [side for i in reversed(range(rank)) for side in sides[2 * i : 2 * i + 2]])
    convolve = _CONVOLVE[rank]
    if terms is None:
        return convolve(x, weight, bias, steps, 0, apart, groups)
    pairs = zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
    found = torch.cat([_channels(p, w, steps, apart, terms) for p, w in pairs], 1)
    return found if bias is None else found + bias.reshape(-1, *(1,) * rank)


def _channels(x: Tensor, weight: Tensor, steps: Ints, apart: Ints, terms: int) -> Tensor:
    convolve = _CONVOLVE[x.ndim - 2]

    def part(s: slice) -> Tensor:
        return convolve(x[:, s], weight[:, s], None, steps, 0, apart)

    return _summed(weight.shape[1], terms, part)


def _padding(
    kind: str, pad: Ints | None, sizes: Ints, kernel: Ints, steps: Ints, apart: Ints
) -> list[int]:
    """(before, after) of each spatial dimension."""
    if kind == "custom":
        if pad is None or len(pad) != 2 * len(sizes) or min(pad) < 0:
            raise ValueError(f"custom padding {pad} for {len(sizes)} dimensions")
        return list(pad)
    if kind == "valid":
        return [0] * 2 * len(sizes)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"no pad_type {kind!r}")
    found: list[int] = []
    for size, width, step, gap in zip(sizes, kernel, steps, apart, strict=True):
        total = max(0, (math.ceil(size / step) - 1) * step + (width - 1) * gap + 1 - size)
        if total % 2 or total != (width - 1) * gap:
            raise ValueError(f"pad_type {kind!r} with uneven padding")
        found += [total // 2, total // 2]
    return found


@arithmetic
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Means of x [n, C, *d] over windows, as :func:`conv` lays them; padding counts as zeros.

    ``exclude_padding_from_average`` leaves it out of the count. ``ceil_mode`` is refused.
    """
    rank = x.ndim - 2
    steps, ones = strides or (1,) * rank, (1,) * rank
    if ceil_mode or len(kernel_sizes) != rank or not 1 <= rank <= 3:
        raise ValueError(f"windows {list(kernel_sizes)} of rank {rank}, ceil_mode {ceil_mode}")
    sides = _padding(pad_type, pad, x.shape[2:], kernel_sizes, steps, ones)
    pads = [side for i in reversed(range(rank)) for side in sides[2 * i : 2 * i + 2]]
    pool = _POOL[rank]
    means = pool(F.pad(x, pads), kernel_sizes, steps)
    if not (exclude_padding_from_average and any(sides)):
        return means
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return means / pool(F.pad(counted, pads), kernel_sizes, steps)


@arithmetic
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    terms: int | None = None,
) -> Tensor:
    """``softmax(query · keyᵀ / √E + mask) · value`` over the keys; E is the query's last size.

    A mask of bools lets a key take part where it is true; one of numbers is added. What lies
    between the operands and the result is never rounded to float16.
    """
    if terms is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask)
    size = query.shape[-1]
    scores = _summed(size, terms, lambda s: query[..., s] @ key[..., s].transpose(-1, -2))
    scores = scores / math.sqrt(size)
    if attn_mask is not None:
        hidden = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
    weights = scores.softmax(-1)
    return _summed(weights.shape[-1], terms, lambda s: weights[..., s] @ value[..., s, :])
