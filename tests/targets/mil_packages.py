"""Programs made with coremltools' MIL builder, saved as packages, and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder, Function, Program, types

from mtu_export.targets.coreml import package

mb: Any = Builder
TARGETS = {6: ct.target.iOS16, 7: ct.target.iOS17, 8: ct.target.iOS18}
DIRECT = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}
"""What a program may have as inputs and outputs; other types come through a cast."""
Build = Callable[..., Sequence[Any]]


def save(path: Path, inputs: Mapping[str, np.ndarray], build: Build, opset: int) -> Path:
    """Save the program that ``build`` makes of its inputs; what it returns are the outputs.

    No pass of coremltools changes the program. Outputs are named ``out_<number>``.
    """
    specs = {
        name: mb.placeholder(value.shape, DIRECT.get(str(value.dtype), types.int32))
        for name, value in inputs.items()
    }
    program = Program()
    with Function(specs, opset_version=TARGETS[opset]) as function:
        inputs_ = [
            var if str(value.dtype) in DIRECT else mb.cast(x=var, dtype=_dtype_name(value.dtype))
            for var, value in zip(function.inputs.values(), inputs.values(), strict=True)
        ]
        function.set_outputs([_direct(var, f"out_{i}") for i, var in enumerate(build(*inputs_))])
    program.add_function("main", function)
    model: Any = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=TARGETS[opset],
        pass_pipeline=ct.PassPipeline.EMPTY,  # pyright: ignore
        skip_model_load=True,
    )
    model.save(str(path))
    package.seal(path, {})
    return path


def _dtype_name(dtype: np.dtype) -> str:
    return {"float16": "fp16", "float32": "fp32"}.get(str(dtype), str(dtype))


def _direct(var: Any, name: str) -> Any:
    if var.dtype in DIRECT.values():
        return mb.identity(x=var, name=name)
    return mb.cast(x=var, dtype="int32", name=name)


def feeds(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs in the types that the border of the program has."""
    return {
        name: value if str(value.dtype) in DIRECT else value.astype(np.int32)
        for name, value in inputs.items()
    }


def inferred(kind: str, opset: int, arguments: Mapping[str, Any]) -> list[np.ndarray] | None:
    """What coremltools itself says that an operator makes of constants; null where it says nothing.

    Its values are NumPy's, of the operator's own ``value_inference``.
    """
    values_: list[np.ndarray] | None = None

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=TARGETS[opset])
    def _(dummy: Any) -> Any:
        nonlocal values_
        try:
            result = getattr(mb, kind)(**arguments)
        except NotImplementedError:
            return dummy
        outputs = result if isinstance(result, (list, tuple)) else [result]
        values = [output.val for output in outputs]
        if any(value is None for value in values) and kind.startswith("constexpr_"):
            values = [output.op.materialized_val_inference() for output in outputs]
        if all(value is not None for value in values):
            values_ = [np.asarray(value) for value in values]
        return dummy

    return values_
