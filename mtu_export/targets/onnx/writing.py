"""Writes ONNX files, alone or several on one file of weights, and checks what was written."""

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

_PAGE, _LINE = 4096, 64
"""Alignments of large and small tensors in a file of weights."""
_SMALL = 1 << 16
_INLINE = 1024
"""Bytes up to which a tensor stays in the graph's own file."""
DEQUANTIZE = "quantized_decomposed.dequantize_per_channel.default"


class Writer:
    """One component's folder. With ``own`` its files share :data:`DATA`, each equal tensor once.

    ``own`` names what differs between the files; all else is written with the first and referred
    to by the others.
    """

    def __init__(self, home: Path, own: Collection[str] | None) -> None:
        self.home, self.own = home, own
        self._places: dict[str, ir.ExternalTensor] = {}
        self._known: dict[bytes, int] = {}
        self._prints: dict[object, bytes] = {}

    def write(self, model: ir.Model, name: str) -> None:
        """Write ``home/name``; raises ``ResourceError``."""
        import onnx_ir as ir

        tensors = (value.const_value for value in model.graph.initializers.values())
        total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        data = DATA if self.own is None and total > SINGLE_FILE_BYTES else None
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if self.own is not None:
                with (self.home / DATA).open("ab" if self._known else "wb") as file:
                    for value in model.graph.initializers.values():
                        value.const_value = self._placed(value, file)
            ir.save(model, self.home / name, external_data=data, alignment=_PAGE)
        except OSError as error:
            reason = f"cannot write {self.home.name}/{name}: {error.strerror}"
            raise ResourceError(reason) from error

    def _placed(self, value: ir.Value, file: Any) -> ir.TensorProtocol:
        """A tensor in the file of weights, appended where it is not there yet."""
        import onnx_ir as ir

        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        assert self.own is not None
        if tensor.nbytes <= _INLINE and name not in self.own:
            return tensor
        if name in self._places and name not in self.own:
            return self._places[name]
        content = tensor.tobytes()
        mark = hashlib.sha256(f"{tensor.dtype}{tensor.shape}".encode())
        mark.update(content)
        place = self._known.get(mark.digest())
        if place is None:
            align = _PAGE if len(content) >= _SMALL else _LINE
            file.write(bytes(-file.tell() % align))
            place = self._known[mark.digest()] = file.tell()
            file.write(content)
        self._places[name] = ir.ExternalTensor(
            DATA,
            place,
            len(content),
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self.home,
        )
        return self._places[name]

    def prove(
        self,
        name: str,
        borders: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        method: torch.export.ExportedProgram,
    ) -> None:
        """Check a written file: valid ONNX, the borders asked for, the codes bit by bit.

        Raises ``ToolchainError``.
        """
        import onnx
        import onnx_ir as ir

        where = self.home.name
        try:
            onnx.checker.check_model(str(self.home / name))
        except Exception as error:
            raise ToolchainError(f"onnx.checker refuses {where}: {last_line(error)}") from error
        found = structure(self.home, name)
        if (found.inputs, found.outputs) != borders:
            raise ToolchainError(f"{where}: the exporter changed inputs or outputs")
        codes = self._quantised(method)
        if not codes:
            return
        written: Counter[bytes] = Counter()
        for node in ir.load(self.home / name).graph:
            if node.op_type == "DequantizeLinear":
                stored, scales = (v.const_value if v else None for v in node.inputs[:2])
                axis = node.attributes.get_int("axis", 1)
                if stored is not None and scales is not None:
                    place = (
                        (stored.offset, stored.length)
                        if self.own is not None and isinstance(stored, ir.ExternalTensor)
                        else object()
                    )
                    mark = self._print(place, stored.numpy)
                    written[_fingerprint(mark, scales.numpy(), axis)] += 1
        # Equal weights may share one DequantizeLinear; none may be missing, changed or doubled.
        if written.keys() != codes.keys() or written - codes:
            raise ToolchainError(f"{where}: quantised weights were changed on the way to ONNX")

    def _quantised(self, method: torch.export.ExportedProgram) -> Counter[bytes]:
        """Fingerprints (codes, scales, axis) of a program's dequantised weights."""
        signature = method.graph_signature
        names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
        names |= signature.inputs_to_lifted_tensor_constants
        tensors = {**method.constants, **method.state_dict}
        found: Counter[bytes] = Counter()
        for node in method.graph.nodes:
            if node.op == "call_function" and str(node.target) == DEQUANTIZE:
                codes, scales = (tensors[names[arg.name]].detach() for arg in node.args[:2])
                mark = self._print((codes.data_ptr(), codes.shape), codes.numpy)
                found[_fingerprint(mark, scales.numpy(), node.args[3])] += 1
        return found

    def _print(self, key: object, codes: Any) -> bytes:
        """SHA-256 of codes, made once for each place in memory or in the file of weights."""
        if key not in self._prints:
            found = codes()
            mark = hashlib.sha256(f"{found.dtype}{found.shape}".encode())
            mark.update(found.tobytes())
            self._prints[key] = mark.digest()
        return self._prints[key]


def _fingerprint(codes: bytes, scales: np.ndarray, axis: int) -> bytes:
    mark = hashlib.sha256(codes + f"{scales.dtype}{axis}".encode())
    mark.update(scales.tobytes())
    return mark.digest()
