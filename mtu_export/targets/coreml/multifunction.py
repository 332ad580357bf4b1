"""Several tasks in one package: one function per task, each weight once in the weight file.

One task is converted as a template. Before coremltools sees it, every tensor that differs between
tasks is replaced by a marker of random numbers, which is then located by its bytes in the package
that coremltools wrote. Each function is a copy of the template with the values of its task in
place of the markers. Time and memory are thus those of a single conversion, whatever the number of
tasks; coremltools' own ``save_multifunction`` holds every task's program and weights at once.

Multifunction packages need iOS18. An older system could be served only by one function that takes
the task's tensors as inputs, which MIL does not allow: the scales and shifts of ``layer_norm``, the
biases of ``linear`` and the scales of ``constexpr_blockwise_shift_scale`` must be constants.
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
"""The oldest systems that open a package with several functions."""
_SLOT = "own:"
"""A value of the template that is a slot refers to a file named with this prefix and the tensor's
name; its offset says whether the marker was in the weight file."""
_DTYPES: Mapping[str, type[np.generic]] = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
}
_HALF_MAX = 65504.0
_SMALL_TENSOR = 400
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Stands for a tensor that differs between tasks.

    ``readers`` counts the operators that read it in the exported program; ``forms`` holds its bytes
    by MIL type.
    """

    name: str
    shape: tuple[int, ...]
    readers: int
    forms: Mapping[str, bytes]


# ---------------------------------------------------------------------------------------- markers


def mark(program: Program, exported: torch.export.ExportedProgram) -> tuple[Marker, ...]:
    """Put markers into ``exported``, a decomposed copy of the first method of ``program``.

    Tensors that are equal in all tasks stay. Raises ``ToolchainError`` for a tensor that differs
    and is neither float32 nor int8.
    """
    import torch

    states = [method.state_dict for method in program.methods.values()]
    readers = _readers(exported)
    generator = np.random.default_rng(0)
    used_forms: set[tuple[str, bytes]] = set()
    markers: list[Marker] = []
    for name in sorted(program.task_tensors):
        first = states[0][name]
        if not readers[name] or all(torch.equal(first, state[name]) for state in states[1:]):
            continue
        forms: dict[str, bytes] = {}
        while not forms or any(form in used_forms for form in forms.items()):
            values = _random(name, first, generator)
            forms = {kind: _form(values, kind, name) for kind in _kinds(values)}
        used_forms |= {*forms.items()}
        marker = torch.from_numpy(values)
        if isinstance(first, torch.nn.Parameter):
            marker = torch.nn.Parameter(marker, requires_grad=False)
        exported.state_dict[name] = marker
        markers.append(
            Marker(name=name, shape=tuple(first.shape), readers=readers[name], forms=forms)
        )
    return tuple(markers)


def _readers(exported: torch.export.ExportedProgram) -> Counter[str]:
    """How many operators read each parameter and buffer."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = (node for node in exported.graph.nodes if node.op == "placeholder")
    return Counter({names[node.name]: len(node.users) for node in nodes if node.name in names})


def _random(name: str, tensor: torch.Tensor, generator: np.random.Generator) -> np.ndarray:
    """Random values that no pass mistakes for zeros or ones; floats are valid float16 scales."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if dtype == "float32":
        return generator.uniform(0.5, 2.0, shape).astype(np.float32)
    if dtype == "int8":
        return generator.integers(-127, 128, shape, np.int8)
    raise ToolchainError(f"tasks differ in {name!r}, of {dtype}; only float32 and int8 can")


def _kinds(values: np.ndarray) -> tuple[str, ...]:
    """The MIL types in which coremltools may write a tensor."""
    return ("INT8",) if values.dtype == np.int8 else ("FLOAT32", "FLOAT16")


def _form(values: np.ndarray, kind: str, name: str) -> bytes:
    """The bytes that coremltools writes for a tensor of a MIL type."""
    if kind == "FLOAT16":
        if np.abs(values).max(initial=0) > _HALF_MAX:
            raise ToolchainError(f"{name!r} is beyond the range of float16; choose fp32")
        values = half(values)
    return np.ascontiguousarray(values, _DTYPES[kind]).tobytes()


