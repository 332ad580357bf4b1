"""Reference: PyTorch runs the captured program itself, in the process that made it.

This is the shortest complete target: an example for writing others, and a way to test the exporter
without a toolchain. Its file only describes a program, and no program is ever loaded from disk. A
bundle that another process wrote can therefore be read, but not run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import (
    Arrays,
    BundleError,
    Lowered,
    Plan,
    Program,
    Runtime,
    RuntimeUnavailable,
    Session,
    Structure,
    Support,
    Target,
    TargetInfo,
    TensorSpec,
    ToolchainError,
    Unsupported,
    Witness,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

_FILE_LIMIT = 1 << 20
"""Largest size of a description, in bytes."""
_DTYPES = ("float32", "int32", "int64")
_programs: dict[tuple[str, str], torch.export.ExportedProgram] = {}
"""Programs lowered by this process, by the SHA-256 of their description and by entry."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The target has no options."""


class _Torch:
    """PyTorch as the runtime of the programs that this process lowered."""

    slow: str | None = None
    witness: Witness | None = None

    def runner(self) -> tuple[str | None, str | None]:
        try:
            return f"torch {metadata.version('torch')}", None
        except metadata.PackageNotFoundError:
            return None, "torch is not installed"

    def open(self, path: Path, entry: str) -> Session:
        structure = _read(path, entry)
        try:
            program = _programs[hashlib.sha256(path.read_bytes()).hexdigest(), entry]
        except KeyError:
            raise RuntimeUnavailable(
                f"{path.name} runs only in the process that exported it"
            ) from None
        import torch

        module = program.module()

        def session(inputs: Arrays) -> dict[str, np.ndarray]:
            for spec in structure.inputs:
                value = inputs.get(spec.name)
                if value is None or (value.shape, value.dtype.name) != (spec.shape, spec.dtype):
                    raise ToolchainError(f"reference: input {spec.name!r} is not {spec.shape}")
            values = [torch.from_numpy(inputs[spec.name].copy()) for spec in structure.inputs]
            with torch.no_grad():
                outputs = module(*values)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = zip(structure.outputs, outputs, strict=True)
            return {spec.name: output.numpy() for spec, output in pairs}

        return session


class Reference:
    """Programs of this process, described on disk."""

    info = TargetInfo(
        suffix=".json",
        packages=("torch",),
        default_scheme="fp32",
        supports={"fp32": Support(memory=2.0), "int8": Support(memory=2.0)},
        baselines=("unfolded",),
    )
    options = Options
    runtimes: Mapping[str, Runtime] = {"torch": _Torch()}

    def validate_plan(self, plan: Plan) -> None:
        """Refuse float16: the programs compute with the weights that PyTorch captured."""
        if plan.scheme.name not in self.info.supports:
            raise Unsupported(f"reference: no {plan.scheme.name} weights; use fp32 or int8")

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Describe the program in ``<component>.json``, and keep it for this process to run."""
        path = folder / f"{program.name}{self.info.suffix}"
        entries = {
            task: {
                "inputs": [asdict(spec) for spec in program.inputs[task]],
                "outputs": [asdict(spec) for spec in program.outputs],
                "operators": dict(Counter(sorted(_operators(method)))),
                "weights_sha256": _digest(method.state_dict),
            }
            for task, method in program.methods.items()
        }
        text = json.dumps({"identity": dict(identity), "entries": entries}, indent=1) + "\n"
        path.write_text(text, "utf-8")
        for task, method in program.methods.items():
            key = hashlib.sha256(text.encode()).hexdigest(), task
            _programs[key] = method
        return Lowered(
            path=path.name, entries={task: task for task in entries}, activations="float32"
        )

    def structure(self, path: Path, entry: str) -> Structure:
        """Read the description of one entry."""
        return _read(path, entry)


TARGET: Target = Reference()


def _operators(method: torch.export.ExportedProgram) -> list[str]:
    """The operator of every call in a program."""
    return [str(node.target) for node in method.graph.nodes if node.op == "call_function"]


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors together with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()


def _read(path: Path, entry: str) -> Structure:
    """Read the description of one entry from an untrusted file."""
    try:
        if path.stat().st_size > _FILE_LIMIT:
            raise BundleError(f"{path.name}: over {_FILE_LIMIT} bytes")
        document = json.loads(path.read_bytes())
        description = document["entries"][entry]
        return Structure(
            inputs=tuple(_spec(**spec) for spec in description["inputs"]),
            outputs=tuple(_spec(**spec) for spec in description["outputs"]),
            operators={str(kind): int(count) for kind, count in description["operators"].items()},
            identity={str(key): str(value) for key, value in document["identity"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path.name}: no description of a program with the entry {entry!r}"
        ) from error


def _spec(name: Any, shape: Any, dtype: Any) -> TensorSpec:
    sizes = tuple(shape)
    if not isinstance(name, str) or dtype not in _DTYPES:
        raise ValueError(f"{name!r} of {dtype!r}")
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{name!r} of shape {sizes!r}")
    return TensorSpec(name=name, shape=sizes, dtype=dtype)
