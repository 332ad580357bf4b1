"""Tensors that a map arranges, built from the memory-mapped sources of their pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtu_export.checkpoint.maps.layout import Piece, TargetTensor
from mtu_export.checkpoint.weights import Header, tensor

if TYPE_CHECKING:
    import torch


def build(target: TargetTensor, headers: Mapping[str, Header]) -> torch.Tensor:
    """One tensor of the target; a piece that is not joined stays memory-mapped."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    if target.constant is not None:
        dtype = dtypes.get(target.dtype, torch.bfloat16)
        return torch.full(target.shape, target.constant, dtype=dtype)
    values = [_piece(piece, headers) for piece in target.pieces]
    join = target.pieces[0].rule.join
    if join is None:
        return values[0]
    return (torch.stack if join.kind == "stack" else torch.cat)(values, join.axis)


def _piece(piece: Piece, headers: Mapping[str, Header]) -> torch.Tensor:
    import torch

    rule, value = piece.rule, tensor(headers, piece.source)
    if rule.squeeze is not None:
        value = value.reshape([n for i, n in enumerate(value.shape) if i not in rule.squeeze])
    if rule.transpose is not None:
        value = value.permute(*rule.transpose)
    if piece.part is not None:
        axis, start, stop = piece.part
        value = (
            value.narrow(axis, start, stop - start) if piece.whole else value.select(axis, start)
        )
    if rule.swap_halves is not None:
        first, second = value.chunk(2, rule.swap_halves)
        value = torch.cat([second, first], rule.swap_halves)
    return value