def half(values: np.ndarray) -> np.ndarray:
    """float32 to float16 as coremltools does it: in a small tensor no number becomes zero."""
    rounded = values.astype(np.float16)
    if values.size < _SMALL_TENSOR:
        least = np.nextafter(np.float16(0), np.float16(1))
        zero = np.nextafter(np.float32(0), np.float32(1))
        vanished = (np.abs(values) > zero) & (np.abs(rounded) <= least)
        rounded[vanished] = np.copysign(least, values[vanished]).astype(np.float16)
    return rounded


# ---------------------------------------------------------------------------------------- package


def write(path: Path, program: Program, markers: Sequence[Marker]) -> None:
    """Turn the template at ``path`` into a package with a function for each method.

    The first is the default. Raises ``ToolchainError`` that names a tensor whose marker does not
    appear in the template as often as the program reads it, and ``ResourceError``.
    """
    model = package.parse(path)
    functions = model.mlProgram.functions
    template = functions[package.ENTRY]
    block = package.block(template, path.name)
    file = path / "Data" / package.WEIGHT_FILE
    by_name = {marker.name: marker for marker in markers}
    try:
        with file.open("rb") as old, atomic_file(file) as fresh, fresh.open("xb") as new:
            kinds = _slots(block, markers, old, path.name)
            store = _Store(new)
            _move(block, old, store, path.name)
            for task, method in program.methods.items():
                tensors = {name: method.state_dict[name].detach().numpy() for name in kinds}
                offsets = {
                    (name, kind): store.put(kind, _form(tensors[name], kind, name))
                    for name, stored_kinds in kinds.items()
                    for kind in stored_kinds
                }
                functions[task].CopyFrom(template)
                where = f"{path.name}: {task}"
                _fill(package.block(functions[task], where), by_name, tensors, offsets, where)
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
    """Turn every marker of the template into a slot.

    Returns, by tensor, the MIL types of its slots that were stored in the weight file.
    """
    by_form = {(kind, data): marker for marker in markers for kind, data in marker.forms.items()}
    sizes = {(kind, len(data)) for kind, data in by_form}
    size = os.fstat(weights.fileno()).st_size
    reads = Counter(
        binding.name
        for operator in block.operations
        for argument in operator.inputs.values()
        for binding in argument.arguments
    )
    seen: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {marker.name: set() for marker in markers}
    for operator in block.operations:
        for value in package.values(operator):
            shape, kind = package.shape_of(value.type.tensorType, where)
            if (kind, math.prod(shape) * _width(kind)) not in sizes:
                continue
            stored = value.WhichOneof("value") == "blobFileValue"
            data = _blob(value, weights, size, where) if stored else _immediate(value, kind)
            marker = by_form.get((kind, data))
            if marker is None:
                continue
            if stored:
                kinds[marker.name].add(kind)
            value.blobFileValue.fileName = f"{_SLOT}{marker.name}"
            value.blobFileValue.offset = int(stored)
            const = operator.type == "const"
            seen[marker.name] += reads[operator.outputs[0].name] if const else 1
    for marker in markers:
        if seen[marker.name] != marker.readers:
            raise ToolchainError(
                f"{where}: {marker.name!r} differs between tasks and is read {marker.readers} "
                f"times, {seen[marker.name]} times after coremltools; it was changed on the way"
            )
    return {name: tuple(sorted(stored_kinds)) for name, stored_kinds in kinds.items()}


def _width(kind: str) -> int:
    """Bytes of a value of a MIL type; 0 for types that no marker has."""
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
    """Copy all blobs except those of slots, in file order, and refer to the copies."""
    size = os.fstat(old.fileno()).st_size
    readers: dict[int, list[Any]] = {}
    for operator in block.operations:
        for value in package.values(operator):
            blob = value.blobFileValue
            if value.WhichOneof("value") == "blobFileValue" and not _is_slot(value):
                readers.setdefault(blob.offset, []).append(value)
    for offset, values in sorted(readers.items()):
        new_offset = store.copy(old, offset, package.find_blob(values[0], old, size, where))
        for value in values:
            value.blobFileValue.offset = new_offset


