"""Lowers the methods of a component to XNNPACK and writes them into one ``.pte``."""

from __future__ import annotations

import gc
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.targets.executorch.shortcuts import shortcuts

if TYPE_CHECKING:
    import torch

_CONSTANTS = ".constants-"
"""Prefix of the temporary folder of constants."""


def write(
    methods: Mapping[str, torch.export.ExportedProgram],
    constants: Mapping[str, str],
    path: Path,
    partitioners: Sequence[Any] = (),
) -> dict[str, dict[str, Any]]:
    """Lower methods to XNNPACK and write them to ``path``.

    ``partitioners`` take turns; by default XNNPACK's own is the only one.

    ``constants`` maps constant methods to the strings that they return. Several methods are lowered
    one after the other, and the constants that each hands to XNNPACK are kept in temporary files,
    equal bytes once, so that peak memory is that of a single method. Such files that a killed
    process left behind are removed. Returns, by method, the number of delegates and the operators
    outside them.
    """
    from executorch.exir import EdgeCompileConfig, EdgeProgramManager

    for leftover in path.parent.glob(f"{_CONSTANTS}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_CONSTANTS) as folder:
        store = _ConstantStore(Path(folder)) if len(methods) > 1 else None
        edges = {}
        for name, method in methods.items():
            edges[name] = _lowered(method, partitioners)
            if store is not None:
                store.offload(edges[name])
                gc.collect()  # graphs are cyclic, and those just lowered hold copies of all weights
        notes = {name: _delegation(edge) for name, edge in edges.items()}
        config = EdgeCompileConfig(_check_ir_validity=False)
        manager = EdgeProgramManager(edges, dict(constants), config)
        with path.open("wb") as file:
            with shortcuts():
                program = manager.to_executorch()
            program.write_to_file(file)
    return notes


def _lowered(
    method: torch.export.ExportedProgram, partitioners: Sequence[Any]
) -> torch.export.ExportedProgram:
    """The program with its delegates to XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with shortcuts():
        turns = list(partitioners) or [XnnpackPartitioner()]
        edge = to_edge_transform_and_lower(method, partitioner=turns)
    return edge.exported_program()


class _ConstantStore:
    """Keeps the constants of delegates in files of one folder, by the hash of their bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[bytes, Any] = {}

    def offload(self, program: torch.export.ExportedProgram) -> None:
        """Replace the bytes that a program's delegates hold by references to files."""
        from executorch.exir._serialize._cord import FileBackedData
        from executorch.exir.lowered_backend_module import LoweredBackendModule

        for module in program.graph_module.children():
            data = getattr(module, "named_data_store_output", None)
            if not isinstance(module, LoweredBackendModule) or data is None:
                continue
            for index, content in enumerate(data.buffers):
                digest = hashlib.sha256(content).digest()
                if digest not in self._files:
                    file = self.folder / digest.hex()
                    file.write_bytes(content)
                    self._files[digest] = FileBackedData(str(file), sha256=digest)
                data.buffers[index] = self._files[digest]


def _delegation(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Number of delegates, and count of each operator outside them."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(program.graph_module)
    outside = {
        kind: counts.non_delegated
        for kind, counts in sorted(info.delegation_by_operator.items())
        if counts.non_delegated and kind != "getitem"
    }
    return {"delegates": info.num_delegated_subgraphs, "outside": outside}
