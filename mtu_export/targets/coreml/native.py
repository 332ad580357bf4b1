"""Core ML itself, on macOS."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import Arrays, Session, ToolchainError, Witness, first_line
from mtu_export.targets.coreml import package

if TYPE_CHECKING:
    import numpy as np

slow: str | None = None
witness: Witness | None = None


def runner() -> tuple[str | None, str | None]:
    """``("coreml <macOS version>", None)`` on macOS, else None and the reason."""
    if platform.system() != "Darwin":
        return None, "Core ML runs on macOS only"
    return f"coreml {platform.mac_ver()[0]}", None


def open(path: Path, entry: str) -> Session:
    """Load a package into Core ML on the compute unit that it was exported for.

    Raises ``ToolchainError`` if there is no Core ML, or if it refuses the package.
    """
    _, reason = runner()
    if reason is not None:
        raise ToolchainError(reason)
    import coremltools as ct
    import numpy as np

    unit = ct.ComputeUnit[package.compute_unit(path)]
    function = None if entry == package.ENTRY else entry
    try:
        model = ct.models.MLModel(str(path), compute_units=unit, function_name=function)
    except Exception as error:
        reason = first_line(error)
        raise ToolchainError(f"Core ML could not load {path.name}: {reason}") from error

    def session(inputs: Arrays) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in model.predict(dict(inputs)).items()}

    return session
