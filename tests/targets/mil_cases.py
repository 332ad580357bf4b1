"""One row an operator and way to call it: arguments, and what torch says that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

ALL = (6, 7, 8)
RANDOM = np.random.default_rng(7)
POOLED = np.random.default_rng(8).standard_normal((1, 3, 6, 8)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """``data`` are the operands that are computed, ``plain`` the constants of the program.

    ``expected`` takes operands and constants by name, the operands in float64.
    """

    name: str
    kind: str
    data: Mapping[str, Any]
    plain: Mapping[str, Any] = field(default_factory=dict)
    expected: Callable[..., Any]
    opsets: tuple[int, ...] = ALL
    exact: bool = False
    opinion: bool = True
    """coremltools' own value inference must agree, where there is one. False where it is wrong."""
    half: bool = True
    """Worth a run in float16."""

    def floats(self) -> bool:
        """Whether an operand is a floating point number, so that float16 is worth a run."""
        tensors = [v for value in self.data.values() for v in _list(value)]
        return any(tensor.dtype.kind == "f" for tensor in tensors)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(low: int, high: int, *shape: int, dtype: str = "int32") -> np.ndarray:
    return RANDOM.integers(low, high, shape).astype(dtype)


def flags(*shape: int) -> np.ndarray:
    return RANDOM.random(shape) > 0.5


def _binary(kind: str, expected: Callable[..., Any], **options: Any) -> list[Case]:
    inputs = [(normal(2, 3, 4), normal(2, 3, 4)), (normal(2, 3, 4), normal(3, 1))]
    inputs += [(normal(3, 1), normal(2, 1, 4))]
    return [
        Case(name=f"{kind}-{i}", kind=kind, data={"x": x, "y": y}, expected=expected, **options)
        for i, (x, y) in enumerate(inputs)
    ]


def _unary(
    kind: str, expected: Callable[..., Any], x: np.ndarray | None = None, **options: Any
) -> Case:
    value = 3 * normal(3, 5) if x is None else x
    return Case(name=kind, kind=kind, data={"x": value}, expected=expected, **options)


