"""A function of a saved package: typed values, constants in the weight file, operators in order.

The weight file is memory-mapped and read only where an operator needs it. Input is treated as
hostile until checked: sizes, types, names used before they are defined, programs of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtu_export.spec import BundleError, TensorSpec
from mtu_export.targets.coreml import package

BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
"""Types whose values are packed into bytes from the low end."""
DTYPES = {
    "float16": np.float16,
    "float32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "bool": np.bool_,
    **{name: np.int8 if name == "int4" else np.uint8 for name in BITS},
}
"""NumPy's type for each MIL type; a packed value takes one byte once it is read."""
FIELDS = {
    "float32": "floats",
    "int32": "ints",
    "int16": "ints",
    "uint16": "ints",
    "bool": "bools",
    "string": "strings",
}
"""The protobuf field that holds an immediate value; all other types are in ``bytes``."""
VALUE_LIMIT = 1 << 34
"""Largest size of a single value, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant of the program; packed types are unpacked on access.

    ``name`` is None for a value written into an operator itself. ``stored``: whether the value is
    in the weight file.
    """

    name: str | None
    spec: TensorSpec
    data: np.ndarray | str
    stored: bool = False

    def array(self) -> np.ndarray:
        """The values in their shape; a view of the mapped file where that is possible."""
        assert isinstance(self.data, np.ndarray)
        bits = BITS.get(self.spec.dtype)
        if bits is None:
            return self.data.reshape(self.spec.shape)
        count = math.prod(self.spec.shape)
        bitstream = np.unpackbits(self.data, bitorder="little")[: count * bits].reshape(count, bits)
        codes = np.packbits(bitstream, axis=1, bitorder="little")[:, 0]
        if self.spec.dtype == "int4":
            codes = (codes.astype(np.int8) ^ 8) - 8
        return codes.astype(DTYPES[self.spec.dtype]).reshape(self.spec.shape)


Operand = str | Constant
"""The name of a computed value, or a constant."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator of a program: its operands by parameter, and its declared outputs."""

    kind: str
    name: str
    operands: Mapping[str, tuple[Operand, ...]]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a package, with its operators in execution order.

    ``opset`` is 6 for iOS16, 7 for iOS17, 8 for iOS18.
    """

    package: str
    name: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


OPSETS = {"CoreML5": 5, "CoreML6": 6, "CoreML7": 7, "CoreML8": 8}


def read(path: Path, entry: str, model: Any = None) -> Function:
    """Read the function ``entry`` of a package; raises ``BundleError`` if it is malformed.

    ``model`` is the parsed package, if the caller already has it.
    """
    where = path.name
    functions = (package.parse(path) if model is None else model).mlProgram.functions
    if entry not in functions:
        raise BundleError(f"{where}: no function {entry!r}")
    function = functions[entry]
    if function.opset not in OPSETS:
        legal = ", ".join(OPSETS)
        raise BundleError(f"{where}: operator set {function.opset!r} is not one of {legal}")
    block = package.block(function, where)
    values = _values(path)
    inputs = tuple(_spec(value, where) for value in function.inputs)
    defined: dict[str, Constant | TensorSpec] = {spec.name: spec for spec in inputs}
    if len(defined) != len(function.inputs):
        raise BundleError(f"{where}: two inputs of one name")
    operations: list[Operation] = []
    for operator in block.operations:
        outputs = tuple(_spec(value, where) for value in operator.outputs)
        for spec in outputs:
            if spec.name in defined:
                raise BundleError(f"{where}: the value {spec.name!r} is defined twice")
        if operator.type == "const":
            defined |= {spec.name: _const(operator, spec, values, where) for spec in outputs}
        else:
            operations.append(_operation(operator, outputs, defined, values, where))
            defined |= {spec.name: spec for spec in outputs}
    for name in block.outputs:
        if name not in defined:
            raise BundleError(f"{where}: output {name!r} comes from no operator")
        if isinstance(defined[name], Constant):
            raise BundleError(f"{where}: output {name!r} is a constant")
    return Function(
        package=where,
        name=entry,
        opset=OPSETS[function.opset],
        inputs=inputs,
        outputs=tuple(block.outputs),
        operations=tuple(operations),
    )


def _const(
    operator: Any, spec: TensorSpec, values: Callable[[Any, str | None], Constant], where: str
) -> Constant:
    if len(operator.outputs) != 1 or "val" not in operator.attributes:
        raise BundleError(f"{where}: the constant {spec.name!r} has no value")
    constant = values(operator.attributes["val"], spec.name)
    if constant.spec != spec:
        raise BundleError(f"{where}: the constant {spec.name!r} is not of its declared type")
    return constant


def _operation(
    operator: Any,
    outputs: tuple[TensorSpec, ...],
    defined: Mapping[str, Constant | TensorSpec],
    values: Callable[[Any, str | None], Constant],
    where: str,
) -> Operation:
    name = outputs[0].name if outputs else operator.type
    attributes = dict(operator.attributes.items())
    attributes.pop("name", None)
    operands: dict[str, tuple[Operand, ...]] = {
        parameter: (values(value, None),) for parameter, value in attributes.items()
    }
    for parameter, argument in operator.inputs.items():
        if parameter in operands:
            raise BundleError(f"{where}: operator {name!r} has {parameter!r} twice")
        argument_operands: list[Operand] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                argument_operands.append(values(binding.value, None))
                continue
            if binding.name not in defined:
                raise BundleError(
                    f"{where}: operator {name!r} reads {binding.name!r} before it is defined"
                )
            definition = defined[binding.name]
            argument_operands.append(
                definition if isinstance(definition, Constant) else binding.name
            )
        operands[parameter] = tuple(argument_operands)
    if operator.blocks:
        raise BundleError(f"{where}: operator {name!r} ({operator.type}) has blocks inside")
    return Operation(kind=operator.type, name=name, operands=operands, outputs=outputs)


def _spec(value: Any, where: str) -> TensorSpec:
    if value.type.WhichOneof("type") != "tensorType":
        raise BundleError(f"{where}: the value {value.name!r} is not a tensor")
    shape, dtype = package.shape_of(value.type.tensorType, where)
    spec = TensorSpec(name=value.name, shape=shape, dtype=dtype.lower())
    _validate_spec(spec, where)
    return spec


def _validate_spec(spec: TensorSpec, where: str) -> None:
    if spec.dtype not in DTYPES and spec.dtype != "string":
        raise BundleError(f"{where}: the value {spec.name!r} is of type {spec.dtype}")
    value_bytes = np.dtype(DTYPES.get(spec.dtype, np.uint8)).itemsize
    if math.prod(spec.shape) * value_bytes > VALUE_LIMIT:
        raise BundleError(f"{where}: the value {spec.name!r} is over {VALUE_LIMIT >> 30} GB")


def _values(path: Path) -> Callable[[Any, str | None], Constant]:
    """Map a package's weight file; return a function that reads a ``MIL.Value``."""
    file, where = path / "Data" / package.WEIGHT_FILE, path.name
    size = file.stat().st_size if file.is_file() else 0
    # Copy on write: torch accepts no read-only memory, and the file must never change.
    mapped = np.memmap(file, np.uint8, "c") if size else np.empty(0, np.uint8)

    def read(value: Any, name: str | None) -> Constant:
        if value.type.WhichOneof("type") != "tensorType":
            raise BundleError(f"{where}: the constant {name!r} is not a tensor")
        shape, dtype = package.shape_of(value.type.tensorType, where)
        spec = TensorSpec(name=name or "", shape=shape, dtype=dtype.lower())
        _validate_spec(spec, where)
        if value.WhichOneof("value") == "blobFileValue":
            with file.open("rb") as weights:
                start, length = package.find_blob(value, weights, size, where)
            if start % 64 or spec.dtype not in DTYPES:
                raise BundleError(f"{where}: the blob at {value.blobFileValue.offset} is unaligned")
            raw: Any = mapped[start : start + length]
            data = raw if spec.dtype in BITS else raw.view(DTYPES[spec.dtype])
            return Constant(name=name, spec=spec, data=data, stored=True)
        return Constant(name=name, spec=spec, data=_immediate(value, spec, where))

    return read


