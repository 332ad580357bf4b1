"""Operators that reshape, reorder, join or split values, and compute nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu_export.targets.coreml.mil.operators import Bools, Ints, moves, version

IOS17 = 7
_MOST_PIECES = 1024
"""Limit of ``split``: every piece becomes an object before their number is checked."""


@moves
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """The same values in row-major order; −1 infers a size, 0 copies the dimension of ``x``.

    Before iOS17, a shape with a 0 must have the rank of ``x``.
    """
    if 0 in shape and len(shape) != x.ndim:
        raise ValueError("a 0 in shape needs the rank of x")
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


@version("reshape", IOS17, computes=False)
def reshape_from_the_right(x: Tensor, shape: Ints) -> Tensor:
    """As :func:`reshape`, but a 0 copies the dimension of ``x`` at the same place from the end.

    Where ``x`` has no such dimension, the size is 1.
    """
    missing = len(shape) - x.ndim
    aligned = [1 if i < missing else x.shape[i - missing] for i in range(len(shape))]
    return x.reshape([aligned[i] if size == 0 else size for i, size in enumerate(shape)])


@moves
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """New dimensions of size 1 at ``axes`` of the result; negative axes count from its end."""
    rank = x.ndim + len(axes)
    positions = {axis + rank if axis < 0 else axis for axis in axes}
    if len(positions) != len(axes) or not all(0 <= position < rank for position in positions):
        raise ValueError(f"axes {list(axes)} of rank {rank}")
    sizes = iter(x.shape)
    return x.reshape([1 if i in positions else next(sizes) for i in range(rank)])


@moves
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Remove the dimensions ``axes``, each of size 1; by default all of size 1."""
    if axes is None:
        return x.squeeze()
    for axis in axes:
        if x.shape[axis] != 1:
            raise ValueError(f"dimension {axis} has size {x.shape[axis]}")
    return x.squeeze(axes)


@moves
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Dimension ``i`` of the result is ``perm[i]`` of ``x``; negative counts from the end."""
    return x.permute(perm)


@moves
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Reverse the order along ``axes``, by default along all."""
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


@moves
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Join along ``axis``, one after the other.

    Interleaved, value ``i`` of the result is value ``i // n`` of operand ``i % n``, of ``n``.
    """
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@moves
def stack(values: list[Tensor], axis: int) -> Tensor:
    """Join along a new dimension ``axis``."""
    return torch.stack(values, axis)


@moves
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    """Cut along ``axis`` into ``num_splits`` equal pieces or into pieces of ``split_sizes``."""
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    if num_splits is None or not 0 < num_splits <= _MOST_PIECES or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} values in {num_splits} equal pieces")
    return torch.split(x, x.shape[axis] // num_splits, axis)


@moves
def tile(x: Tensor, reps: Ints) -> Tensor:
    """``x`` repeated ``reps[i]`` times along dimension ``i``."""
    if len(reps) != x.ndim or min(reps, default=1) < 1:
        raise ValueError(f"reps {list(reps)} for rank {x.ndim}")
    return x.repeat(reps)


@moves
def shape(x: Tensor) -> Tensor:
    """The sizes of the dimensions [rank] as int32."""
    return torch.tensor(x.shape, dtype=torch.int32, device=x.device)


@moves
def fill(shape: Ints, value: Tensor) -> Tensor:
    """A tensor of this shape, filled with one value."""
    return value.expand(shape)


@moves
def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    """A tensor of the shape of ``ref_tensor``, filled with one value."""
    return value.expand(ref_tensor.shape)


@moves
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last ``len(pad) / 2`` dimensions; ``pad`` holds (before, after) for each.

    ``constant`` fills in a value, ``reflect`` mirrors without repeating the edge, ``replicate``
    repeats the edge.
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim or min(pad, default=0) < 0:
        raise ValueError(f"pad {list(pad)} for rank {x.ndim}")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        indices = torch.arange(-before, last + 1 + after, device=x.device)
        if mode == "reflect" and max(before, after) <= last:
            indices = last - (indices.abs() - last).abs()
        elif mode == "replicate":
            indices = indices.clamp(0, last)
        else:
            raise ValueError(f"mode {mode!r} with pad {list(pad)}")
        x = x.index_select(axis, indices)
    return x


# --------------------------------------------------------------------------------- slices


@moves
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """``x[begin[0]:end[0]:stride[0], ...]`` with NumPy's rules.

    A true ``begin_mask`` or ``end_mask`` leaves that end open. A true ``squeeze_mask`` takes the
    single value at ``begin`` and drops the dimension.
    """
    no_axis = (False,) * x.ndim
    strides, squeezed = stride or (1,) * x.ndim, squeeze_mask or no_axis
    open_begin, open_end = begin_mask or no_axis, end_mask or no_axis
    if {len(argument) for argument in (begin, end, strides, squeezed, open_begin, open_end)} != {
        x.ndim
    }:
        raise ValueError(f"slices of another rank than {x.ndim}")
    for axis in reversed(range(x.ndim)):
        size, first = x.shape[axis], None if open_begin[axis] else begin[axis]
        if squeezed[axis]:
            x = x.select(axis, first or 0)
            continue
        last = None if open_end[axis] else end[axis]
        indices = range(*slice(first, last, strides[axis]).indices(size))
        if indices.step == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            counts = torch.arange(len(indices), device=x.device)
            x = x.index_select(axis, indices.start + indices.step * counts)
    return x


@moves
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``size[i]`` values from ``begin[i]`` on; a size of −1 takes all the rest."""
    if not len(begin) == len(size) == x.ndim:
        raise ValueError(f"begin and size of another rank than {x.ndim}")
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x
