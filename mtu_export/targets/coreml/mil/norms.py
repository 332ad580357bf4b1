"""Operators over whole dimensions: reductions, softmax, normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu_export.targets.coreml.mil.operators import Ints, arithmetic


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]


@arithmetic
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The mean over ``axes``, by default over all; they keep size 1 if ``keep_dims``."""
    return x.mean(_axes(x, axes), keep_dims)


@arithmetic
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The sum over ``axes``."""
    return x.sum(_axes(x, axes), keep_dims)


@arithmetic
def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The sum of squares over ``axes``."""
    return (x * x).sum(_axes(x, axes), keep_dims)


@arithmetic
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The greatest value over ``axes``."""
    return x.amax(_axes(x, axes), keep_dims)


@arithmetic
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The least value over ``axes``."""
    return x.amin(_axes(x, axes), keep_dims)


@arithmetic
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The square root of the sum of squares over ``axes``."""
    return (x * x).sum(_axes(x, axes), keep_dims).sqrt()


@arithmetic
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """The index of the greatest value along ``axis``."""
    return x.argmax(axis, keep_dims)


@arithmetic
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """``e^x / Σ e^x`` along ``axis``."""
    return x.softmax(axis)


@arithmetic
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``(x − mean) / √(variance + epsilon) · gamma + beta`` over ``axes``, by default over all.

    The variance is the population variance (divided by the count). gamma and beta have the shape
    of the normalised dimensions, in order.
    """
    normalized_axes = sorted(_axes(x, axes))
    order = [axis for axis in range(x.ndim) if axis not in normalized_axes] + normalized_axes
    shape = [x.shape[axis] for axis in normalized_axes]
    normalized = F.layer_norm(x.permute(order), shape, gamma, beta, epsilon)
    return normalized.permute([order.index(axis) for axis in range(x.ndim)])


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """``values`` [C] along dimension 1 of ``x``."""
    return values.reshape(-1, *(1,) * (x.ndim - 2))


@arithmetic
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``gamma · (x − mean) / √(variance + epsilon) + beta``, each [C] along dimension 1."""
    normalized = (x - _channels(mean, x)) / _channels((variance + epsilon).sqrt(), x)
    normalized = normalized if gamma is None else normalized * _channels(gamma, x)
    return normalized if beta is None else normalized + _channels(beta, x)


@arithmetic
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """``gamma · (x − mean) / √(variance + epsilon) + beta`` for each image and channel.

    Mean and variance are over the dimensions after the second; gamma and beta are [C].
    """
    spatial_axes = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, spatial_axes, correction=0, keepdim=True)
    normalized = (x - mean) / (variance + epsilon).sqrt()
    normalized = normalized if gamma is None else normalized * _channels(gamma, x)
    return normalized if beta is None else normalized + _channels(beta, x)


@arithmetic
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``x / √(Σ x² + epsilon)`` over the last three dimensions."""
    return x / ((x * x).sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()
