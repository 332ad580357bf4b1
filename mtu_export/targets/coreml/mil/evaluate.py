"""Runs a function of a package with torch on the CPU, operator by operator.

Every value has the type that the program declares: a float16 value is rounded to float16 when it
is made, once an operator. In between, sums and functions are float32. Weights stay in their file;
those made of codes are made for each use and let go after it, as is every value after its last.
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
)
from mtu_export.targets.coreml.mil import (  # noqa: F401 (they enter their operators)
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
"""Terms of a partial sum where float16 accumulates."""
ACCUMULATE = ("float32", "float16")
_MOST_INTEGERS = 1024
"""Of a parameter such as a shape: they become Python objects, many times as large."""
Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An operation with its meaning; ``plain`` are its parameters that are no tensors."""

    operation: Operation
    operator: Operator
    data: Mapping[str, tuple[Operand, ...]]
    plain: Mapping[str, Any]
    last: tuple[str, ...]
    """Values that no later step reads."""


class Evaluator:
    """A function ready to run.

    ``accumulate`` says in what the products of float16 values are summed. A ``wide`` one rounds
    nothing to float16: what the weights mean, the same with other kernels to 1e-5. Raises
    ``ToolchainError`` that names every operator without a meaning here, ``BundleError`` for a
    program whose types or shapes do not fit one another; nothing is computed for that.
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
        self.made = {step.operation.outputs[0].name: step for step in self.steps if _lazy(step)}
        inputs = {
            spec.name: self._kept(torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta"))
            for spec in function.inputs
        }
        self._walk(inputs, "meta")

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises ``ToolchainError`` for inputs of other names, shapes or types, ``ParityError`` that
        names the operator where a NaN or infinite output begins, ``ResourceError`` without memory.
        """
        given = {spec.name: _given(spec, inputs, self.function) for spec in self.function.inputs}
        if len(inputs) != len(given):
            raise ToolchainError(f"{self.function.package} takes {', '.join(given)} alone")
        given = {name: self._kept(value) for name, value in given.items()}
        found = self._walk(dict(given), "cpu")
        if not all(torch.isfinite(value).all() for value in found.values()):
            watch = _Watch(self.function)
            self._walk(dict(given), "cpu", watch)
            raise ParityError(watch.found())
        return {name: value.numpy().copy(order="C") for name, value in found.items()}

    def _walk(self, values: Values, device: str, watch: _Watch | None = None) -> Values:
        wanted = set(self.function.outputs)
        with torch.inference_mode():
            for step in self.steps:
                if _lazy(step) and not wanted & {s.name for s in step.operation.outputs}:
                    continue
                made = self._run(step, values, device)
                if watch is not None:
                    names = [name for row in step.data.values() for name in _names(row)]
                    operands = [self._operand(name, values, device) for name in names]
                    watch.see(step.operation, operands, made)
                values.update(
                    {s.name: v for s, v in zip(step.operation.outputs, made, strict=True)}
                )
                for name in step.last:
                    values.pop(name, None)
        return {name: values[name] for name in self.function.outputs}

    def _run(self, step: _Step, values: Values, device: str) -> Sequence[Tensor]:
        """What one step makes, in the types that it declares."""
        operation, operator = step.operation, step.operator
        arguments = dict(step.plain)
        if self.wide and operation.kind == "cast" and arguments["dtype"] == "fp16":
            arguments["dtype"] = "fp32"
        try:
            for parameter, row in step.data.items():
                tensors = [self._operand(operand, values, device) for operand in row]
                if operator.arithmetic:
                    tensors = [_widened(tensor, codes=_lazy(step)) for tensor in tensors]
                listed = _takes_list(operator, parameter)
                arguments[parameter] = tensors if listed else tensors[0]
            if "terms" in operator.parameters:
                half = self.half_sums and not self.wide and operation.outputs[0].dtype == "float16"
                arguments["terms"] = TERMS if half else None
            if "device" in operator.parameters:
                arguments["device"] = device
            found = operator.function(**arguments)
        except (BundleError, ResourceError):
            raise
        except MemoryError as error:
            raise ResourceError(_no_memory(self.function, operation)) from error
        except Exception as error:
            if "allocate memory" in str(error):
                raise ResourceError(_no_memory(self.function, operation)) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            line = f"{_place(self.function, operation)}: {reason}"
            raise (BundleError if device == "meta" else ToolchainError)(line) from error
        found = found if isinstance(found, (tuple, list)) else (found,)
        return self._declared(operation, operator, found)

    def _operand(self, operand: Operand, values: Values, device: str) -> Tensor:
        """A value; a weight comes from its file, or is made of its codes, now."""
        if isinstance(operand, Constant):
            if isinstance(operand.data, str):
                raise ValueError(f"a string where a tensor is wanted: {operand.name!r}")
            if device == "meta":
                spec = operand.spec
                empty = torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta")
                return self._kept(empty)
            return self._kept(torch.from_numpy(np.asarray(operand.array())))
        if operand in self.made and operand not in values:
            return self._run(self.made[operand], values, device)[0]
        return values[operand]

    def _kept(self, value: Tensor) -> Tensor:
        """A value as it is kept between operators."""
        return value.float() if self.wide and value.dtype is torch.float16 else value

    def _declared(
        self, operation: Operation, operator: Operator, found: Sequence[Tensor]
    ) -> list[Tensor]:
        """Results rounded to their declared types; refuses other shapes and kinds of number."""
        where = _place(self.function, operation)
        if len(found) != len(operation.outputs):
            raise BundleError(f"{where} makes {len(found)} values, not {len(operation.outputs)}")
        made = []
        for spec, value in zip(operation.outputs, found, strict=True):
            dtype = DTYPES.get(spec.dtype)
            dtype = torch.float32 if self.wide and dtype is torch.float16 else dtype
            same = value.dtype == dtype if not operator.arithmetic else _fits(value.dtype, dtype)
            if tuple(value.shape) != spec.shape or not same or dtype is None:
                kind = str(value.dtype).removeprefix("torch.")
                raise BundleError(
                    f"{where} makes {kind} {list(value.shape)}; "
                    f"the program says {spec.dtype} {list(spec.shape)}"
                )
            made.append(value.to(dtype))
        return made


