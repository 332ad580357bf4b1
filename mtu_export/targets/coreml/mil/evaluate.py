"""Runs a function of a package with torch on the CPU, operator by operator.

Every value has the type that the program declares: operators on float16 compute in float32 and
round each result once. Weights stay in their file; compressed ones are decoded for each use and
freed after it, as is every value after its last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtu_export.spec import (
    Arrays,
    BundleError,
    ParityError,
    ResourceError,
    TensorSpec,
    ToolchainError,
    Unsupported,
    first_line,
)
from mtu_export.targets.coreml.mil import (  # noqa: F401 (they register their operators)
    elementwise,
    indexing,
    norms,
    operators,
    products,
    shaping,
    weights,
)
from mtu_export.targets.coreml.mil.operators import Operator
from mtu_export.targets.coreml.mil.program import (
    Constant,
    Function,
    Operand,
    Operation,
    constants,
    require_shallow_constants,
)

DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "bool": torch.bool,
    "int4": torch.int8,
    **{f"uint{bits}": torch.uint8 for bits in (1, 2, 3, 4, 6)},
}
_PRODUCTS = ("matmul", "scaled_dot_product_attention")
TERMS = 32
"""Terms per partial sum when accumulating in float16."""
ACCUMULATE = ("float32", "float16")
_MOST_INTEGERS = 1024
"""Limit of values in a parameter such as a shape: each becomes a much larger Python object."""
Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An operation bound to its implementation.

    ``data`` are its tensor operands, ``plain`` its other parameters, and ``last`` names the values
    that no later step reads.
    """

    operation: Operation
    operator: Operator
    data: Mapping[str, tuple[Operand, ...]]
    plain: Mapping[str, Any]
    last: tuple[str, ...]


