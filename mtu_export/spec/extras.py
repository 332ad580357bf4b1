"""Optional packages: which extra of the distribution brings each of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from mtu_export.spec.errors import ToolchainMissing

EXTRAS: Mapping[str, str] = {
    "accelerate": "train",
    "coremltools": "coreml",
    "diffusers": "export",
    "executorch": "executorch",
    "matplotlib": "plot",
    "open_clip": "ldm",
    "onnx": "onnx",
    "onnx_ir": "export",
    "onnxruntime": "onnx",
    "onnxscript": "export",
    "onnxsim": "export",
    "psutil": "export",
    "re2": "export",
    "tensorboard": "train",
    "torch": "export",
    "transformers": "export",
    "trustme": "web",
}
"""Import name of a package -> the smallest extra that brings it."""
EXPORT = ("torch", "diffusers", "transformers", "psutil", "re2")
"""What every export needs, whatever its target."""


def require(*packages: str) -> None:
    """Raise ``ToolchainMissing`` for the first package that is not installed; imports none."""
    for name in packages:
        try:
            installed = find_spec(name) is not None
        except (ImportError, ValueError):
            installed = False
        if not installed:
            raise ToolchainMissing(name, EXTRAS[name])


def missing_package(error: BaseException) -> ToolchainMissing | None:
    """The error that names the extra, where a failed import is of an optional package."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    name = (error.name or "").partition(".")[0]
    return ToolchainMissing(name, EXTRAS[name]) if name in EXTRAS else None
