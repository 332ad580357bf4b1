"""mtu-export: Multi-Task Upcycling checkpoints to Core ML, ONNX and ExecuTorch.

>>> from mtu_export import export, resolve
>>> bundle = export(resolve(target="onnx", task="inpaint", scheme="int8"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle
    from mtu_export.bundle.verification import verify_bundle as check
    from mtu_export.exporter import export
    from mtu_export.exporter.options import resolve
    from mtu_export.models.mtu import MTUUNet2DConditionModel
    from mtu_export.spec import (
        BundleError,
        CheckpointError,
        DeviceError,
        Interrupted,
        MissingWeights,
        MtuExportError,
        NotFoldable,
        OutputExists,
        ParityError,
        Plan,
        PlanError,
        ResourceError,
        Scheme,
        Task,
        ToolchainError,
        ToolchainMissing,
        UnknownName,
        Unsupported,
    )

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "Interrupted",
    "MTUUNet2DConditionModel",
    "MissingWeights",
    "MtuExportError",
    "NotFoldable",
    "OutputExists",
    "ParityError",
    "Plan",
    "PlanError",
    "ResourceError",
    "Scheme",
    "Task",
    "ToolchainError",
    "ToolchainMissing",
    "UnknownName",
    "Unsupported",
    "check",
    "export",
    "resolve",
]

# Our dependencies send nothing: these are read when they are imported, so they come first.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_ELSEWHERE = {
    "Bundle": "bundle",
    "MTUUNet2DConditionModel": "models.mtu",
    "check": "bundle.verification",
    "export": "exporter",
    "resolve": "exporter.options",
}


_RENAMED = {"check": "verify_bundle"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'spec')}")
    return getattr(home, _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