class Evaluator:
    """A function ready to run.

    ``accumulate`` is the dtype in which products of float16 values are summed. With ``wide``
    nothing is rounded to float16, so that results agree between kernels to 1e-5. Raises
    ``ToolchainError`` that names every operator not implemented here, and ``BundleError`` for a
    program whose types or shapes are inconsistent; both are found without computing anything.
    """

    def __init__(
        self, function: Function, accumulate: str = "float32", *, wide: bool = False
    ) -> None:
        if accumulate not in ACCUMULATE:
            raise Unsupported(f"sums in {accumulate!r}; choose from {', '.join(ACCUMULATE)}")
        self.function = function
        self.wide = wide
        self.half_sums = accumulate == "float16"
        self.steps = _steps(function)
        self.decoders = {step.operation.outputs[0].name: step for step in self.steps if _lazy(step)}
        inputs = {
            spec.name: self._storage_dtype(
                torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta")
            )
            for spec in function.inputs
        }
        self._run_all(inputs, "meta")

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs, by name.

        Raises ``ToolchainError`` for inputs with wrong names, shapes or types, ``ParityError`` that
        names the operator in which a NaN or Inf first appears, ``ResourceError`` if out of memory.
        """
        tensors = {spec.name: _input(spec, inputs, self.function) for spec in self.function.inputs}
        if len(inputs) != len(tensors):
            raise ToolchainError(f"{self.function.package} takes {', '.join(tensors)} alone")
        tensors = {name: self._storage_dtype(value) for name, value in tensors.items()}
        outputs = self._run_all(dict(tensors), "cpu")
        if not all(torch.isfinite(value).all() for value in outputs.values()):
            watch = _NonFiniteWatch(self.function)
            self._run_all(dict(tensors), "cpu", watch)
            raise ParityError(watch.report())
        return {name: value.numpy().copy(order="C") for name, value in outputs.items()}

    def _run_all(self, values: Values, device: str, watch: _NonFiniteWatch | None = None) -> Values:
        """Run every step; ``values`` holds the inputs and is used as working memory."""
        returned = set(self.function.outputs)
        with torch.inference_mode():
            for step in self.steps:
                if _lazy(step) and not returned & {s.name for s in step.operation.outputs}:
                    continue
                results = self._run(step, values, device)
                if watch is not None:
                    names = [name for operands in step.data.values() for name in _names(operands)]
                    tensors = [self._operand(name, values, device) for name in names]
                    watch.see(step.operation, tensors, results)
                values.update(
                    {s.name: v for s, v in zip(step.operation.outputs, results, strict=True)}
                )
                for name in step.last:
                    values.pop(name, None)
        return {name: values[name] for name in self.function.outputs}

    def _run(self, step: _Step, values: Values, device: str) -> Sequence[Tensor]:
        """Run one step; returns its results in the declared types."""
        operation, operator = step.operation, step.operator
        arguments = dict(step.plain)
        if self.wide and operation.kind == "cast" and arguments["dtype"] == "fp16":
            arguments["dtype"] = "fp32"
        try:
            for parameter, operands in step.data.items():
                tensors = [self._operand(operand, values, device) for operand in operands]
                if operator.arithmetic:
                    tensors = [_widened(tensor, codes=_lazy(step)) for tensor in tensors]
                listed = _takes_list(operator, parameter)
                arguments[parameter] = tensors if listed else tensors[0]
            if "terms" in operator.parameters:
                half = self.half_sums and not self.wide and operation.outputs[0].dtype == "float16"
                arguments["terms"] = TERMS if half else None
            if "device" in operator.parameters:
                arguments["device"] = device
            results = operator.function(**arguments)
        except (BundleError, ResourceError):
            raise
        except MemoryError as error:
            raise ResourceError(_no_memory(self.function, operation)) from error
        except Exception as error:
            if "allocate memory" in str(error):
                raise ResourceError(_no_memory(self.function, operation)) from error
            message = f"{_place(self.function, operation)}: {first_line(error)}"
            raise (BundleError if device == "meta" else ToolchainError)(message) from error
        results = results if isinstance(results, (tuple, list)) else (results,)
        return self._as_declared(operation, operator, results)

    def _operand(self, operand: Operand, values: Values, device: str) -> Tensor:
        """The tensor of an operand; weights are read from their file, or decoded, on each call."""
        if isinstance(operand, Constant):
            if isinstance(operand.data, str):
                raise ValueError(f"{operand.name!r} is a string, not a tensor")
            if device == "meta":
                spec = operand.spec
                empty = torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta")
                return self._storage_dtype(empty)
            return self._storage_dtype(torch.from_numpy(np.asarray(operand.array())))
        if operand in self.decoders and operand not in values:
            return self._run(self.decoders[operand], values, device)[0]
        return values[operand]

    def _storage_dtype(self, value: Tensor) -> Tensor:
        """A value in the dtype in which it is kept between operators."""
        return value.float() if self.wide and value.dtype is torch.float16 else value

    def _as_declared(
        self, operation: Operation, operator: Operator, results: Sequence[Tensor]
    ) -> list[Tensor]:
        """Round results to their declared types; refuse undeclared shapes and kinds of number."""
        where = _place(self.function, operation)
        if len(results) != len(operation.outputs):
            raise BundleError(f"{where} makes {len(results)} values, not {len(operation.outputs)}")
        rounded = []
        for spec, value in zip(operation.outputs, results, strict=True):
            dtype = DTYPES.get(spec.dtype)
            dtype = torch.float32 if self.wide and dtype is torch.float16 else dtype
            fits = value.dtype == dtype if not operator.arithmetic else _fits(value.dtype, dtype)
            if tuple(value.shape) != spec.shape or not fits or dtype is None:
                kind = str(value.dtype).removeprefix("torch.")
                raise BundleError(
                    f"{where} makes {kind} {list(value.shape)}; "
                    f"the program says {spec.dtype} {list(spec.shape)}"
                )
            rounded.append(value.to(dtype))
        return rounded


def _lazy(step: _Step) -> bool:
    """Whether a step decodes weights, and so runs anew for each use of its result."""
    return step.operation.kind.startswith("constexpr_")


def _names(operands: Sequence[Operand]) -> list[str]:
    return [operand for operand in operands if isinstance(operand, str)]


def _widened(x: Tensor, *, codes: bool = False) -> Tensor:
    """An operand of arithmetic, widened; codes fit in float32, with half the memory of int64."""
    if x.dtype.is_floating_point or codes:
        return x.float()
    return x if x.dtype is torch.bool else x.long()


def _fits(computed: torch.dtype, declared: torch.dtype | None) -> bool:
    """Whether a computed value may be rounded to a declared type: no float to an integer."""
    if declared is None or torch.bool in (computed, declared):
        return computed == declared
    return declared.is_floating_point or not computed.is_floating_point


def _takes_list(operator: Operator, parameter: str) -> bool:
    return "list" in str(operator.parameters[parameter].annotation)


def _place(function: Function, operation: Operation) -> str:
    return f"{function.package}: operator {operation.name!r} ({operation.kind})"


def _no_memory(function: Function, operation: Operation) -> str:
    return f"{_place(function, operation)}: not enough memory"


def _input(spec: TensorSpec, inputs: Arrays, function: Function) -> Tensor:
    value = inputs.get(spec.name)
    if value is None or value.shape != spec.shape or value.dtype != np.dtype(spec.dtype):
        got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
        raise ToolchainError(
            f"{function.package} takes {spec.name} as {spec.dtype} {list(spec.shape)}, got {got}"
        )
    return torch.from_numpy(np.array(value))


# ------------------------------------------------------------------------------------ binding


def _steps(function: Function) -> list[_Step]:
    """Bind operations to their implementations, check parameters, plan when values are freed."""
    from mtu_export import __version__

    pairs = [(op, operators.find(op.kind, function.opset)) for op in function.operations]
    unknown = Counter(operation.kind for operation, operator in pairs if operator is None)
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
        raise ToolchainError(
            f"{function.package}: mil-evaluator {__version__} has no operator {listed}"
        )
    bound = [
        (operation, operator, *_bind(function, operation, operator))
        for operation, operator in pairs
        if operator
    ]
    read_later, steps = set(function.outputs), []
    lazy = {op.outputs[0].name for op, *_ in bound if op.kind.startswith("constexpr_")}
    require_shallow_constants(function)
    for operation, operator, data, plain in reversed(bound):
        names = [name for operands in data.values() for name in _names(operands)]
        if operation.outputs and operation.outputs[0].name in lazy and set(names) - lazy:
            raise BundleError(f"{_place(function, operation)} is not made of constants")
        outputs = [spec.name for spec in operation.outputs]
        last = tuple(n for n in dict.fromkeys([*names, *outputs]) if n not in read_later)
        read_later |= set(names)
        steps.append(
            _Step(operation=operation, operator=operator, data=data, plain=plain, last=last)
        )
    return steps[::-1]


def _bind(
    function: Function, operation: Operation, operator: Operator
) -> tuple[dict[str, tuple[Operand, ...]], dict[str, Any]]:
    """The tensor operands and the plain parameters of an operation."""
    where = _place(function, operation)
    data: dict[str, tuple[Operand, ...]] = {}
    plain: dict[str, Any] = {}
    for name, operands in operation.operands.items():
        accepted = operator.parameters.get(name)
        if accepted is None or accepted.kind is accepted.KEYWORD_ONLY:
            raise BundleError(f"{where} has no parameter {name!r}")
        if operator.is_data(name):
            if not operands or (len(operands) > 1 and not _takes_list(operator, name)):
                raise BundleError(f"{where} has {len(operands)} values as {name!r}")
            data[name] = operands
        else:
            plain[name] = _plain(where, name, operands, str(accepted.annotation))
    for name, accepted in operator.parameters.items():
        if accepted.default is accepted.empty and name not in operation.operands:
            raise BundleError(f"{where} lacks {name!r}")
    return data, plain


def _plain(where: str, name: str, operands: tuple[Operand, ...], annotation: str) -> Any:
    """A constant operand as the plain Python value that the implementation takes."""
    if len(operands) != 1 or not isinstance(operands[0], Constant):
        raise BundleError(f"{where}: {name!r} must be a constant")
    value = operands[0].data
    expected = annotation.partition(" |")[0]
    if expected == "str" and isinstance(value, str):
        return value
    if expected == "str" or isinstance(value, str):
        raise BundleError(f"{where}: {name!r} must be {expected}")
    array = operands[0].array()
    kinds = {"Ints": "iu", "int": "iu", "Bools": "b", "bool": "b", "float": "fiu"}[expected]
    if array.ndim != (1 if expected in ("Ints", "Bools") else 0) or array.dtype.kind not in kinds:
        raise BundleError(f"{where}: {name!r} must be {expected}")
    if array.size > _MOST_INTEGERS:
        raise BundleError(f"{where}: {name!r} has {array.size} values, over {_MOST_INTEGERS}")
    return tuple(array.tolist()) if array.ndim else array.item()


# ----------------------------------------------------------------------------------- NaN


class _NonFiniteWatch:
    """Finds the first operators that produce NaN, or Inf from finite operands."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.layer: str | None = None
        self.first: dict[str, str] = {}

    def see(self, operation: Operation, operands: list[Tensor], results: Sequence[Tensor]) -> None:
        """Inspect the operands and results of one step."""
        for argument in operation.operands.values():
            for operand in argument:
                if isinstance(operand, Constant) and operand.stored and operand.name:
                    name = operand.name.removesuffix("_to_fp16").removeprefix("p_")
                    self.layer = name.removesuffix("_weight").removesuffix("_bias")
        for name, test in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            if name in self.first or not any(test(value).any() for value in results):
                continue
            if name == "NaN" or not any(torch.isinf(value).any() for value in operands):
                self.first[name] = (
                    f"{operation.name!r} ({operation.kind}), {self._where(operation)}"
                )

    def _where(self, operation: Operation) -> str:
        layer = f"layer {self.layer!r}" if self.layer else "before any layer"
        if operation.kind not in _PRODUCTS or any(
            constant.stored for constant in constants(operation)
        ):
            return layer
        return f"the product of two activations, as in attention, after {layer}"

    def _hint(self) -> str:
        specs = [spec for operation in self.function.operations for spec in operation.outputs]
        if "Inf" not in self.first or all(spec.dtype != "float16" for spec in specs):
            return ""
        upcast_hint = '"force_upcast": true in vae/config.json, or '
        vae_hint = upcast_hint if self.function.package.startswith("VAE") else ""
        return f"; beyond float16's 65504, export it in float32: {vae_hint}--scheme fp32"

    def report(self) -> str:
        """One line on where NaN and Inf first appear, and what to do."""
        origins = sorted(self.first.items(), reverse=True)  # NaN, then the Inf that led to it
        lines = [f"{name} first appears in operator {where}" for name, where in origins]
        summary = "; ".join(lines) or "an output is not finite"
        return f"{self.function.package}: {summary}{self._hint()}"
