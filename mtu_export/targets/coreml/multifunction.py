"""Several tasks in one package: a function a task, each weight once in the weight file.

One task is converted, as a template: whatever the tasks differ in is replaced by random numbers,
the markers, before coremltools sees it, and found again by its bytes in the package that it wrote.
A function is a copy of the template with one task's values in the markers' places. So time and
memory are those of one conversion, whatever the number of tasks; coremltools' own
``save_multifunction`` holds every task's program and weights at once.

Multifunction packages need iOS18. An older system could be served only by one function that takes
what is a task's own as inputs, and MIL has no such function: the scales and shifts of
``layer_norm``, the biases of ``linear`` and the scales of ``constexpr_blockwise_shift_scale`` must
be constants by its definition.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mtu_export.spec import Program, ResourceError, TensorSpec, ToolchainError
from mtu_export.storage import atomic_file
from mtu_export.targets.coreml import package

if TYPE_CHECKING:
    import torch

SYSTEMS = ("iOS18", "macOS15")
"""The oldest that open a package of several functions."""
_SLOT = "own:"
"""Where a template has a marker, its value refers to a file of this prefix and the tensor's name;
the offset says whether it was in the weight file."""
_DTYPES: Mapping[str, type[np.generic]] = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
}
_HALF_MAX = 65504.0
_CHECKED = 400
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What stands for a tensor that differs between tasks.

    ``readers`` counts the operators that take it in the exported program, ``forms`` are its bytes
    by MIL type.
    """

    name: str
    shape: tuple[int, ...]
    readers: int
    forms: Mapping[str, bytes]


# ---------------------------------------------------------------------------------------- markers


def mark(program: Program, exported: torch.export.ExportedProgram) -> tuple[Marker, ...]:
    """Put markers into ``exported``, the first method of ``program`` with operators of its own.

    What all tasks have the same value of stays. Raises ``ToolchainError`` for a tensor that is
    neither float32 nor int8.
    """
    import torch

    states = [method.state_dict for method in program.methods.values()]
    readers = _readers(exported)
    random = np.random.default_rng(0)
    taken: set[tuple[str, bytes]] = set()
    found: list[Marker] = []
    for name in sorted(program.own):
        first = states[0][name]
        if not readers[name] or all(torch.equal(first, state[name]) for state in states[1:]):
            continue
        forms: dict[str, bytes] = {}
        while not forms or any(form in taken for form in forms.items()):
            values = _random(name, first, random)
            forms = {kind: _form(values, kind, name) for kind in _kinds(values)}
        taken |= {*forms.items()}
        marker = torch.from_numpy(values)
        if isinstance(first, torch.nn.Parameter):
            marker = torch.nn.Parameter(marker, requires_grad=False)
        exported.state_dict[name] = marker
        found.append(
            Marker(name=name, shape=tuple(first.shape), readers=readers[name], forms=forms)
        )
    return tuple(found)


def _readers(exported: torch.export.ExportedProgram) -> Counter[str]:
    """How many operators take each parameter and buffer."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    rows = (node for node in exported.graph.nodes if node.op == "placeholder")
    return Counter({names[node.name]: len(node.users) for node in rows if node.name in names})


def _random(name: str, tensor: torch.Tensor, random: np.random.Generator) -> np.ndarray:
    """Numbers that no pass takes for zeros or ones; floats are fit to be scales in float16."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if dtype == "float32":
        return random.uniform(0.5, 2.0, shape).astype(np.float32)
    if dtype == "int8":
        return random.integers(-127, 128, shape, np.int8)
    raise ToolchainError(f"tasks differ in {name!r}, of {dtype}; only float32 and int8 can")


def _kinds(values: np.ndarray) -> tuple[str, ...]:
    return ("INT8",) if values.dtype == np.int8 else ("FLOAT32", "FLOAT16")


def _form(values: np.ndarray, kind: str, name: str) -> bytes:
    """Bytes of a tensor as coremltools writes it with a MIL type."""
    if kind == "FLOAT16":
        if np.abs(values).max(initial=0) > _HALF_MAX:
            raise ToolchainError(f"{name!r} is beyond the range of float16; choose fp32")
        values = half(values)
    return np.ascontiguousarray(values, _DTYPES[kind]).tobytes()


def half(values: np.ndarray) -> np.ndarray:
    """float32 as float16 in coremltools' way: of few numbers, none becomes zero."""
    found = values.astype(np.float16)
    if values.size < _CHECKED:
        least = np.nextafter(np.float16(0), np.float16(1))
        zero = np.nextafter(np.float32(0), np.float32(1))
        lost = (np.abs(values) > zero) & (np.abs(found) <= least)
        found[lost] = np.copysign(least, values[lost]).astype(np.float16)
    return found