def _lazy(step: _Step) -> bool:
    return step.operation.kind.startswith("constexpr_")


def _names(row: Sequence[Operand]) -> list[str]:
    return [operand for operand in row if isinstance(operand, str)]


def _widened(x: Tensor, *, codes: bool = False) -> Tensor:
    """An operand of arithmetic; codes of weights are as exact in float32, at half the memory."""
    if x.dtype.is_floating_point or codes:
        return x.float()
    return x if x.dtype is torch.bool else x.long()


def _fits(made: torch.dtype, declared: torch.dtype | None) -> bool:
    """Whether a computed value may be rounded to a declared type: no float to an integer."""
    if declared is None or torch.bool in (made, declared):
        return made == declared
    return declared.is_floating_point or not made.is_floating_point


def _takes_list(operator: Operator, parameter: str) -> bool:
    return "list" in str(operator.parameters[parameter].annotation)


def _place(function: Function, operation: Operation) -> str:
    return f"{function.package}: operator {operation.name!r} ({operation.kind})"


def _no_memory(function: Function, operation: Operation) -> str:
    return f"{_place(function, operation)}: not enough memory"


def _given(spec: TensorSpec, inputs: Arrays, function: Function) -> Tensor:
    value = inputs.get(spec.name)
    if value is None or value.shape != spec.shape or value.dtype != np.dtype(spec.dtype):
        got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
        raise ToolchainError(
            f"{function.package} takes {spec.name} as {spec.dtype} {list(spec.shape)}, got {got}"
        )
    return torch.from_numpy(np.array(value))


# ------------------------------------------------------------------------------------ binding


def _steps(function: Function) -> list[_Step]:
    """Operations with their meanings, parameters checked, and the values to let go after each."""
    from mtu_export import __version__

    rows = [(row, operators.find(row.kind, function.opset)) for row in function.operations]
    unknown = Counter(row.kind for row, operator in rows if operator is None)
    if unknown:
        said = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
        raise ToolchainError(
            f"{function.package}: mil-evaluator {__version__} has no operator {said}"
        )
    bound = [
        (row, operator, *_bound(function, row, operator)) for row, operator in rows if operator
    ]
    seen, steps = set(function.outputs), []
    lazy = {row.outputs[0].name for row, *_ in bound if row.kind.startswith("constexpr_")}
    for row, operator, data, plain in reversed(bound):
        names = [name for operands in data.values() for name in _names(operands)]
        if row.outputs and row.outputs[0].name in lazy and set(names) - lazy:
            raise BundleError(f"{_place(function, row)} is not made of constants")
        outputs = [spec.name for spec in row.outputs]
        last = tuple(n for n in dict.fromkeys([*names, *outputs]) if n not in seen)
        seen |= set(names)
        steps.append(_Step(operation=row, operator=operator, data=data, plain=plain, last=last))
    return steps[::-1]


