"""What a file says of itself: its name, its metadata, and nothing of the machine that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "model.onnx"
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def describe(model: ir.Model, name: str, identity: Mapping[str, str]) -> None:
    """Write ``identity``; remove what tools recorded about themselves and this machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    for item in (model, graph, *graph.all_nodes(), *values):
        item.metadata_props.clear()
        item.doc_string = None
    model.metadata_props.update(sorted(identity.items()))
    model.producer_name, model.producer_version, model.domain = "mtu-export", None, None
    model.ir_version = min(model.ir_version, IR_VERSION)
    graph.name = name
