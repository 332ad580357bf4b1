"""mtu-export: Stable Diffusion and Multi-Task Upcycling to Core ML, ONNX and ExecuTorch.

>>> from mtu_export import export, resolve, run, save_image, verify
>>> bundle = export(resolve(target="onnx", task="edit", scheme="int8"))  # doctest: +SKIP
>>> assert all(verdict.passed is not False for verdict in verify(bundle))  # doctest: +SKIP
>>> picture = run(bundle, prompt="make it red", image="in.png")  # doctest: +SKIP
>>> save_image(picture.image, "out.png")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle
    from mtu_export.bundle.api import run, save_image, verify
    from mtu_export.bundle.runner import Generation
    from mtu_export.bundle.verification import verify_bundle as check
    from mtu_export.exporter import export
    from mtu_export.exporter.inspection import inspect
    from mtu_export.exporter.options import resolve
    from mtu_export.models.mtu.network import MTUUNet2DConditionModel
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
    from mtu_export.spec.options import ExportOptions, RunOptions, VerifyOptions

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DeviceError",
    "ExportOptions",
    "Generation",
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
    "RunOptions",
    "Scheme",
    "Task",
    "ToolchainError",
    "ToolchainMissing",
    "UnknownName",
    "Unsupported",
    "VerifyOptions",
    "check",
    "export",
    "inspect",
    "resolve",
    "run",
    "save_image",
    "verify",
]

_MODULES = {
    "Bundle": "bundle",
    "MTUUNet2DConditionModel": "models.mtu.network",
    "ExportOptions": "spec.options",
    "Generation": "bundle.runner",
    "RunOptions": "spec.options",
    "VerifyOptions": "spec.options",
    "check": "bundle.verification",
    "export": "exporter",
    "inspect": "exporter.inspection",
    "resolve": "exporter.options",
    "run": "bundle.api",
    "save_image": "bundle.api",
    "verify": "bundle.api",
}
"""Modules of the public names that are not in ``spec``."""
_RENAMED = {"check": "verify_bundle"}
"""Former public names that are kept, with what they are called now."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'spec')}")
    return getattr(module, _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
