"""Operators that decode weights (affine, palettes, blocks, sparse) and quantise activations.

Codes of fewer than 8 bits arrive unpacked: one int8 or uint8 per code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtu_export.targets.coreml.mil.operators import Ints, arithmetic, moves, version

IOS18 = 8
_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A single value, or one per channel [C], shaped to broadcast along ``axis`` of ``x``."""
    if values.ndim == 0 or axis is None:
        return values
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return values.reshape(shape)


@arithmetic
def constexpr_affine_dequantize(
    quantized_data: Tensor, scale: Tensor, zero_point: Tensor, axis: int
) -> Tensor:
    """``scale · (quantized_data − zero_point)``; scale and zero point are one value or one per
    channel of ``axis``.
    """
    zero = _along(zero_point, quantized_data, axis)
    return _along(scale, quantized_data, axis) * (quantized_data - zero)


@arithmetic
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """``scale · (data − offset)`` with one scale per block of ``data``.

    Scale and offset have the rank of ``data``; along each dimension the length of a block is the
    size of ``data`` divided by the size of ``scale``.
    """
    blocks, shape = _blocks(data, scale), data.shape
    blocked = data.reshape(blocks)
    per_block = [size if i % 2 == 0 else 1 for i, size in enumerate(blocks)]
    blocked = blocked if offset is None else blocked - offset.reshape(per_block)
    return (scale.reshape(per_block) * blocked).reshape(shape)


def _blocks(data: Tensor, scale: Tensor) -> list[int]:
    """The shape of ``data`` with each dimension split into (blocks, values per block)."""
    if scale.ndim != data.ndim or any(n % m for n, m in zip(data.shape, scale.shape, strict=True)):
        raise ValueError(f"blocks {list(scale.shape)} of {list(data.shape)}")
    pairs = zip(data.shape, scale.shape, strict=True)
    return [size for n, m in pairs for size in (m, n // m)]


@moves
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Ints) -> Tensor:
    """Entries of a palette ``lut`` [2^b] selected by packed indices of b bits, as ``shape``.

    The first index is in the lowest bits of the first byte; one that does not fit continues in the
    lowest bits of the next byte.
    """
    bits, count = _bits(lut.shape[0]), math.prod(shape)
    if indices.ndim != 1 or indices.shape[0] != (count * bits + 7) // 8:
        raise ValueError(f"{list(indices.shape)} bytes for {count} indices of {bits} bits")
    return lut.index_select(0, unpack(indices, bits, count)).reshape(shape)


def _bits(entries: int) -> int:
    """Bits of an index into a palette."""
    bits = entries.bit_length() - 1
    if entries != 1 << bits or bits not in (1, 2, 3, 4, 6, 8):
        raise ValueError(f"a palette of {entries} entries")
    return bits


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """``count`` unsigned codes of ``bits`` bits, packed from the low end of each byte, as int32."""
    if bits == 8:
        return packed[:count].to(torch.int32)
    positions = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bitstream = ((packed[:, None] >> positions) & 1).flatten()[: count * bits].reshape(count, bits)
    powers = 1 << torch.arange(bits, dtype=torch.int32, device=packed.device)
    return (bitstream.to(torch.int32) * powers).sum(1, dtype=torch.int32)


@version("constexpr_lut_to_dense", IOS18, computes=False)
def palettes_to_dense(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """Entries of palettes ``lut`` [*groups, 2^b, v] by indices, with one palette per block.

    Along each dimension the length of a block is the size of ``indices`` divided by the size of
    ``groups``. With v > 1 an entry is a vector, laid along ``vector_axis``, which becomes v times
    as long.
    """
    groups, (entries, length) = lut.shape[:-2], lut.shape[-2:]
    if len(groups) != indices.ndim or (length > 1 and vector_axis is None):
        raise ValueError(f"palettes {list(lut.shape)} for indices {list(indices.shape)}")
    palettes = torch.arange(math.prod(groups), dtype=torch.int32, device=lut.device).reshape(groups)
    for axis, (n, m) in enumerate(zip(indices.shape, groups, strict=True)):
        if n % m:
            raise ValueError(f"palettes {list(lut.shape)} for indices {list(indices.shape)}")
        palettes = palettes.repeat_interleave(n // m, axis)
    positions = (palettes * entries + indices.to(torch.int32)).flatten()
    values = lut.reshape(-1, length).index_select(0, positions).reshape(*indices.shape, length)
    if length == 1:
        return values.squeeze(-1)
    axis = (vector_axis or 0) % indices.ndim
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@moves
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints) -> Tensor:
    """Values of ``nonzero_data`` in order where the packed bits of ``mask`` are 1, 0 elsewhere."""
    return dense(nonzero_data, unpack(mask, 1, math.prod(shape)).reshape(shape))


@version("constexpr_sparse_to_dense", IOS18, computes=False)
def dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """Values of ``nonzero_data`` in row-major order where ``mask`` is 1, 0 elsewhere."""
    empty = torch.zeros(mask.shape, dtype=nonzero_data.dtype, device=nonzero_data.device)
    return empty.masked_scatter(mask.bool(), nonzero_data)


@moves
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """float16 weights as float32."""
    if output_dtype != "fp32":
        raise ValueError(f"output_dtype {output_dtype!r}")
    return source_val.float()


# ------------------------------------------------------------------------------ activations


@arithmetic
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """``input / scale`` rounded half to even, plus zero_point, clamped to the codes' range."""
    least, most = _RANGES[output_dtype]
    codes = (input / _along(scale, input, axis)).round()
    codes = codes if zero_point is None else codes + _along(zero_point, input, axis)
    return codes.clamp(least, most).long()


@arithmetic
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``scale · (input − zero_point)``; scale and zero point are one value or one per channel of
    ``axis``.
    """
    codes = input if zero_point is None else input - _along(zero_point, input, axis)
    return _along(scale, input, axis) * codes.float()
