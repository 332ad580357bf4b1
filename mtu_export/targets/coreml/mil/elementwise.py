"""Elementwise operators: arithmetic with NumPy's broadcasting, functions, comparisons."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtu_export.targets.coreml.mil.operators import arithmetic, moves

DTYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""Legal values of ``cast``'s ``dtype``."""

# ------------------------------------------------------------------------------- two operands


@arithmetic
def add(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``."""
    return x + y


@arithmetic
def sub(x: Tensor, y: Tensor) -> Tensor:
    """``x − y``."""
    return x - y


@arithmetic
def mul(x: Tensor, y: Tensor) -> Tensor:
    """``x · y``."""
    return x * y


@arithmetic
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y`` of floating point numbers; refused on integers, for which it is not defined."""
    return x / y


@arithmetic
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y`` rounded towards minus infinity."""
    return torch.div(x, y, rounding_mode="floor")


@arithmetic
def mod(x: Tensor, y: Tensor) -> Tensor:
    """``x − y·floor(x / y)``: the remainder with the sign of ``y``."""
    return torch.remainder(x, y)


@arithmetic
def pow(x: Tensor, y: Tensor) -> Tensor:
    """``x`` to the power ``y``."""
    return torch.pow(x, y)


@arithmetic
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The greater of two values."""
    return torch.maximum(x, y)


@arithmetic
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The lesser of two values."""
    return torch.minimum(x, y)


@arithmetic
def equal(x: Tensor, y: Tensor) -> Tensor:
    """``x = y`` as bool."""
    return x == y


@arithmetic
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """``x ≠ y`` as bool."""
    return x != y


@arithmetic
def greater(x: Tensor, y: Tensor) -> Tensor:
    """``x > y`` as bool."""
    return x > y


@arithmetic
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """``x ≥ y`` as bool."""
    return x >= y


@arithmetic
def less(x: Tensor, y: Tensor) -> Tensor:
    """``x < y`` as bool."""
    return x < y


@arithmetic
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """``x ≤ y`` as bool."""
    return x <= y


@arithmetic
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Whether both are true."""
    return torch.logical_and(x, y)


@arithmetic
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Whether at least one is true."""
    return torch.logical_or(x, y)


@moves
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``cond`` is true, else ``b``; the three are broadcast together."""
    return torch.where(cond, a, b)


# ------------------------------------------------------------------------------- one operand


@moves
def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert: to integers towards zero, to float16 to nearest even, to bool by ``x ≠ 0``.

    Integers that do not fit keep their low bits.
    """
    kind = DTYPES[dtype]
    if kind is torch.uint16 and x.dtype is not torch.uint16:
        return (x.to(torch.int32) & 0xFFFF).to(kind)
    return x.to(kind)


@moves
def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


@arithmetic
def logical_not(x: Tensor) -> Tensor:
    """Whether ``x`` is false."""
    return torch.logical_not(x)


@arithmetic
def abs(x: Tensor) -> Tensor:
    """``|x|``."""
    return x.abs()


@arithmetic
def ceil(x: Tensor) -> Tensor:
    """The least integer not less than ``x``."""
    return x.ceil()


@arithmetic
def floor(x: Tensor) -> Tensor:
    """The greatest integer not greater than ``x``."""
    return x.floor()


@arithmetic
def round(x: Tensor) -> Tensor:
    """The nearest integer; halves go to the even one."""
    return x.round()


@arithmetic
def sign(x: Tensor) -> Tensor:
    """−1, 0 or 1."""
    return x.sign()


@arithmetic
def exp(x: Tensor) -> Tensor:
    """``e^x``."""
    return x.exp()


@arithmetic
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """``ln(x + epsilon)``."""
    return (x + epsilon).log()


@arithmetic
def sqrt(x: Tensor) -> Tensor:
    """``√x``."""
    return x.sqrt()


@arithmetic
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """``1 / √(x + epsilon)``."""
    return (x + epsilon).rsqrt()


@arithmetic
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """``1 / (x + epsilon)``."""
    return (x + epsilon).reciprocal()


@arithmetic
def square(x: Tensor) -> Tensor:
    """``x²``."""
    return x * x


@arithmetic
def sin(x: Tensor) -> Tensor:
    """The sine of radians."""
    return x.sin()


@arithmetic
def cos(x: Tensor) -> Tensor:
    """The cosine of radians."""
    return x.cos()


@arithmetic
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return x.tanh()


@arithmetic
def erf(x: Tensor) -> Tensor:
    """The Gauss error function."""
    return torch.erf(x)


@arithmetic
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``x`` clamped to the range from ``alpha`` to ``beta``."""
    return x.clamp(alpha, beta)


# ------------------------------------------------------------------------------- activations


@arithmetic
def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return x.clamp_min(0)


@arithmetic
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where it is not negative, else ``alpha·x``."""
    return torch.where(x < 0, alpha * x, x)


@arithmetic
def elu(x: Tensor, alpha: float) -> Tensor:
    """``x`` where it is positive, else ``alpha·(e^x − 1)``."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@arithmetic
def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e^−x)``."""
    return x.sigmoid()


@arithmetic
def silu(x: Tensor) -> Tensor:
    """``x · sigmoid(x)``."""
    return F.silu(x)


@arithmetic
def softplus(x: Tensor) -> Tensor:
    """``ln(1 + e^x)``."""
    return torch.logaddexp(x, torch.zeros_like(x))


@arithmetic
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """``x·Φ(x)``, or one of its two approximations.

    EXACT: ``x/2·(1 + erf(x/√2))``. SIGMOID_APPROXIMATION: ``x·sigmoid(1.702·x)``.
    TANH_APPROXIMATION: ``x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``.
    """
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu has no mode {mode!r}")
