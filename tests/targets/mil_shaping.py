"""Operators that move or select values: one row an operator and way to call it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .mil_cases import ALL, POOLED, Case, normal

A = normal(2, 3, 4)


def _pad(x: torch.Tensor, pad: Any, mode: str, constant_val: float = 0.0) -> torch.Tensor:
    places = [(0, 0)] * (3 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return torch.from_numpy(np.pad(x.numpy(), places, constant_values=constant_val))
    return torch.from_numpy(np.pad(x.numpy(), places, "edge" if mode == "replicate" else "reflect"))


SHAPING = [
    *[
        Case(
            name=f"reshape-{shape}",
            kind="reshape",
            data={"x": A},
            plain={"shape": np.array(shape, np.int32)},
            expected=lambda x, shape, made=made: x.reshape(made),
            opsets=opsets,
        )
        for shape, made, opsets in (
            ((4, 6), (4, 6), ALL),
            ((6, -1), (6, 4), ALL),
            ((0, 4, -1), (2, 4, 3), ALL),
            ((1, 6, 0, 1), (1, 6, 4, 1), ()),
            ((-1, 0), (6, 4), (7, 8)),
            ((0, 0, -1, 0), (1, 2, 3, 4), (7, 8)),
        )
        if opsets
    ],
    *[
        Case(name=f"{kind}-{axes}", kind=kind, data={"x": x}, plain={"axes": axes}, expected=f)
        for kind, x, axes, f in (
            ("expand_dims", A, (0, 2), lambda x, axes: x[None, :, None]),
            ("expand_dims", A, (-1,), lambda x, axes: x[..., None]),
            ("expand_dims", A, (1, -2), lambda x, axes: x[:, None, :, None]),
            ("squeeze", normal(1, 3, 1, 2), (2,), lambda x, axes: x[:, :, 0]),
            ("squeeze", normal(1, 3, 1, 2), (0, -2), lambda x, axes: x[0, :, 0]),
            ("reverse", A, (0, -1), lambda x, axes: torch.flip(x, (0, 2))),
        )
    ],
    Case(
        name="squeeze", kind="squeeze", data={"x": normal(1, 3, 1)}, expected=lambda x: x[0, :, 0]
    ),
    *[
        Case(
            name=f"transpose-{perm}",
            kind="transpose",
            data={"x": A},
            plain={"perm": perm},
            expected=lambda x, perm: torch.from_numpy(x.numpy().transpose([p % 3 for p in perm])),
        )
        for perm in ((1, 2, 0), (2, 0, 1), (1, -3, -1), (0, -1, -2))
    ],
    *[
        Case(
            name=f"concat-{axis}-{interleave}",
            kind="concat",
            data={"values": [normal(2, 3), normal(2, 3)]},
            plain={"axis": axis, "interleave": interleave},
            expected=f,
            opinion=not interleave,  # coremltools 9 infers it as if it were not interleaved
        )
        for axis, interleave, f in (
            (0, False, lambda values, axis, interleave: torch.vstack(values)),
            (-1, False, lambda values, axis, interleave: torch.hstack(values)),
            (
                0,
                True,
                lambda values, axis, interleave: torch.stack(
                    [values[0][0], values[1][0], values[0][1], values[1][1]]
                ),
            ),
            (
                -1,
                True,
                lambda values, axis, interleave: torch.stack(values, -1).reshape(2, 6),
            ),
        )
    ],
    Case(
        name="concat-uneven",
        kind="concat",
        data={"values": [normal(2, 3), normal(2, 1), normal(2, 4)]},
        plain={"axis": 1},
        expected=lambda values, axis: torch.hstack(values),
    ),
    Case(
        name="stack",
        kind="stack",
        data={"values": [normal(2, 3), normal(2, 3)]},
        plain={"axis": 1},
        expected=lambda values, axis: torch.cat([v[:, None] for v in values], 1),
    ),
    *[
        Case(name=f"split-{i}", kind="split", data={"x": normal(2, 6)}, plain=plain, expected=f)
        for i, (plain, f) in enumerate(
            (
                ({"num_splits": 2, "axis": 1}, lambda x, **_: [x[:, :3], x[:, 3:]]),
                ({"num_splits": 2, "axis": 0}, lambda x, **_: [x[:1], x[1:]]),
                (
                    {"split_sizes": (1, 3, 2), "axis": -1},
                    lambda x, **_: [x[:, :1], x[:, 1:4], x[:, 4:]],
                ),
            )
        )
    ],
    Case(
        name="tile",
        kind="tile",
        data={"x": A},
        plain={"reps": (2, 1, 3)},
        expected=lambda x, reps: torch.from_numpy(np.tile(x.numpy(), reps)),
    ),
    Case(
        name="shape",
        kind="shape",
        data={"x": A},
        expected=lambda x: torch.tensor([2, 3, 4]),
        exact=True,
    ),
    Case(
        name="fill_like",
        kind="fill_like",
        data={"ref_tensor": A},
        plain={"value": np.float32(2.5)},
        expected=lambda ref_tensor, value: torch.full((2, 3, 4), 2.5),
    ),
    *[
        Case(
            name=f"avg_pool-{kind}-{excluded}",
            kind="avg_pool",
            data={"x": POOLED},
            plain={
                "kernel_sizes": (2, 3),
                "strides": (2, 1),
                "pad_type": kind,
                "pad": (1, 1, 1, 1) if kind == "custom" else (0, 0, 0, 0),
                "exclude_padding_from_average": excluded,
            },
            expected=lambda x, kernel_sizes, strides, pad_type, pad, exclude_padding_from_average: (
                F.avg_pool2d(
                    x,
                    kernel_sizes,
                    strides,
                    1 if pad_type == "custom" else 0,
                    count_include_pad=not exclude_padding_from_average,
                )
            ),
        )
        for kind, excluded in (("valid", False), ("custom", False), ("custom", True))
    ],
    *[
        Case(
            name=f"range_1d-{step}",
            kind="range_1d",
            data={},
            plain={"start": start, "end": end, "step": step},
            expected=lambda start, end, step: torch.arange(start, end, step),
        )
        for start, end, step in ((0, 7, 2), (9, -1, -3))
    ],
    Case(
        name="fill",
        kind="fill",
        data={},
        plain={"shape": (2, 3), "value": np.float32(1.5)},
        expected=lambda shape, value: torch.full(shape, 1.5, dtype=torch.float64),
    ),
    *[
        Case(
            name=f"pad-{mode}-{pad}",
            kind="pad",
            data={"x": A},
            plain={"pad": pad, "mode": mode, **more},
            expected=_pad,
        )
        for mode, pad, more in (
            ("constant", (0, 0, 1, 2, 3, 0), {"constant_val": 0.5}),
            ("constant", (0, 1), {}),
            ("constant", (0, 1, 2, 0), {}),
            ("reflect", (1, 2, 3, 0), {}),
            ("replicate", (2, 1, 0, 4), {}),
        )
    ],
    *[
        Case(
            name=f"slice_by_index-{i}",
            kind="slice_by_index",
            data={"x": normal(4, 5, 6)},
            plain=plain,
            expected=lambda x, made=made, **_: torch.from_numpy(x.numpy()[made].copy()),
        )
        for i, (plain, made) in enumerate(
            (
                ({"begin": (1, 0, 2), "end": (3, 5, 6)}, np.s_[1:3, 0:5, 2:6]),
                ({"begin": (-3, 0, 2), "end": (-1, 5, -1)}, np.s_[-3:-1, 0:5, 2:-1]),
                (
                    {"begin": (0, 4, 1), "end": (4, 0, 6), "stride": (2, -1, 3)},
                    np.s_[0:4:2, 4:0:-1, 1:6:3],
                ),
                (
                    {
                        "begin": (1, 3, 2),
                        "end": (3, 4, 3),
                        "begin_mask": (True, False, False),
                        "end_mask": (False, True, False),
                    },
                    np.s_[:3, 3:, 2:3],
                ),
                (
                    {
                        "begin": (1, 2, -2),
                        "end": (0, 5, 0),
                        "squeeze_mask": (True, False, True),
                    },
                    np.s_[1, 2:5, -2],
                ),
            )
        )
    ],
    *[
        Case(
            name=f"slice_by_size-{size}",
            kind="slice_by_size",
            data={"x": normal(4, 5)},
            plain={"begin": begin, "size": size},
            expected=lambda x, begin, size, made=made: x[made],
        )
        for begin, size, made in (
            ((1, 2), (2, 3), np.s_[1:3, 2:5]),
            ((0, 3), (4, -1), np.s_[:, 3:]),
        )
    ],
]
