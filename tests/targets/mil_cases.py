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