INTS = {"x": whole(-9, 9, 3, 4), "y": np.array([[-3], [2], [4]], np.int32)}
SAME = np.array([[1, 2, 3], [1, 5, 3]], np.float32)
ELEMENTWISE = [
    *_binary("add", lambda x, y: x + y),
    *_binary("sub", lambda x, y: x - y),
    *_binary("mul", lambda x, y: x * y),
    *_binary("real_div", lambda x, y: x / y),
    *_binary("floor_div", lambda x, y: torch.floor(x / y)),
    *_binary("mod", lambda x, y: x - y * torch.floor(x / y)),
    *_binary("maximum", lambda x, y: torch.where(x > y, x, y)),
    *_binary("minimum", lambda x, y: torch.where(x > y, y, x)),
    *_binary("greater", lambda x, y: x > y, exact=True),
    *_binary("greater_equal", lambda x, y: x >= y, exact=True),
    *_binary("less", lambda x, y: x < y, exact=True),
    *_binary("less_equal", lambda x, y: x <= y, exact=True),
    *[
        Case(name=f"{kind}-same", kind=kind, data={"x": SAME, "y": SAME[::-1].copy()}, expected=f)
        for kind, f in (
            ("equal", lambda x, y: x == y),
            ("not_equal", lambda x, y: x != y),
            ("greater", lambda x, y: x > y),
            ("greater_equal", lambda x, y: x >= y),
            ("less", lambda x, y: x < y),
            ("less_equal", lambda x, y: x <= y),
        )
    ],
    Case(
        name="pow",
        kind="pow",
        data={"x": np.abs(normal(2, 3)), "y": normal(3)},
        expected=lambda x, y: torch.exp(y * torch.log(x)),
    ),
    *[
        Case(name=f"{kind}-int", kind=kind, data=INTS, expected=f, exact=True)
        for kind, f in (
            ("add", lambda x, y: x + y),
            ("mul", lambda x, y: x * y),
            ("floor_div", lambda x, y: torch.floor(x.double() / y)),
            ("mod", lambda x, y: x - y * torch.floor(x.double() / y)),
        )
    ],
    *[
        Case(name=kind, kind=kind, data={"x": flags(3, 4), "y": flags(4)}, expected=f, exact=True)
        for kind, f in (
            ("logical_and", lambda x, y: x & y),
            ("logical_or", lambda x, y: x | y),
        )
    ],
    Case(name="logical_not", kind="logical_not", data={"x": flags(3, 4)}, expected=lambda x: ~x),
    Case(
        name="select",
        kind="select",
        data={"cond": flags(3, 1), "a": normal(2, 3, 4), "b": normal(2, 3, 4)},
        expected=lambda cond, a, b: cond * a + ~cond * b,
    ),
    _unary("abs", lambda x: x * torch.sign(x)),
    _unary("ceil", lambda x: -torch.floor(-x)),
    _unary("floor", lambda x: -torch.ceil(-x)),
    _unary(
        "round",
        lambda x: torch.round(x),
        np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1.2], np.float32),
    ),
    _unary("sign", lambda x: (x > 0).double() - (x < 0).double()),
    _unary("exp", lambda x: torch.e**x),
    _unary("sqrt", lambda x: x**0.5, np.abs(normal(3, 5))),
    _unary("square", lambda x: x**2),
    _unary("sin", lambda x: torch.sin(x)),
    _unary("cos", lambda x: torch.sin(x + torch.pi / 2)),
    _unary("tanh", lambda x: 1 - 2 / (torch.exp(2 * x) + 1)),
    _unary("erf", lambda x: torch.erf(x)),
    _unary("identity", lambda x: x),
    _unary("relu", lambda x: x * (x > 0)),
    _unary("sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
    _unary("silu", lambda x: x / (1 + torch.exp(-x))),
    _unary("softplus", lambda x: torch.log1p(torch.exp(x))),
    *[
        Case(name=f"{kind}-{e}", kind=kind, data={"x": x}, plain={"epsilon": e}, expected=f)
        for kind, f in (
            ("log", lambda x, epsilon: torch.log(x + epsilon)),
            ("rsqrt", lambda x, epsilon: (x + epsilon) ** -0.5),
            ("inverse", lambda x, epsilon: 1 / (x + epsilon)),
        )
        for x in (np.abs(normal(3, 5)),)
        for e in (0.5, 0.03125)
    ],
    _unary("inverse", lambda x: 1 / (x + 1e-4), np.array([0.02, 0.01, 5], np.float32), half=False),
    Case(
        name="clip",
        kind="clip",
        data={"x": 3 * normal(3, 5)},
        plain={"alpha": -0.5, "beta": 1.5},
        expected=lambda x, alpha, beta: torch.clamp(x, alpha, beta),
    ),
    *[
        Case(name=kind, kind=kind, data={"x": normal(3, 5)}, plain={"alpha": 0.25}, expected=f)
        for kind, f in (
            ("leaky_relu", lambda x, alpha: F.leaky_relu(x, alpha)),
            ("elu", lambda x, alpha: F.elu(x, alpha)),
        )
    ],
    *[
        Case(name=f"gelu-{mode}", kind="gelu", data={"x": 2 * normal(4, 5)}, expected=f, plain=mode)
        for mode, f in (
            ({"mode": "EXACT"}, lambda x, mode: F.gelu(x)),
            ({"mode": "TANH_APPROXIMATION"}, lambda x, mode: F.gelu(x, approximate="tanh")),
            ({"mode": "SIGMOID_APPROXIMATION"}, lambda x, mode: x / (1 + torch.exp(-1.702 * x))),
        )
    ],
    *[
        Case(
            name=f"cast-{x.dtype}-{dtype}",
            kind="cast",
            data={"x": x},
            plain={"dtype": dtype},
            expected=lambda x, dtype: torch.from_numpy(
                x.numpy().astype({"fp16": "float16", "fp32": "float32"}.get(dtype, dtype))
            ),
            opsets=opsets,
            exact=True,
        )
        for x, dtype, opsets in (
            (np.array([-2.7, -0.4, 0.0, 0.6, 3.9], np.float32), "int32", ALL),
            (np.array([-2.7, 0.0, 1e-3], np.float32), "bool", ALL),
            (whole(-90, 90, 6), "fp32", ALL),
            (whole(0, 2, 6), "bool", ALL),
            (np.array([0, 5, 32767, -32768], np.int32), "int16", (7, 8)),
            (np.array([0, 5, 49407, 65535], np.int32), "uint16", (7, 8)),
        )
    ],
]
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
