"""Operators that gather values by computed indices, count or resize."""

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

    The result is [x before axis, indices after batch_dims, x after axis]: ``x`` and ``indices``
    share the first ``batch_dims`` dimensions.
    """
    axis = axis % x.ndim
    return _gather(x, _from_the_end(indices, x.shape[axis]), axis, batch_dims)


@version("gather", IOS17, computes=False)
def gather_in_range(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """As :func:`gather`, but a negative index is out of range.

    Without ``validate_indices`` the result out of range is undefined; it is refused either way.
    """
    return _gather(x, indices.long(), axis % x.ndim, batch_dims)


def _gather(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    if not 0 <= batch_dims <= min(axis, indices.ndim):
        raise ValueError(f"batch_dims {batch_dims} with axis {axis}")
    if batch_dims == 0:
        picked = x.index_select(axis, indices.flatten())
        return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    batches, others = x.shape[:batch_dims], x.shape[batch_dims:axis] + x.shape[axis + 1 :]
    if indices.shape[:batch_dims] != batches:
        raise ValueError(f"batches {list(indices.shape[:batch_dims])} of {list(batches)}")
    batch = math.prod(batches)
    values = x.movedim(axis, batch_dims).reshape(batch, x.shape[axis], *others)
    positions = indices.reshape(batch, -1)
    picked = values[torch.arange(batch, device=x.device)[:, None], positions]
    picked = picked.movedim(1, 1 + axis - batch_dims)
    return picked.reshape(*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])


def _from_the_end(indices: Tensor, size: int) -> Tensor:
    """Indices from 0 to ``size``; negative ones count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@moves
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """Each index picks a value along ``axis``, at the index's position in the other dimensions."""
    axis = axis % x.ndim
    return torch.gather(x, axis, _from_the_end(indices, x.shape[axis]))


@moves
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of ``x``: the last dimension of ``indices`` holds their leading coordinates.

    ``x`` and ``indices`` share the first ``batch_dims`` dimensions.
    """
    batches = x.shape[:batch_dims]
    if batch_dims < 0 or indices.shape[:batch_dims] != batches:
        raise ValueError(f"batches {list(indices.shape[:batch_dims])} of {list(batches)}")
    batch, inner = math.prod(batches), indices.shape[batch_dims:-1]
    values = x.reshape(batch, *x.shape[batch_dims:])
    if not 0 < indices.shape[-1] < values.ndim:
        raise ValueError(f"{indices.shape[-1]} coordinates in rank {values.ndim - 1}")
    coordinates = indices.long().reshape(batch, *inner, indices.shape[-1]).unbind(-1)
    pairs = zip(coordinates, values.shape[1:], strict=False)
    positions = [_from_the_end(coordinate, size) for coordinate, size in pairs]
    first = torch.arange(batch, device=x.device).reshape(batch, *(1,) * len(inner))
    picked = values[(first.expand(batch, *inner), *positions)]
    return picked.reshape(*batches, *picked.shape[1:])


@arithmetic
def range_1d(start: float, end: float, step: float, *, device: str = "cpu") -> Tensor:
    """Values from ``start`` in steps of ``step``, up to but not including ``end``.

    ``device`` comes from the evaluator and is ``"meta"`` in its dry run, which compares the count
    with the declared shape before any memory is allocated.
    """
    count = max(0, math.ceil((end - start) / step))
    values = start + step * torch.arange(count, dtype=torch.float64, device=device)
    is_integer = all(float(value).is_integer() for value in (start, step))
    return values.long() if is_integer else values


@arithmetic
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sums along ``axis``, from its end if ``reverse``, each without its own value if
    ``exclusive``.
    """
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis) - x if exclusive else x.cumsum(axis)
    return sums.flip(axis) if reverse else sums


# ------------------------------------------------------------------------------- resizing


@moves
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """Repeat every value along the last two dimensions; the factors are whole numbers."""
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
    """Resize the last two dimensions by factors with linear interpolation.

    The new sizes are rounded down. The spacing is (in − 1) / (out − 1) with aligned corners, else
    in / out measured from pixel centres.
    """
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError("half_pixel_centers must be the opposite of align_corners")
    factors = (scale_factor_height, scale_factor_width)
    size = [math.floor(n * factor) for n, factor in zip(x.shape[-2:], factors, strict=True)]
    planes = x.reshape(1, -1, *x.shape[-2:])
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=align_corners)
    return resized.reshape(*x.shape[:-2], *size)
