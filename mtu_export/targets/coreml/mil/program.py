"""A function of a saved package: typed values, constants in the weight file, operators in order.

The weight file is mapped into memory and read where an operator needs it. What is read is hostile
until checked: sizes, types, names used before they are made, programs of another kind.
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
"""NumPy's type for each MIL type; a packed value takes a byte of its own once it is read."""
FIELDS = {
    "float32": "floats",
    "int32": "ints",
    "int16": "ints",
    "uint16": "ints",
    "bool": "bools",
    "string": "strings",
}
"""Where an immediate value is; those of all other types are bytes."""
VALUE_LIMIT = 1 << 34
"""Bytes of a single value."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A value of the program; packed types are unpacked when they are asked for.

    ``name`` is null for a value written into an operator itself.
    """

    name: str | None
    spec: TensorSpec
    data: np.ndarray | str
    stored: bool = False
    """In the weight file."""

    def array(self) -> np.ndarray:
        """The values in their shape; a view of the mapped file where that is possible."""
        assert isinstance(self.data, np.ndarray)
        bits = BITS.get(self.spec.dtype)
        if bits is None:
            return self.data.reshape(self.spec.shape)
        count = math.prod(self.spec.shape)
        stream = np.unpackbits(self.data, bitorder="little")[: count * bits].reshape(count, bits)
        codes = np.packbits(stream, axis=1, bitorder="little")[:, 0]
        if self.spec.dtype == "int4":
            codes = (codes.astype(np.int8) ^ 8) - 8
        return codes.astype(DTYPES[self.spec.dtype]).reshape(self.spec.shape)


Operand = str | Constant
"""The name of a computed value, or a constant."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator at its place: parameter -> operands, and what it declares to make."""

    kind: str
    name: str
    operands: Mapping[str, tuple[Operand, ...]]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a package, its operators in an order in which they can be run.

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
    """Read the function ``entry`` of a package; raises ``BundleError`` for what is malformed.

    ``model`` is the parsed program where the caller has it already.
    """
    where = path.name
    functions = (package.parse(path) if model is None else model).mlProgram.functions
    if entry not in functions:
        raise BundleError(f"{where}: no function {entry!r}")
    function = functions[entry]
    if function.opset not in OPSETS:
        legal = ", ".join(OPSETS)
        raise BundleError(f"{where}: operator set {function.opset!r} is none of {legal}")
    block = package.block(function, where)
    values = _values(path)
    inputs = tuple(_spec(value, where) for value in function.inputs)
    known: dict[str, Constant | TensorSpec] = {spec.name: spec for spec in inputs}
    if len(known) != len(function.inputs):
        raise BundleError(f"{where}: two inputs of one name")
    operations: list[Operation] = []
    for operator in block.operations:
        made = tuple(_spec(value, where) for value in operator.outputs)
        for spec in made:
            if spec.name in known:
                raise BundleError(f"{where}: the value {spec.name!r} is made twice")
        if operator.type == "const":
            known |= {spec.name: _const(operator, spec, values, where) for spec in made}
        else:
            operations.append(_operation(operator, made, known, values, where))
            known |= {spec.name: spec for spec in made}
    for name in block.outputs:
        if name not in known:
            raise BundleError(f"{where}: output {name!r} comes from no operator")
        if isinstance(known[name], Constant):
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
    found = values(operator.attributes["val"], spec.name)
    if found.spec != spec:
        raise BundleError(f"{where}: the constant {spec.name!r} is not of its declared type")
    return found


def _operation(
    operator: Any,
    made: tuple[TensorSpec, ...],
    known: Mapping[str, Constant | TensorSpec],
    values: Callable[[Any, str | None], Constant],
    where: str,
) -> Operation:
    name = made[0].name if made else operator.type
    attributes = dict(operator.attributes.items())
    attributes.pop("name", None)
    operands: dict[str, tuple[Operand, ...]] = {
        parameter: (values(value, None),) for parameter, value in attributes.items()
    }
    for parameter, argument in operator.inputs.items():
        if parameter in operands:
            raise BundleError(f"{where}: operator {name!r} has {parameter!r} twice")
        row: list[Operand] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                row.append(values(binding.value, None))
                continue
            if binding.name not in known:
                raise BundleError(
                    f"{where}: operator {name!r} reads {binding.name!r} before it is made"
                )
            found = known[binding.name]
            row.append(found if isinstance(found, Constant) else binding.name)
        operands[parameter] = tuple(row)
    if operator.blocks:
        raise BundleError(f"{where}: operator {name!r} ({operator.type}) has blocks inside")
    return Operation(kind=operator.type, name=name, operands=operands, outputs=made)


def _spec(value: Any, where: str) -> TensorSpec:
    if value.type.WhichOneof("type") != "tensorType":
        raise BundleError(f"{where}: the value {value.name!r} is no tensor")
    shape, dtype = package.shape_of(value.type.tensorType, where)
    spec = TensorSpec(name=value.name, shape=shape, dtype=dtype.lower())
    _check(spec, where)
    return spec


def _check(spec: TensorSpec, where: str) -> None:
    if spec.dtype not in DTYPES and spec.dtype != "string":
        raise BundleError(f"{where}: the value {spec.name!r} is of type {spec.dtype}")
    width = np.dtype(DTYPES.get(spec.dtype, np.uint8)).itemsize
    if math.prod(spec.shape) * width > VALUE_LIMIT:
        raise BundleError(f"{where}: the value {spec.name!r} is over {VALUE_LIMIT >> 30} GB")


def _values(path: Path) -> Callable[[Any, str | None], Constant]:
    """A function that reads a ``MIL.Value`` of a package, mapping its weight file once."""
    file, where = path / "Data" / package.WEIGHT_FILE, path.name
    size = file.stat().st_size if file.is_file() else 0
    # Copy on write: torch takes no read-only memory, and the file must never change.
    mapped = np.memmap(file, np.uint8, "c") if size else np.empty(0, np.uint8)

    def read(value: Any, name: str | None) -> Constant:
        if value.type.WhichOneof("type") != "tensorType":
            raise BundleError(f"{where}: the constant {name!r} is no tensor")
        shape, dtype = package.shape_of(value.type.tensorType, where)
        spec = TensorSpec(name=name or "", shape=shape, dtype=dtype.lower())
        _check(spec, where)
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
        raise BundleError(f"{where}: the constant {spec.name!r} holds no {spec.dtype}")
    found, count = getattr(tensor, field).values, math.prod(spec.shape)
    if field == "strings":
        if spec.shape or len(found) != 1:
            raise BundleError(f"{where}: the constant {spec.name!r} is not one string")
        return str(found[0])
    if field == "bytes":
        bits = BITS.get(spec.dtype, 8 * np.dtype(DTYPES[spec.dtype]).itemsize)
        if len(found) != (count * bits + 7) // 8:
            raise BundleError(f"{where}: the constant {spec.name!r} has {len(found)} bytes")
        raw = np.frombuffer(bytearray(found), np.uint8)
        return raw if spec.dtype in BITS else raw.view(DTYPES[spec.dtype])
    if len(found) != count:
        raise BundleError(f"{where}: the constant {spec.name!r} has {len(found)} of {count} values")
    try:
        return np.array(found, dtype=DTYPES[spec.dtype])
    except OverflowError:
        raise BundleError(f"{where}: the constant {spec.name!r} is no {spec.dtype}") from None


def constants(operation: Operation) -> Iterator[Constant]:
    """The constants that an operation reads."""
    for row in operation.operands.values():
        yield from (operand for operand in row if isinstance(operand, Constant))
