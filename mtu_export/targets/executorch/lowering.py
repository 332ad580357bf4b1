"""Lowers the methods of a component to XNNPACK and writes them into one ``.pte``."""

from __future__ import annotations

import gc
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CONSTANTS = ".constants-"
"""How the folder of what waits on disk begins."""


def write(
    methods: Mapping[str, torch.export.ExportedProgram],
    constants: Mapping[str, str],
    path: Path,
) -> dict[str, dict[str, Any]]:
    """Lower to XNNPACK, write ``path``; return delegate pieces and the ops left outside by method.

    ``constants`` maps constant methods to the strings that they return. Several methods are lowered
    one after the other, and what each hands to XNNPACK waits on disk, equal bytes once: memory is
    that of one method. What a killed process left waiting there is removed.
    """
    from executorch.exir import EdgeCompileConfig, EdgeProgramManager

    for left in path.parent.glob(f"{_CONSTANTS}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_CONSTANTS) as folder:
        shelf = _Shelf(Path(folder)) if len(methods) > 1 else None
        edges = {}
        for name, method in methods.items():
            edges[name] = _lowered(method)
            if shelf is not None:
                shelf.take(edges[name])
                gc.collect()  # graphs are cyclic, and the last one's hold copies of all weights
        notes = {name: _delegation(edge) for name, edge in edges.items()}
        config = EdgeCompileConfig(_check_ir_validity=False)
        manager = EdgeProgramManager(edges, dict(constants), config)
        with path.open("wb") as file:
            with _shared_history():
                program = manager.to_executorch()
            program.write_to_file(file)
    return notes


def _lowered(method: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with XNNPACK's pieces in it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with _shared_history():
        edge = to_edge_transform_and_lower(method, partitioner=[XnnpackPartitioner()])
    return edge.exported_program()


@contextmanager
def _shared_history() -> Iterator[None]:
    """Let the nodes of a graph share where they come from, in place of a copy for each.

    A pass gives every node a deep copy of its predecessor's history, one entry longer, so that
    time grows with the square of the passes: 20 of them over the graph, then 17 over each piece.
    An entry never changes once it is made, and the file is the same byte for byte.
    """
    from torch.fx.traceback import NodeSource

    def share(self: NodeSource, memo: dict[int, Any]) -> NodeSource:
        return self

    if hasattr(NodeSource, "__deepcopy__"):  # of a later PyTorch, or inside another lowering
        yield
        return
    NodeSource.__deepcopy__ = share  # pyright: ignore
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # pyright: ignore


class _Shelf:
    """Constants of delegates in files of one folder, by the hash of their bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[bytes, Any] = {}

    def take(self, program: torch.export.ExportedProgram) -> None:
        """Let the delegates of a program point to files in place of bytes."""
        from executorch.exir._serialize._cord import FileBackedData
        from executorch.exir.lowered_backend_module import LoweredBackendModule

        for module in program.graph_module.children():
            data = getattr(module, "named_data_store_output", None)
            if not isinstance(module, LoweredBackendModule) or data is None:
                continue
            for place, content in enumerate(data.buffers):
                digest = hashlib.sha256(content).digest()
                if digest not in self._known:
                    file = self.folder / digest.hex()
                    file.write_bytes(content)
                    self._known[digest] = FileBackedData(str(file), sha256=digest)
                data.buffers[place] = self._known[digest]


def _delegation(program: torch.export.ExportedProgram) -> dict[str, Any]:
    from executorch.devtools.backend_debug import get_delegation_info

    found = get_delegation_info(program.graph_module)
    outside = {
        kind: row.non_delegated
        for kind, row in sorted(found.delegation_by_operator.items())
        if row.non_delegated and kind != "getitem"
    }
    return {"delegates": found.num_delegated_subgraphs, "outside": outside}