def _fill(
    block: Any,
    markers: Mapping[str, Marker],
    tensors: Mapping[str, np.ndarray],
    offsets: Mapping[tuple[str, str], int],
    where: str,
) -> None:
    """Put the tensors of one task into the slots of a function."""
    for operator in block.operations:
        for value in package.values(operator):
            if not _is_slot(value):
                continue
            name = value.blobFileValue.fileName.removeprefix(_SLOT)
            shape, kind = package.shape_of(value.type.tensorType, where)
            if value.blobFileValue.offset:
                value.blobFileValue.fileName = package.WEIGHT_URL
                value.blobFileValue.offset = offsets[name, kind]
            elif kind == "FLOAT32":
                data = np.frombuffer(_form(tensors[name], kind, name), np.float32)
                value.immediateValue.tensor.floats.values[:] = data.tolist()
            else:
                value.immediateValue.tensor.bytes.values = _form(tensors[name], kind, name)
            if tensors[name].shape == markers[name].shape:
                continue
            if shape != markers[name].shape or operator.type != "const":
                raise ToolchainError(f"{where}: coremltools reshaped {name!r}, whose shapes differ")
            _set_shape(value.type, tensors[name].shape)
            _set_shape(operator.outputs[0].type, tensors[name].shape)


def _widen(function: Any, specs: Sequence[TensorSpec], where: str) -> None:
    """Give a function the input shapes of its task, up to the convolution that reads each input."""
    block, widened = package.block(function, where), {}
    shapes = {spec.name: spec.shape for spec in specs}
    for value in function.inputs:
        if package.shape_of(value.type.tensorType, where)[0] != shapes[value.name]:
            _set_shape(value.type, shapes[value.name])
            widened[value.name] = shapes[value.name]
    for operator in block.operations:
        if operator.type == "const":
            continue
        names = [b.name for argument in operator.inputs.values() for b in argument.arguments]
        reads = [name for name in names if name in widened]
        if reads and operator.type == "cast":
            _set_shape(operator.outputs[0].type, widened[reads[0]])
            widened[operator.outputs[0].name] = widened[reads[0]]
        elif reads and operator.type != "conv":
            raise ToolchainError(
                f"{where}: the width of {reads[0]!r} reaches {operator.type}, no convolution"
            )


def _is_slot(value: Any) -> bool:
    stored = value.WhichOneof("value") == "blobFileValue"
    return stored and value.blobFileValue.fileName.startswith(_SLOT)


def _set_shape(kind: Any, shape: Sequence[int]) -> None:
    for dimension, size in zip(kind.tensorType.dimensions, shape, strict=True):
        dimension.constant.size = size


def _describe(description: Any, program: Program) -> None:
    """Declare one function per task, with its shapes, in place of the template's."""
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
    """Writes a weight file blob by blob, storing blobs of equal type and bytes once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._offsets: dict[bytes, int] = {}
        file.write(bytes(package.HEADER_BYTES))

    def copy(self, old: BinaryIO, offset: int, data_span: tuple[int, int]) -> int:
        """Copy the blob whose header is at ``offset`` in another file; returns its new offset."""
        old.seek(offset)
        header = old.read(package.HEADER_BYTES)
        return self._put(header, lambda: _chunks(old, *data_span))

    def put(self, kind: str, data: bytes) -> int:
        """Append values of a MIL type unless stored already; returns their header's offset."""
        fields = (package.SENTINEL, package.BLOB_TYPES[kind][0], len(data), 0)
        header = package.HEADER.pack(*fields).ljust(package.HEADER_BYTES, b"\0")
        return self._put(header, lambda: iter((data,)))

    def _put(self, header: bytes, chunks: Callable[[], Iterator[bytes]]) -> int:
        sentinel, kind, length, _ = package.HEADER.unpack_from(header)
        remainder = header[package.HEADER.size :]
        hasher = hashlib.sha256(b"%d %d " % (kind, length) + remainder)
        for chunk in chunks():
            hasher.update(chunk)
        stored = self._offsets.get(hasher.digest())
        if stored is not None:
            return stored
        self.file.write(bytes(-self.file.tell() % package.HEADER_BYTES))
        offset = self.file.tell()
        self.file.write(package.HEADER.pack(sentinel, kind, length, offset + package.HEADER_BYTES))
        self.file.write(remainder)
        for chunk in chunks():
            self.file.write(chunk)
        self._offsets[hasher.digest()] = offset
        return offset

    def close(self) -> None:
        """Write the header of the file: the number of blobs, and the format version."""
        self.file.seek(0)
        self.file.write(struct.pack("<II", len(self._offsets), package.STORAGE_VERSION))


def _chunks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while length:
        chunk = file.read(min(length, _CHUNK_BYTES))
        yield chunk
        length -= len(chunk)
