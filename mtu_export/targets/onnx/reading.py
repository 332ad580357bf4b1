"""Reads an ONNX file that may be hostile, without its weights and without a runtime."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import BundleError, Structure, TensorSpec
from mtu_export.spec.extras import require

if TYPE_CHECKING:
    import onnx

DATA = "model.onnx_data"
"""File of the weights beside a model too large for one file, or beside several that share it."""
SINGLE_FILE_BYTES = 10**9
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A file of the part's own folder that its hash covers: no path, and not one of the Finder's."""


def structure(path: Path, entry: str) -> Structure:
    """Read ``path/entry`` without weights and runtime; raise ``BundleError`` if malformed.

    An output that only repeats another output is left out.
    """
    model = read(path, entry)
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = [value for value in model.graph.output if value.name not in _repeats(model.graph)]
    try:
        sides = [
            tuple(_tensor_spec(value, onnx.helper.tensor_dtype_to_np_dtype) for value in side)
            for side in (inputs, outputs)
        ]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{entry}: {error}") from error
    return Structure(
        inputs=sides[0],
        outputs=sides[1],
        operators=dict(Counter(node.op_type for node in nodes(model.graph))),
        identity={item.key: item.value for item in model.metadata_props},
    )


def _repeats(graph: onnx.GraphProto) -> set[str]:
    """Names of outputs that only repeat another output."""
    names = {value.name for value in graph.output}
    return {
        node.output[0]
        for node in graph.node
        if node.op_type == "Identity" and len(node.output) == 1 and {*node.input} <= names
    } & names


def _tensor_spec(value: onnx.ValueInfoProto, dtype_of: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    if not tensor.HasField("shape") or not all(size > 0 for size in shape):
        raise ValueError(f"{value.name!r} has no static shape")
    return TensorSpec(name=value.name, shape=shape, dtype=dtype_of(tensor.elem_type).name)


def read(path: Path, entry: str) -> onnx.ModelProto:
    """Parse and check an untrusted model before any runtime opens it."""
    require("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    file = path / entry
    if not _PLAIN_NAME.fullmatch(entry) or file.is_symlink() or not file.is_file():
        raise BundleError(f"{entry!r} is not a file of {path.name!r}")
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise BundleError(f"{entry}: not an ONNX model") from error
    if not (model.graph.node and model.graph.output and model.opset_import):
        raise BundleError(f"{entry}: not a whole ONNX model")
    domains = {node.domain for node in nodes(model.graph)} | {i.domain for i in model.opset_import}
    if model.functions or model.training_info or not domains <= {"", "ai.onnx"}:
        raise BundleError(f"{entry}: operators that are not ONNX's own")
    inner = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(a.type in inner for node in nodes(model.graph) for a in node.attribute):
        raise BundleError(f"{entry}: a loop or a branch, which no export writes and may never end")
    for tensor in tensors(model.graph):
        _check_location(tensor, path, entry)
    return model


def _check_location(tensor: onnx.TensorProto, path: Path, entry: str) -> None:
    """Refuse external data that is not a plain file beside the model, or too short."""
    import onnx

    if not tensor.external_data and tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    fields = {item.key: item.value for item in tensor.external_data}
    location = fields.get("location", "")
    file = path / location
    if not _PLAIN_NAME.fullmatch(location) or len(fields) != len(tensor.external_data):
        raise BundleError(f"{entry}: external data leaves the folder: {location!r}")
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{entry}: external data {location!r} is a link or missing")
    numbers = (fields.get("offset", "0"), fields.get("length", ""))
    if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
        raise BundleError(f"{entry}: external data of {tensor.name!r} has no offset and length")
    if sum(map(int, numbers)) > file.stat().st_size:
        raise BundleError(f"{entry}: {location!r} is shorter than the model says")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _graphs(inner)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside its nodes."""
    for inner in _graphs(graph):
        yield from inner.node


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph: weights, sparse weights and attributes."""
    sparse: list[onnx.SparseTensorProto] = []
    for inner in _graphs(graph):
        yield from inner.initializer
        sparse.extend(inner.sparse_initializer)
        for attribute in (a for node in inner.node for a in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            sparse.extend((attribute.sparse_tensor, *attribute.sparse_tensors))
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
