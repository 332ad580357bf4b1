"""Runs one method of a ``.pte`` in the runtime of the ``executorch`` wheel."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from mtu_export.spec import (
    Arrays,
    BundleError,
    Session,
    ToolchainError,
    ToolchainMissing,
    Witness,
    first_line,
)
from mtu_export.spec.extras import require
from mtu_export.targets.executorch.reading import structure

slow: str | None = None
witness: Witness | None = None


def runner() -> tuple[str | None, str | None]:
    """Name and version of the runtime, or None and the reason."""
    try:
        require("executorch", "torch")
        return f"executorch {metadata.version('executorch')}", None
    except ToolchainMissing as missing:
        return None, str(missing)
    except metadata.PackageNotFoundError:
        return None, "executorch is not installed"


def open(path: Path, entry: str) -> Session:
    """Load the method ``entry``; the session maps arrays to new arrays by name."""
    require("executorch", "torch")
    interface = structure(path, entry)
    try:
        import executorch.kernels.quantized  # noqa: F401  quantised kernels outside the delegate
        import torch
        from executorch.runtime import Runtime
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    try:
        program = Runtime.get().load_program(path)
        method = program.load_method(entry)
    except RuntimeError as error:
        raise BundleError(f"{path.name}: the runtime refuses it: {first_line(error)}") from error
    if method is None:
        raise BundleError(f"{path.name}: no method {entry!r}")

    def session(inputs: Arrays, owner: object = program) -> dict[str, Any]:
        for spec in interface.inputs:
            value = inputs.get(spec.name)
            if value is None or (value.shape, value.dtype.name) != (spec.shape, spec.dtype):
                raise ToolchainError(f"executorch: input {spec.name!r} is not {spec.shape}")
        values = [torch.from_numpy(inputs[spec.name].copy()) for spec in interface.inputs]
        try:
            results = method.execute(values)
        except RuntimeError as error:
            raise ToolchainError(f"executorch: {path.name}: {first_line(error)}") from error
        return {spec.name: r.numpy() for spec, r in zip(interface.outputs, results, strict=True)}

    return session
