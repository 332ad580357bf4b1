"""Lowers the methods of a component to XNNPACK and writes them into one ``.pte``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write(
    methods: Mapping[str, torch.export.ExportedProgram],
    constants: Mapping[str, str],
    path: Path,
) -> dict[str, dict[str, Any]]:
    """Lower to XNNPACK, write ``path``; return delegate pieces and the ops left outside by method.

    ``constants`` maps constant methods to the strings that they return.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        dict(methods), partitioner=[XnnpackPartitioner()], constant_methods=dict(constants)
    )
    notes = {name: _delegation(edge.exported_program(name)) for name in methods}
    lowered = edge.to_executorch()
    with path.open("wb") as file:
        lowered.write_to_file(file)
    return notes


def _delegation(program: torch.export.ExportedProgram) -> dict[str, Any]:
    from executorch.devtools.backend_debug import get_delegation_info

    found = get_delegation_info(program.graph_module)
    outside = {
        kind: row.non_delegated
        for kind, row in sorted(found.delegation_by_operator.items())
        if row.non_delegated and kind != "getitem"
    }
    return {"delegates": found.num_delegated_subgraphs, "outside": outside}