# ---------------------------------------------------------------------------------------- package


def write(path: Path, program: Program, markers: Sequence[Marker]) -> None:
    """Turn the template at ``path`` into a package with a function for each method.

    The first is the default. Raises ``ToolchainError`` that names a tensor whose marker is not in
    the template as often as the program reads it, and ``ResourceError``.
    """
    model = package.parse(path)
    functions = model.mlProgram.functions
    template = functions[package.ENTRY]
    block = package.block(template, path.name)
    file = path / "Data" / package.WEIGHT_FILE
    rows = {marker.name: marker for marker in markers}
    try:
        with file.open("rb") as old, atomic_file(file) as fresh, fresh.open("xb") as new:
            kinds = _slots(block, markers, old, path.name)
            store = _Store(new)
            _move(block, old, store, path.name)
            for task, method in program.methods.items():
                own = {name: method.state_dict[name].detach().numpy() for name in kinds}
                places = {
                    (name, kind): store.put(kind, _form(own[name], kind, name))
                    for name, row in kinds.items()
                    for kind in row
                }
                functions[task].CopyFrom(template)
                where = f"{path.name}: {task}"
                _fill(package.block(functions[task], where), rows, own, places, where)
                _widen(functions[task], program.inputs[task], where)
            store.close()
            shutil.copymode(file, fresh)
        del functions[package.ENTRY]
        _describe(model.description, program)
        (path / "Data" / package.MODEL).write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ResourceError(f"cannot write {path.name}: {error.strerror}") from error


def _slots(
    block: Any, markers: Sequence[Marker], weights: BinaryIO, where: str
) -> dict[str, tuple[str, ...]]:
    """Make every marker of the template a slot; returns those MIL types that are in the file."""
    known = {(kind, data): marker for marker in markers for kind, data in marker.forms.items()}
    sizes = {(kind, len(data)) for kind, data in known}
    size = os.fstat(weights.fileno()).st_size
    read = Counter(
        binding.name
        for operator in block.operations
        for argument in operator.inputs.values()
        for binding in argument.arguments
    )
    found: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {marker.name: set() for marker in markers}
    for operator in block.operations:
        for value in package.values(operator):
            shape, kind = package.shape_of(value.type.tensorType, where)
            if (kind, math.prod(shape) * _width(kind)) not in sizes:
                continue
            stored = value.WhichOneof("value") == "blobFileValue"
            data = _blob(value, weights, size, where) if stored else _immediate(value, kind)
            marker = known.get((kind, data))
            if marker is None:
                continue
            if stored:
                kinds[marker.name].add(kind)
            value.blobFileValue.fileName = f"{_SLOT}{marker.name}"
            value.blobFileValue.offset = int(stored)
            const = operator.type == "const"
            found[marker.name] += read[operator.outputs[0].name] if const else 1
    for marker in markers:
        if found[marker.name] != marker.readers:
            raise ToolchainError(
                f"{where}: {marker.name!r} differs between tasks and is read {marker.readers} "
                f"times, {found[marker.name]} times after coremltools; it was changed on the way"
            )
    return {name: tuple(sorted(row)) for name, row in kinds.items()}


def _width(kind: str) -> int:
    return np.dtype(_DTYPES[kind]).itemsize if kind in _DTYPES else 0


def _blob(value: Any, weights: BinaryIO, size: int, where: str) -> bytes:
    start, length = package.find_blob(value, weights, size, where)
    weights.seek(start)
    return weights.read(length)


def _immediate(value: Any, kind: str) -> bytes:
    tensor = value.immediateValue.tensor
    if kind == "FLOAT32":
        return np.array(tensor.floats.values, np.float32).tobytes()
    return bytes(tensor.bytes.values)


def _move(block: Any, old: BinaryIO, store: _Store, where: str) -> None:
    """Copy all blobs but the markers', in their order, and refer to the copies."""
    size = os.fstat(old.fileno()).st_size
    rows: dict[int, list[Any]] = {}
    for operator in block.operations:
        for value in package.values(operator):
            blob = value.blobFileValue
            if value.WhichOneof("value") == "blobFileValue" and not _is_slot(value):
                rows.setdefault(blob.offset, []).append(value)
    for offset, values in sorted(rows.items()):
        place = store.copy(old, offset, package.find_blob(values[0], old, size, where))
        for value in values:
            value.blobFileValue.offset = place


