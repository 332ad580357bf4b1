"""Operators that look values up by computed indices, and those that count or resize."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu_export.targets.coreml.mil.operators import arithmetic, moves, version

IOS17 = 7


@moves
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """Slices of ``x`` at ``indices`` along ``axis``; a negative index counts from the end.

    The result is [x before axis, indices after batch_dims, x after axis]: the first ``batch_dims``
    dimensions of both go together.
    """
    axis = axis % x.ndim
    return _gather(x, _from_the_end(indices, x.shape[axis]), axis, batch_dims)


@version("gather", IOS17, computes=False)
def gather_in_range(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """As before, but a negative index is out of range.

    What lies out of range is undefined without ``validate_indices``, so it is refused either way.
    """
    return _gather(x, indices.long(), axis % x.ndim, batch_dims)


def _gather(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    if not 0 <= batch_dims <= min(axis, indices.ndim):
        raise ValueError(f"batch_dims {batch_dims} with axis {axis}")
    if batch_dims == 0:
        found = x.index_select(axis, indices.flatten())
        return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    before, kept = x.shape[:batch_dims], x.shape[batch_dims:axis] + x.shape[axis + 1 :]
    if indices.shape[:batch_dims] != before:
        raise ValueError(f"batches {list(indices.shape[:batch_dims])} of {list(before)}")
    batch = math.prod(before)
    values = x.movedim(axis, batch_dims).reshape(batch, x.shape[axis], *kept)
    places = indices.reshape(batch, -1)
    picked = values[torch.arange(batch, device=x.device)[:, None], places]
    picked = picked.movedim(1, 1 + axis - batch_dims)
    return picked.reshape(*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])


def _from_the_end(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@moves
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """Each index picks a value along ``axis`` at its own place in the other dimensions."""
    axis = axis % x.ndim
    return torch.gather(x, axis, _from_the_end(indices, x.shape[axis]))


@moves
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of ``x`` at places: the last dimension of ``indices`` holds their first coordinates.

    The first ``batch_dims`` dimensions of both go together.
    """
    before = x.shape[:batch_dims]
    if batch_dims < 0 or indices.shape[:batch_dims] != before:
        raise ValueError(f"batches {list(indices.shape[:batch_dims])} of {list(before)}")
    batch, inner = math.prod(before), indices.shape[batch_dims:-1]
    values = x.reshape(batch, *x.shape[batch_dims:])
    if not 0 < indices.shape[-1] < values.ndim:
        raise ValueError(f"{indices.shape[-1]} coordinates in rank {values.ndim - 1}")
    coordinates = indices.long().reshape(batch, *inner, indices.shape[-1]).unbind(-1)
    pairs = zip(coordinates, values.shape[1:], strict=False)
    places = [_from_the_end(coordinate, size) for coordinate, size in pairs]
    first = torch.arange(batch, device=x.device).reshape(batch, *(1,) * len(inner))
    picked = values[(first.expand(batch, *inner), *places)]
    return picked.reshape(*before, *picked.shape[1:])


@arithmetic
def range_1d(start: float, end: float, step: float, *, device: str = "cpu") -> Tensor:
    """From ``start`` in steps of ``step`` up to, not including, ``end``.

    ``device``, from the evaluator, is ``"meta"`` in its dry run: there the count is compared with
    the declared shape before any memory is taken for it.
    """
    count = max(0, math.ceil((end - start) / step))
    values = start + step * torch.arange(count, dtype=torch.float64, device=device)
    whole = all(float(value).is_integer() for value in (start, step))
    return values.long() if whole else values


@arithmetic
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Sums along ``axis`` so far, from its end if ``reverse``, without the last if exclusive."""
    x = x.flip(axis) if reverse else x
    found = x.cumsum(axis) - x if exclusive else x.cumsum(axis)
    return found.flip(axis) if reverse else found


# ------------------------------------------------------------------------------- resizing


@moves
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """Every value repeated by whole factors along the last two dimensions."""
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        if factor != int(factor) or factor < 1:
            raise ValueError(f"a factor of {factor:g} is not whole")
        if factor != 1:
            x = x.repeat_interleave(int(factor), axis)
    return x


@arithmetic
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The last two dimensions by factors, values between neighbours in proportion.

    The sizes are rounded down, and the spacing is (in − 1) / (out − 1) with aligned corners, else
    in / out from the middle of a pixel.
    """
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError("half_pixel_centers must be the opposite of align_corners")
    factors = (scale_factor_height, scale_factor_width)
    size = [math.floor(n * factor) for n, factor in zip(x.shape[-2:], factors, strict=True)]
    planes = x.reshape(1, -1, *x.shape[-2:])
    found = F.interpolate(planes, size=size, mode="bilinear", align_corners=align_corners)
    return found.reshape(*x.shape[:-2], *size)
