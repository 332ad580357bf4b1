"""Runs an ONNX file in ONNX Runtime on the CPU, with its telemetry off."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import (
    Arrays,
    Session,
    ToolchainError,
    ToolchainMissing,
    Witness,
    telemetry,
)
from mtu_export.targets.onnx.reading import DATA, SINGLE_FILE_BYTES, structure

if TYPE_CHECKING:
    import numpy as np

slow: str | None = None
witness: Witness | None = None

ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""Session option and value: activations multiplied by integer weights stay float32."""


def last_line(error: BaseException | str) -> str:
    """The last line of a toolchain's message, with local paths removed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    return re.sub(r"(?<![\w.])(?:/|[A-Za-z]:\\)[^\s'\"]+", "...", text)[:160]


def runner() -> tuple[str | None, str | None]:
    """ONNX Runtime and its version, or None and the reason."""
    try:
        return f"onnxruntime {version('onnxruntime')}", None
    except PackageNotFoundError:
        return None, "onnxruntime is not installed"


def open(path: Path, entry: str) -> Session:
    """Load into ONNX Runtime on the CPU with its default graph optimisation.

    Activations stay float32 where the weights are integers. By default ONNX Runtime quantises them
    to int8 before a matrix product, and a change of one ulp in an input then shifts whole codes.

    A model with more than 1 GB of external data runs without graph optimisation: each weight is
    dequantised or cast when it is needed and freed afterwards. SDXL in int8 then takes 9 GB, and
    over 20 GB otherwise.
    """
    names = [spec.name for spec in structure(path, entry).outputs]
    telemetry.turn_off()
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolchainMissing("onnxruntime", "onnx") from error
    is_off = os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    if is_off and hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*ACTIVATIONS)
    data = path / DATA
    if data.is_file() and data.stat().st_size > SINGLE_FILE_BYTES:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(
            str(path / entry), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ToolchainError(f"onnxruntime cannot load {entry}: {last_line(error)}") from error

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        try:
            outputs: Any = session.run(names, dict(inputs))
        except Exception as error:
            raise ToolchainError(f"onnxruntime failed in {entry}: {last_line(error)}") from error
        return dict(zip(names, outputs, strict=True))

    return run
