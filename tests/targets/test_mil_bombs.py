"""MIL programs that are small on disk and endless to evaluate."""

from __future__ import annotations

import numpy as np
import pytest

from mtu_export.spec import BundleError, TensorSpec
from mtu_export.targets.coreml.mil.evaluate import Evaluator
from mtu_export.targets.coreml.mil.program import Constant, Function, Operand, Operation


def spec(name: str) -> TensorSpec:
    return TensorSpec(name=name, shape=(1,))


def chain(length: int) -> Function:
    """Constants, each made of the one before twice: 2^length operations where they are read."""
    previous: Operand = Constant(name="c", spec=spec("c"), data=np.ones(1, np.float32))
    operations = []
    for number in range(length):
        name = f"d{number}"
        operations.append(
            Operation(
                kind="constexpr_blockwise_shift_scale",
                name=name,
                operands={"data": (previous,), "scale": (previous,)},
                outputs=(spec(name),),
            )
        )
        previous = name
    operations.append(
        Operation(
            kind="add",
            name="o",
            operands={"x": ("x",), "y": (previous,)},
            outputs=(spec("o"),),
        )
    )
    return Function(
        package="p",
        name="main",
        opset=8,
        inputs=(spec("x"),),
        outputs=("o",),
        operations=tuple(operations),
    )


def test_constants_of_constants_are_evaluated() -> None:
    assert Evaluator(chain(3)) is not None


@pytest.mark.parametrize("length", [8, 60])
def test_an_exponential_chain_of_constants_is_refused(length: int) -> None:
    with pytest.raises(BundleError, match="is a constant of too many others"):
        Evaluator(chain(length))
