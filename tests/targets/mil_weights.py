"""Rows of the operator table for weights and activations made of codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil.types import np_int4_dtype, np_uint1_dtype, np_uint4_dtype

from .mil_cases import ALL, RANDOM, Case, normal

CODES = RANDOM.integers(-128, 128, (6, 4, 3)).astype(np.int8)
PALETTE = normal(16)


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    stream = np.unpackbits(values.reshape(-1, 1).astype(np.uint8), axis=1, bitorder="little")
    return np.packbits(stream[:, :bits].flatten(), bitorder="little")


def _weights(name: str, kind: str, opsets: tuple[int, ...], expected: Any, **plain: Any) -> Case:
    return Case(name=name, kind=kind, data={}, plain=plain, expected=expected, opsets=opsets)


NARROW = RANDOM.integers(-8, 8, (6, 5))
INDICES = RANDOM.integers(0, 16, (6, 5)).astype(np.uint8)
WEIGHTS = [
    *[
        _weights(
            f"constexpr_affine_dequantize-{axis}",
            "constexpr_affine_dequantize",
            ALL,
            lambda quantized_data, zero_point, scale, axis: torch.from_numpy(
                np.moveaxis(
                    (np.moveaxis(quantized_data.astype(float), axis, -1) - zero_point) * scale,
                    -1,
                    axis,
                )
            ),
            quantized_data=CODES,
            zero_point=RANDOM.integers(-9, 9, CODES.shape[axis]).astype(np.int8),
            scale=np.abs(normal(CODES.shape[axis])) / 64,
            axis=np.int32(axis),
        )
        for axis in (0, 1, -1)
    ],
    _weights(
        "constexpr_affine_dequantize-scalar",
        "constexpr_affine_dequantize",
        ALL,
        lambda quantized_data, zero_point, scale, axis: torch.from_numpy(
            (quantized_data.astype(float) - 128) * float(scale)
        ),
        quantized_data=(CODES.astype(np.int32) + 128).astype(np.uint8),
        zero_point=np.uint8(128),
        scale=np.float32(0.125),
        axis=np.int32(0),
    ),
    _weights(
        "constexpr_lut_to_dense-16",
        "constexpr_lut_to_dense",
        (6, 7),
        lambda indices, lut, shape: torch.from_numpy(lut[INDICES].astype(float)),
        indices=_packed(INDICES, 4),
        lut=PALETTE,
        shape=np.array([6, 5], np.uint32),
    ),
    _weights(
        "constexpr_lut_to_dense-6-bit",
        "constexpr_lut_to_dense",
        (6, 7),
        lambda indices, lut, shape: torch.from_numpy(lut[INDICES[:5] * 3].astype(float)),
        indices=_packed(INDICES[:5] * 3, 6),
        lut=normal(64),
        shape=np.array([5, 5], np.uint32),
    ),
    _weights(
        "constexpr_sparse_to_dense",
        "constexpr_sparse_to_dense",
        (6, 7),
        lambda nonzero_data, mask, shape: torch.from_numpy(np.diag(nonzero_data.astype(float))),
        nonzero_data=normal(5),
        mask=_packed(np.eye(5), 1),
        shape=np.array([5, 5], np.uint32),
    ),
    *[
        _weights(
            f"constexpr_blockwise_shift_scale-{shape}-{offset is not None}",
            "constexpr_blockwise_shift_scale",
            (8,),
            lambda data, scale, offset=None: torch.from_numpy(
                (data.astype(float) - (0 if offset is None else _spread(offset, data.shape)))
                * _spread(scale, data.shape)
            ),
            data=CODES,
            scale=np.abs(normal(*shape)) / 64,
            **({} if offset is None else {"offset": offset}),
        )
        for shape, offset in (
            ((6, 1, 1), None),
            ((3, 2, 1), RANDOM.integers(-9, 9, (3, 2, 1)).astype(np.int8)),
            ((1, 1, 3), None),
        )
    ],
    _weights(
        "constexpr_blockwise_shift_scale-int4",
        "constexpr_blockwise_shift_scale",
        (8,),
        lambda data, scale: torch.from_numpy(NARROW * _spread(scale, NARROW.shape)),
        data=NARROW.astype(np_int4_dtype),
        scale=np.abs(normal(3, 1)),
    ),
    _weights(
        "constexpr_lut_to_dense-groups",
        "constexpr_lut_to_dense",
        (8,),
        lambda indices, lut: torch.stack(
            [torch.from_numpy(lut[i // 2, 0, :, 0])[INDICES[i].astype(int)] for i in range(6)]
        ),
        indices=INDICES.astype(np_uint4_dtype),
        lut=normal(3, 1, 16, 1),
    ),
    _weights(
        "constexpr_lut_to_dense-vectors",
        "constexpr_lut_to_dense",
        (8,),
        lambda indices, lut, vector_axis: torch.from_numpy(
            np.concatenate([np.stack([lut[0, 0, INDICES[i], j] for j in (0, 1)]) for i in range(6)])
        ),
        indices=INDICES.astype(np_uint4_dtype),
        lut=normal(1, 1, 16, 2),
        vector_axis=np.int32(0),
    ),
    _weights(
        "constexpr_sparse_to_dense-18",
        "constexpr_sparse_to_dense",
        (8,),
        lambda nonzero_data, mask: torch.from_numpy(np.diag(nonzero_data.astype(float))),
        nonzero_data=normal(5),
        mask=np.eye(5).astype(np_uint1_dtype),
    ),
    *[
        Case(
            name=f"quantize-{dtype}",
            kind="quantize",
            data={"input": 3 * normal(4, 6)},
            plain={
                "scale": np.array([0.25, 0.125, 0.5, 0.0078125], np.float32),
                "zero_point": np.array([3, 7, 0, 5], dtype),
                "axis": np.int32(0),
                "output_dtype": dtype,
            },
            expected=lambda input, scale, zero_point, axis, output_dtype: torch.from_numpy(
                np.clip(
                    np.round(input.numpy() / scale.numpy()[:, None]) + zero_point[:, None],
                    *((0, 255) if output_dtype == "uint8" else (-128, 127)),
                )
            ),
            opsets=(7, 8),
        )
        for dtype in ("int8", "uint8")
    ],
    Case(
        name="dequantize",
        kind="dequantize",
        data={"input": CODES},
        plain={
            "scale": np.array([0.25, 0.125, 0.5, 1.5], np.float32),
            "zero_point": np.array([3, -7, 0, 5], np.int8),
            "axis": np.int32(1),
        },
        expected=lambda input, scale, zero_point, axis: (
            (input - zero_point[None, :, None]) * scale[:, None]
        ),
        opsets=(7, 8),
    ),
    _weights(
        "constexpr_cast",
        "constexpr_cast",
        (6, 7),
        lambda source_val, output_dtype: torch.from_numpy(source_val.astype(np.float64)),
        source_val=normal(5).astype(np.float16),
        output_dtype="fp32",
    ),
]


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis)
    return values