def _bound(
    function: Function, operation: Operation, operator: Operator
) -> tuple[dict[str, tuple[Operand, ...]], dict[str, Any]]:
    """Tensor operands and plain parameters of an operation."""
    where = _place(function, operation)
    data: dict[str, tuple[Operand, ...]] = {}
    plain: dict[str, Any] = {}
    for name, row in operation.operands.items():
        known = operator.parameters.get(name)
        if known is None or known.kind is known.KEYWORD_ONLY:
            raise BundleError(f"{where} has no parameter {name!r}")
        if operator.is_data(name):
            if not row or (len(row) > 1 and not _takes_list(operator, name)):
                raise BundleError(f"{where} has {len(row)} values as {name!r}")
            data[name] = row
        else:
            plain[name] = _plain(where, name, row, str(known.annotation))
    for name, known in operator.parameters.items():
        if known.default is known.empty and name not in operation.operands:
            raise BundleError(f"{where} lacks {name!r}")
    return data, plain


def _plain(where: str, name: str, row: tuple[Operand, ...], annotation: str) -> Any:
    """A constant of the program as the Python value that a function takes."""
    if len(row) != 1 or not isinstance(row[0], Constant):
        raise BundleError(f"{where}: {name!r} must be a constant")
    value = row[0].data
    wanted = annotation.partition(" |")[0]
    if wanted == "str" and isinstance(value, str):
        return value
    if wanted == "str" or isinstance(value, str):
        raise BundleError(f"{where}: {name!r} must be {wanted}")
    array = row[0].array()
    kinds = {"Ints": "iu", "int": "iu", "Bools": "b", "bool": "b", "float": "fiu"}[wanted]
    if array.ndim != (1 if wanted in ("Ints", "Bools") else 0) or array.dtype.kind not in kinds:
        raise BundleError(f"{where}: {name!r} must be {wanted}")
    if array.size > _MOST_INTEGERS:
        raise BundleError(f"{where}: {name!r} has {array.size} values, over {_MOST_INTEGERS}")
    return tuple(array.tolist()) if array.ndim else array.item()


# ----------------------------------------------------------------------------------- NaN


class _Watch:
    """Finds where NaN and Inf begin: the first operator that makes them of finite operands."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.layer: str | None = None
        self.first: dict[str, str] = {}

    def see(self, operation: Operation, operands: list[Tensor], made: Sequence[Tensor]) -> None:
        """Look at one step."""
        for row in operation.operands.values():
            for operand in row:
                if isinstance(operand, Constant) and operand.stored and operand.name:
                    name = operand.name.removesuffix("_to_fp16").removeprefix("p_")
                    self.layer = name.removesuffix("_weight").removesuffix("_bias")
        for name, test in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            if name in self.first or not any(test(value).any() for value in made):
                continue
            if name == "NaN" or not any(torch.isinf(value).any() for value in operands):
                self.first[name] = (
                    f"{operation.name!r} ({operation.kind}), {self._where(operation)}"
                )

    def _where(self, operation: Operation) -> str:
        place = f"layer {self.layer!r}" if self.layer else "before any layer"
        if operation.kind not in _PRODUCTS or any(c.stored for c in constants(operation)):
            return place
        return f"the product of two activations, as in attention, after {place}"

    def _cure(self) -> str:
        specs = [spec for operation in self.function.operations for spec in operation.outputs]
        if "Inf" not in self.first or all(spec.dtype != "float16" for spec in specs):
            return ""
        upcast = '"force_upcast": true in vae/config.json, or '
        vae = upcast if self.function.package.startswith("VAE") else ""
        return f"; beyond float16's 65504, export it in float32: {vae}--scheme fp32"

    def found(self) -> str:
        """One line on where it begins."""
        rows = sorted(self.first.items(), reverse=True)  # NaN, then the Inf that led to it
        said = [f"{name} first appears in operator {at}" for name, at in rows]
        where = "; ".join(said) or "an output is not finite"
        return f"{self.function.package}: {where}{self._cure()}"
