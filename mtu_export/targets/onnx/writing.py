"""Writes ONNX files, single or several on one shared weight file, and checks them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import ResourceError, TensorSpec, ToolchainError
from mtu_export.targets.onnx.reading import DATA, SINGLE_FILE_BYTES, structure
from mtu_export.targets.onnx.running import last_line

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

_LARGE_ALIGNMENT, _SMALL_ALIGNMENT = 4096, 64
"""Alignments of large and small tensors in a weight file."""
_LARGE_BYTES = 1 << 16
_INLINE_BYTES = 1024
"""Size up to which a tensor stays in the file of the graph."""
DEQUANTIZE = "quantized_decomposed.dequantize_per_channel.default"


class Writer:
    """Writes the files of one component into ``folder``.

    With ``task_tensors`` (None for a single task) the files share :data:`DATA`, which stores equal
    tensors once. ``task_tensors`` names the tensors that differ between the files; all others are
    written with the first file and referred to by the rest.
    """

    def __init__(self, folder: Path, task_tensors: Collection[str] | None) -> None:
        self.folder, self.task_tensors = folder, task_tensors
        self._external: dict[str, ir.ExternalTensor] = {}
        self._offsets: dict[bytes, int] = {}
        self._digests: dict[object, bytes] = {}

    def write(self, model: ir.Model, name: str) -> None:
        """Write ``folder/name``; raises ``ResourceError``."""
        import onnx_ir as ir

        tensors = (value.const_value for value in model.graph.initializers.values())
        total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        data = DATA if self.task_tensors is None and total > SINGLE_FILE_BYTES else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.task_tensors is not None:
                with (self.folder / DATA).open("ab" if self._offsets else "wb") as file:
                    for value in model.graph.initializers.values():
                        value.const_value = self._externalised(value, file)
            ir.save(model, self.folder / name, external_data=data, alignment=_LARGE_ALIGNMENT)
        except OSError as error:
            reason = f"cannot write {self.folder.name}/{name}: {error.strerror}"
            raise ResourceError(reason) from error

    def _externalised(self, value: ir.Value, file: Any) -> ir.TensorProtocol:
        """A tensor as it refers to the weight file, appended to it unless stored already."""
        import onnx_ir as ir

        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        assert self.task_tensors is not None
        if tensor.nbytes <= _INLINE_BYTES and name not in self.task_tensors:
            return tensor
        if name in self._external and name not in self.task_tensors:
            return self._external[name]
        content = tensor.tobytes()
        hasher = hashlib.sha256(f"{tensor.dtype}{tensor.shape}".encode())
        hasher.update(content)
        offset = self._offsets.get(hasher.digest())
        if offset is None:
            alignment = _LARGE_ALIGNMENT if len(content) >= _LARGE_BYTES else _SMALL_ALIGNMENT
            file.write(bytes(-file.tell() % alignment))
            offset = self._offsets[hasher.digest()] = file.tell()
            file.write(content)
        self._external[name] = ir.ExternalTensor(
            DATA,
            offset,
            len(content),
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self.folder,
        )
        return self._external[name]

    def prove(
        self,
        name: str,
        signature: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        method: torch.export.ExportedProgram,
    ) -> None:
        """Check a written file: valid ONNX, expected inputs and outputs, and exactly equal codes.

        Raises ``ToolchainError``.
        """
        import onnx
        import onnx_ir as ir

        component = self.folder.name
        try:
            onnx.checker.check_model(str(self.folder / name))
        except Exception as error:
            raise ToolchainError(f"onnx.checker refuses {component}: {last_line(error)}") from error
        written = structure(self.folder, name)
        if (written.inputs, written.outputs) != signature:
            raise ToolchainError(f"{component}: the exporter changed inputs or outputs")
        codes = self._quantised_weights(method)
        if not codes:
            return
        seen: Counter[bytes] = Counter()
        for node in ir.load(self.folder / name).graph:
            if node.op_type == "DequantizeLinear":
                stored, scales = (v.const_value if v else None for v in node.inputs[:2])
                axis = node.attributes.get_int("axis", 1)
                if stored is not None and scales is not None:
                    key = (
                        (stored.offset, stored.length)
                        if self.task_tensors is not None and isinstance(stored, ir.ExternalTensor)
                        else object()
                    )
                    digest = self._codes_digest(key, stored.numpy)
                    seen[_fingerprint(digest, scales.numpy(), axis)] += 1
        # Equal weights may share one DequantizeLinear; none may be missing, changed or doubled.
        if seen.keys() != codes.keys() or seen - codes:
            raise ToolchainError(f"{component}: quantised weights were changed on the way to ONNX")

    def _quantised_weights(self, method: torch.export.ExportedProgram) -> Counter[bytes]:
        """Count a program's dequantised weights by fingerprint (codes, scales, axis)."""
        signature = method.graph_signature
        names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
        names |= signature.inputs_to_lifted_tensor_constants
        tensors = {**method.constants, **method.state_dict}
        weights: Counter[bytes] = Counter()
        for node in method.graph.nodes:
            if node.op == "call_function" and str(node.target) == DEQUANTIZE:
                codes, scales = (tensors[names[arg.name]].detach() for arg in node.args[:2])
                digest = self._codes_digest((codes.data_ptr(), codes.shape), codes.numpy)
                weights[_fingerprint(digest, scales.numpy(), node.args[3])] += 1
        return weights

    def _codes_digest(self, key: object, codes: Any) -> bytes:
        """SHA-256 of codes, computed once per ``key``: their place in memory or the weight file."""
        if key not in self._digests:
            values = codes()
            hasher = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
            hasher.update(values.tobytes())
            self._digests[key] = hasher.digest()
        return self._digests[key]


def _fingerprint(codes_digest: bytes, scales: np.ndarray, axis: int) -> bytes:
    hasher = hashlib.sha256(codes_digest + f"{scales.dtype}{axis}".encode())
    hasher.update(scales.tobytes())
    return hasher.digest()