def _immediate(value: Any, spec: TensorSpec, where: str) -> np.ndarray | str:
    """A value written into the program itself."""
    tensor, field = value.immediateValue.tensor, FIELDS.get(spec.dtype, "bytes")
    if tensor.WhichOneof("value") != field:
        raise BundleError(f"{where}: the constant {spec.name!r} does not hold {spec.dtype}")
    stored, count = getattr(tensor, field).values, math.prod(spec.shape)
    if field == "strings":
        if spec.shape or len(stored) != 1:
            raise BundleError(f"{where}: the constant {spec.name!r} is not one string")
        return str(stored[0])
    if field == "bytes":
        bits = BITS.get(spec.dtype, 8 * np.dtype(DTYPES[spec.dtype]).itemsize)
        if len(stored) != (count * bits + 7) // 8:
            raise BundleError(f"{where}: the constant {spec.name!r} has {len(stored)} bytes")
        raw = np.frombuffer(bytearray(stored), np.uint8)
        return raw if spec.dtype in BITS else raw.view(DTYPES[spec.dtype])
    if len(stored) != count:
        raise BundleError(
            f"{where}: the constant {spec.name!r} has {len(stored)} of {count} values"
        )
    try:
        return np.array(stored, dtype=DTYPES[spec.dtype])
    except OverflowError:
        raise BundleError(f"{where}: the constant {spec.name!r} is not {spec.dtype}") from None


def constants(operation: Operation) -> Iterator[Constant]:
    """The constants that an operation reads."""
    for operands in operation.operands.values():
        yield from (operand for operand in operands if isinstance(operand, Constant))


_MOST_UNPACKED = 64
"""Operations to unpack one constant; packages of coremltools have one or two."""


def require_shallow_constants(function: Function) -> None:
    """Refuse constants of constants that take too many operations to unpack.

    They are unpacked where they are read, so each level may double the work. Raises
    ``BundleError``.
    """
    counts: dict[str, int] = {}
    for operation in function.operations:
        if not operation.kind.startswith("constexpr_") or not operation.outputs:
            continue
        operands = (each for values in operation.operands.values() for each in values)
        names = (each for each in operands if isinstance(each, str))
        count = 1 + sum(counts.get(name, 0) for name in names)
        if count > _MOST_UNPACKED:
            raise BundleError(
                f"{function.package}: {operation.name[:80]!r} is a constant of too many others"
            )
        counts[operation.outputs[0].name] = count