def _fill(
    block: Any,
    markers: Mapping[str, Marker],
    own: Mapping[str, np.ndarray],
    places: Mapping[tuple[str, str], int],
    where: str,
) -> None:
    """Put the values of one task into the slots of a function."""
    for operator in block.operations:
        for value in package.values(operator):
            if not _is_slot(value):
                continue
            name = value.blobFileValue.fileName.removeprefix(_SLOT)
            shape, kind = package.shape_of(value.type.tensorType, where)
            if value.blobFileValue.offset:
                value.blobFileValue.fileName = package.WEIGHT_URL
                value.blobFileValue.offset = places[name, kind]
            elif kind == "FLOAT32":
                data = np.frombuffer(_form(own[name], kind, name), np.float32)
                value.immediateValue.tensor.floats.values[:] = data.tolist()
            else:
                value.immediateValue.tensor.bytes.values = _form(own[name], kind, name)
            if own[name].shape == markers[name].shape:
                continue
            if shape != markers[name].shape or operator.type != "const":
                raise ToolchainError(f"{where}: coremltools reshaped {name!r}, whose shapes differ")
            _set_shape(value.type, own[name].shape)
            _set_shape(operator.outputs[0].type, own[name].shape)


def _widen(function: Any, specs: Sequence[TensorSpec], where: str) -> None:
    """Give a function the input shapes of its task, as far as the convolution that takes them."""
    block, wide = package.block(function, where), {}
    shapes = {spec.name: spec.shape for spec in specs}
    for value in function.inputs:
        if package.shape_of(value.type.tensorType, where)[0] != shapes[value.name]:
            _set_shape(value.type, shapes[value.name])
            wide[value.name] = shapes[value.name]
    for operator in block.operations:
        if operator.type == "const":
            continue
        names = [b.name for row in operator.inputs.values() for b in row.arguments]
        read = [name for name in names if name in wide]
        if read and operator.type == "cast":
            _set_shape(operator.outputs[0].type, wide[read[0]])
            wide[operator.outputs[0].name] = wide[read[0]]
        elif read and operator.type != "conv":
            raise ToolchainError(
                f"{where}: the width of {read[0]!r} reaches {operator.type}, no convolution"
            )


def _is_slot(value: Any) -> bool:
    stored = value.WhichOneof("value") == "blobFileValue"
    return stored and value.blobFileValue.fileName.startswith(_SLOT)


def _set_shape(kind: Any, shape: Sequence[int]) -> None:
    for dimension, size in zip(kind.tensorType.dimensions, shape, strict=True):
        dimension.constant.size = size


def _describe(description: Any, program: Program) -> None:
    """Declare a function a task, with its own shapes, in place of the template's borders."""
    for task, specs in program.inputs.items():
        function = description.functions.add(
            name=task, input=description.input, output=description.output
        )
        shapes = {spec.name: spec.shape for spec in specs}
        for feature in function.input:
            feature.type.multiArrayType.shape[:] = shapes[feature.name]
    del description.input[:], description.output[:]
    description.defaultFunctionName = next(iter(program.methods))


class _Store:
    """A new weight file, blob after blob; those of equal type and bytes are one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._places: dict[bytes, int] = {}
        file.write(bytes(package.HEADER_BYTES))

    def copy(self, old: BinaryIO, offset: int, place: tuple[int, int]) -> int:
        """Copy the blob whose header is at ``offset`` of another file; returns its new offset."""
        old.seek(offset)
        header = old.read(package.HEADER_BYTES)
        return self._put(header, lambda: _chunks(old, *place))

    def put(self, kind: str, data: bytes) -> int:
        """Append values of a MIL type, or find them; returns the offset of their header."""
        row = (package.SENTINEL, package.BLOB_TYPES[kind][0], len(data), 0)
        header = package.HEADER.pack(*row).ljust(package.HEADER_BYTES, b"\0")
        return self._put(header, lambda: iter((data,)))

    def _put(self, header: bytes, chunks: Callable[[], Iterator[bytes]]) -> int:
        sentinel, kind, length, _ = package.HEADER.unpack_from(header)
        rest = header[package.HEADER.size :]
        mark = hashlib.sha256(b"%d %d " % (kind, length) + rest)
        for chunk in chunks():
            mark.update(chunk)
        found = self._places.get(mark.digest())
        if found is not None:
            return found
        self.file.write(bytes(-self.file.tell() % package.HEADER_BYTES))
        place = self.file.tell()
        self.file.write(package.HEADER.pack(sentinel, kind, length, place + package.HEADER_BYTES))
        self.file.write(rest)
        for chunk in chunks():
            self.file.write(chunk)
        self._places[mark.digest()] = place
        return place

    def close(self) -> None:
        """Write the file's own header: how many blobs, and of which version."""
        self.file.seek(0)
        self.file.write(struct.pack("<II", len(self._places), package.STORAGE_VERSION))


def _chunks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while length:
        chunk = file.read(min(length, _CHUNK))
        yield chunk
        length -= len(chunk)
