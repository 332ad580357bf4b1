"""Engines of the Python runner: ONNX Runtime and ExecuTorch, with a number of threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtu_export.bench.job_file import PartFile
from mtu_export.spec import (
    Arrays,
    BundleError,
    PlanError,
    ToolchainError,
    ToolchainMissing,
    UnknownName,
    first_line,
    telemetry,
)

Loaded = Callable[[Arrays], dict[str, np.ndarray]]
"""A part, loaded: inputs by name -> outputs by name."""
OPTIMIZATION, ARENA = "graph_optimization", "arena"
"""Options of ours for ONNX Runtime: ``all`` or ``none``, ``1`` or ``0``; others are its own."""


class Engine(Protocol):
    """What loads artefacts."""

    name: str
    version: str
    threads: int

    def open(self, path: Path, entry: str, part: PartFile, options: Mapping[str, str]) -> Loaded:
        """Load an entry; raises ``BundleError`` where the engine refuses the file."""
        ...


def engine(name: str, threads: int) -> Engine:
    """The engine of a target; raises ``UnknownName`` and ``ToolchainMissing``."""
    if name not in _ENGINES:
        raise UnknownName("engine", name, list(_ENGINES))
    return _ENGINES[name](threads)


class _OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        telemetry.turn_off()
        try:
            import onnxruntime
        except ImportError as error:
            raise ToolchainMissing("onnxruntime", "onnx") from error
        self._library = onnxruntime
        self.version = version("onnxruntime")
        self.threads = threads

    def open(self, path: Path, entry: str, part: PartFile, options: Mapping[str, str]) -> Loaded:
        ort = self._library
        session_options = ort.SessionOptions()
        session_options.log_severity_level = 3
        session_options.intra_op_num_threads = self.threads
        for name, value in options.items():
            if name == OPTIMIZATION:
                levels = ort.GraphOptimizationLevel
                session_options.graph_optimization_level = (
                    levels.ORT_ENABLE_ALL if value == "all" else levels.ORT_DISABLE_ALL
                )
            elif name == ARENA:
                session_options.enable_cpu_mem_arena = value == "1"
                session_options.enable_mem_pattern = value == "1"
            else:
                session_options.add_session_config_entry(name, value)
        try:
            session = ort.InferenceSession(
                str(path / entry), session_options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(f"onnxruntime cannot load {entry}: {first_line(error)}") from error
        names = [output.name for output in part.outputs]

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            try:
                outputs: Any = session.run(names, dict(inputs))
            except Exception as error:
                raise ToolchainError(f"onnxruntime: {entry}: {first_line(error)}") from error
            return dict(zip(names, outputs, strict=True))

        return run


class _ExecuTorch:
    """ExecuTorch with XNNPACK."""

    name = "executorch"

    def __init__(self, threads: int) -> None:
        try:
            import executorch.extension.pybindings.portable_lib as library
            import executorch.kernels.quantized  # noqa: F401
            from executorch.runtime import Runtime
        except ImportError as error:
            raise ToolchainMissing("executorch", "executorch") from error
        if threads:
            library._unsafe_reset_threadpool(threads)
        self._runtime = Runtime.get()
        self.version = version("executorch")
        self.threads = int(library._threadpool_get_thread_count())

    def open(self, path: Path, entry: str, part: PartFile, options: Mapping[str, str]) -> Loaded:
        if options:
            raise PlanError(f"executorch has no option {next(iter(options))!r}")
        import torch

        try:
            program = self._runtime.load_program(path)
            method = program.load_method(entry)
        except RuntimeError as error:
            raise BundleError(f"executorch cannot load {path.name}: {first_line(error)}") from error
        if method is None:
            raise BundleError(f"{path.name}: no method {entry!r}")
        inputs_of = [spec.name for spec in part.inputs]
        outputs_of = [spec.name for spec in part.outputs]

        def run(inputs: Arrays, owner: object = program) -> dict[str, np.ndarray]:
            values = [torch.from_numpy(np.array(inputs[name])) for name in inputs_of]
            try:
                results = method.execute(values)
            except RuntimeError as error:
                raise ToolchainError(f"executorch: {path.name}: {first_line(error)}") from error
            return {n: r.numpy().copy() for n, r in zip(outputs_of, results, strict=True)}

        return run


_ENGINES: Mapping[str, Callable[[int], Engine]] = {"onnx": _OnnxRuntime, "executorch": _ExecuTorch}
