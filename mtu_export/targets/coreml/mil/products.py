"""Operators that sum products: convolution, linear layers, matrix products, attention.

``terms`` comes from the evaluator. None sums in float32, as hardware does. With a number, partial
sums of that many terms (or input channels) and each running total are rounded to float16: the worst
case of a float16 accumulator.
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
    """The sum over ``size`` terms; ``part`` computes the partial sum of a slice of them."""
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
    product = _summed(x.shape[-1], terms, lambda s: F.linear(x[..., s], weight[:, s]))
    return product if bias is None else product + bias


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

    A flag transposes its operand's matrices first; on a vector it has no effect.
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

    ``pad`` holds (before, after) for each dimension and is used only with pad_type ``custom``.
    ``same`` gives ceil(d / stride) values; it is refused where the padding would be uneven.
    """
    rank = x.ndim - 2
    stride, dilation = strides or (1,) * rank, dilations or (1,) * rank
    padding = _padding(pad_type, pad, x.shape[2:], weight.shape[2:], stride, dilation)
    if any(padding):
        x = F.pad(x, [side for i in reversed(range(rank)) for side in padding[2 * i : 2 * i + 2]])
    convolve = _CONVOLVE[rank]
    if terms is None:
        return convolve(x, weight, bias, stride, 0, dilation, groups)
    pairs = zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
    result = torch.cat(
        [_channels(inputs, kernels, stride, dilation, terms) for inputs, kernels in pairs], 1
    )
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


def _channels(x: Tensor, weight: Tensor, stride: Ints, dilation: Ints, terms: int) -> Tensor:
    convolve = _CONVOLVE[x.ndim - 2]

    def part(s: slice) -> Tensor:
        return convolve(x[:, s], weight[:, s], None, stride, 0, dilation)

    return _summed(weight.shape[1], terms, part)


def _padding(
    kind: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints
) -> list[int]:
    """Padding (before, after) for each spatial dimension."""
    if kind == "custom":
        if pad is None or len(pad) != 2 * len(sizes) or min(pad) < 0:
            raise ValueError(f"custom padding {pad} for {len(sizes)} dimensions")
        return list(pad)
    if kind == "valid":
        return [0] * 2 * len(sizes)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"no pad_type {kind!r}")
    padding: list[int] = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (taps - 1) * dilation + 1 - size)
        if total % 2 or total != (taps - 1) * dilation:
            raise ValueError(f"pad_type {kind!r} with uneven padding")
        padding += [total // 2, total // 2]
    return padding


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
    """Means of x [n, C, *d] over windows placed as in :func:`conv`; padding counts as zeros.

    ``exclude_padding_from_average`` leaves padding out of the count. ``ceil_mode`` is refused.
    """
    rank = x.ndim - 2
    stride, dilation = strides or (1,) * rank, (1,) * rank
    if ceil_mode or len(kernel_sizes) != rank or not 1 <= rank <= 3:
        raise ValueError(f"windows {list(kernel_sizes)} of rank {rank}, ceil_mode {ceil_mode}")
    padding = _padding(pad_type, pad, x.shape[2:], kernel_sizes, stride, dilation)
    pad_widths = [side for i in reversed(range(rank)) for side in padding[2 * i : 2 * i + 2]]
    pool = _POOL[rank]
    means = pool(F.pad(x, pad_widths), kernel_sizes, stride)
    if not (exclude_padding_from_average and any(padding)):
        return means
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return means / pool(F.pad(inside, pad_widths), kernel_sizes, stride)


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

    A boolean mask selects the keys that take part; a numeric mask is added to the scores.
    Intermediate values are never rounded to float16.
    """
    if terms is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask)
    size = query.shape[-1]
    scores = _summed(size, terms, lambda s: query[..., s] @ key[..., s].transpose(-1, -2))
    scores = scores / math.sqrt(size)
    if attn_mask is not None:
        is_boolean = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_boolean else scores + attn_mask
    weights = scores.softmax(-1)
    return _summed(weights.shape[-1], terms, lambda s: weights[..., s] @ value[..., s, :])
