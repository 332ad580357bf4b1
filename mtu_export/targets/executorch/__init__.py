"""ExecuTorch: one ``.pte`` a component, its work handed to the XNNPACK backend.

fp32 is lowered as it is. int8 keeps the codes and scales that arrive in the graph and makes the
activations around them int8, so that XNNPACK runs those layers with its integer kernels: static in
the denoiser, dynamic in text encoders, where single channels are far larger than the others.

A ``.pte`` stores neither tensor names nor metadata, so two constant methods carry them as JSON:
``_identity`` (str -> str) and ``_interface`` (method -> input and output names). No task name
begins with an underscore.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import (
    Arrays,
    BundleError,
    FloatWeights,
    IntWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    Runtime,
    Session,
    Structure,
    TensorSpec,
    ToolchainError,
    ToolchainMissing,
    Unsupported,
)
from mtu_export.targets.executorch.activations import make_dynamic, make_static

if TYPE_CHECKING:
    import torch

suffix = ".pte"
packages = ("executorch", "torch")
rewrites = ("attention", "geglu", "group_norm")
shared_rewrites = rewrites
default_scheme = "fp32"
runtimes: Mapping[str, Runtime] = {}
slow = witness = None
memory = {"fp32": 3.0, "int8": 1.1}

BACKENDS = ("xnnpack",)
ENTRY = "forward"
DTYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 11: "bool"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """``backend``: what runs the graph; kernels of ExecuTorch itself take the rest."""

    backend: str = field(
        default="xnnpack",
        metadata={"help": "ExecuTorch backend that runs the graph", "choices": BACKENDS},
    )


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be lowered; imports no toolchain."""
    if plan.options.backend not in BACKENDS:
        raise Unsupported(
            f"executorch: backend {plan.options.backend!r} is not supported; "
            f"choose from: {', '.join(BACKENDS)}"
        )
    if len(plan.tasks) != 1:
        raise Unsupported(
            f"executorch: one task a bundle for now, got {len(plan.tasks)}; export them one by one"
        )
    weights = plan.scheme.weights
    if isinstance(weights, FloatWeights) and weights.dtype != "float32":
        raise Unsupported(
            f"executorch: scheme {plan.scheme.name!r} saves next to nothing on XNNPACK "
            "(0.88 x the bytes of fp32, in more pieces); use int8 or fp32"
        )
    if isinstance(weights, IntWeights) and weights != IntWeights(
        bits=8, granularity=PerChannel(axis=0)
    ):
        raise Unsupported(
            f"executorch: scheme {plan.scheme.name!r} has no XNNPACK kernels here; "
            "use int8 (8 bits, a scale for each output channel)"
        )
    if util.find_spec("executorch") is None:
        raise ToolchainMissing("executorch", "executorch")


# ------------------------------------------------------------------------------------- lowering


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Write ``<component>_<backend>_<scheme>.pte`` under ``folder``, method ``forward``."""
    (task, exported), *others = program.methods.items()
    if others:
        raise Unsupported("executorch: one task a bundle for now")
    name = f"{program.name}_{plan.options.backend}_{plan.scheme.name}{suffix}"
    activations = _activations(program, plan)
    names = {
        "inputs": [tensor.name for tensor in program.inputs[task]],
        "outputs": [tensor.name for tensor in program.outputs],
    }
    constants = {
        "_identity": json.dumps(dict(identity), sort_keys=True),
        "_interface": json.dumps({ENTRY: names}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    apart: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if activations == "dynamic_int8":
                exported = make_dynamic(exported)
            elif activations == "static_int8":
                exported, apart = make_static(exported, names["inputs"], program.calibration[task])
            notes = _write(exported, constants, folder / name)
    except (OSError, MemoryError):
        raise
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    except Exception as error:
        raise ToolchainError(
            f"executorch could not lower {program.name}: {_line(error)}"
        ) from error
    return Lowered(
        path=name,
        entries={task: ENTRY},
        activations=activations,
        calibration=program.origin if activations == "static_int8" else None,
        kept_float=tuple(
            (program.layer(bias), "its bias is beyond int32 codes: added in float32")
            for bias in apart
        ),
        notes={"backend": plan.options.backend, **notes},
    )


def _activations(program: Program, plan: Plan) -> str:
    if not isinstance(plan.scheme.weights, IntWeights):
        return "float32"
    return "dynamic_int8" if program.name.startswith("text_encoder") else "static_int8"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write(
    exported: torch.export.ExportedProgram, constants: Mapping[str, str], path: Path
) -> dict[str, Any]:
    """Lower to XNNPACK, write ``path``; return delegate pieces and the ops left outside."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], constant_methods=dict(constants)
    )
    found = get_delegation_info(edge.exported_program().graph_module)
    outside = {
        kind: row.non_delegated
        for kind, row in sorted(found.delegation_by_operator.items())
        if row.non_delegated and kind != "getitem"
    }
    lowered = edge.to_executorch()
    with path.open("wb") as file:
        lowered.write_to_file(file)
    return {"delegates": found.num_delegated_subgraphs, "outside": outside}


# -------------------------------------------------------------------------- reading and running


def structure(path: Path, entry: str) -> Structure:
    """Read method ``entry`` out of the file's flatbuffer; the runtime is not asked.

    Operators are ``<namespace>::<name>.<overload>`` and ``delegate::<backend>``.
    """
    try:
        from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    head = _head(path)
    try:
        program = _flatbuffer_to_program(head)
        _check_segments(program, head, path)
        plans = {plan.name: plan for plan in program.execution_plan}
        names = json.loads(_constant(plans["_interface"]))[entry]
        identity = json.loads(_constant(plans["_identity"]))
        plan = plans[entry]
        return Structure(
            inputs=_specs(plan, names["inputs"], plan.inputs),
            outputs=_specs(plan, names["outputs"], plan.outputs),
            operators=_operators(plan),
            identity={str(key): str(value) for key, value in identity.items()},
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, struct.error) as error:
        raise BundleError(f"{path.name}: not a program of this product ({_line(error)})") from error


def _head(path: Path) -> bytes:
    """The flatbuffer in front of the segments; refuses a foreign or truncated file."""
    if not path.is_file():
        raise BundleError(f"{path.name}: not an ExecuTorch program")
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(40)
        if len(start) < 40 or start[4:12] != b"ET12eh00":
            raise BundleError(f"{path.name}: not an ExecuTorch program")
        size, base, segments = struct.unpack_from("<QQQ", start, 16)
        if max(size, base + segments) > length:
            raise BundleError(f"{path.name}: truncated, {length} of {base + segments} bytes")
        return start + file.read(size - 40)


def _check_segments(program: Any, head: bytes, path: Path) -> None:
    """Refuse a segment that leaves the file."""
    (base,) = struct.unpack_from("<Q", head, 24)
    ends = [base + segment.offset + segment.size for segment in program.segments]
    if max(ends, default=0) > path.stat().st_size:
        raise BundleError(f"{path.name}: a segment leaves the file")


def _constant(plan: Any) -> str:
    """The string that a constant method returns."""
    return plan.values[plan.outputs[0]].val.string_val


def _specs(plan: Any, names: Sequence[str], indices: Sequence[int]) -> tuple[TensorSpec, ...]:
    tensors = [plan.values[index].val for index in indices]
    return tuple(
        TensorSpec(name=name, shape=tuple(tensor.sizes), dtype=DTYPES[int(tensor.scalar_type)])
        for name, tensor in zip(names, tensors, strict=True)
    )


def _operators(plan: Any) -> dict[str, int]:
    """Calls by kind, in the order of their names."""
    calls: Counter[str] = Counter()
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if hasattr(call, "delegate_index"):
                calls[f"delegate::{plan.delegates[call.delegate_index].id}"] += 1
            elif hasattr(call, "op_index"):
                operator = plan.operators[call.op_index]
                calls[f"{operator.name}.{operator.overload}"] += 1
    return dict(sorted(calls.items()))


def runner() -> tuple[str | None, str | None]:
    """Name and version of the runtime, or null and the reason."""
    try:
        return f"executorch {metadata.version('executorch')}", None
    except metadata.PackageNotFoundError:
        return None, "executorch is not installed"


def open(path: Path, entry: str) -> Session:
    """Load method ``entry``; the session maps arrays to new arrays by name."""
    found = structure(path, entry)
    try:
        import executorch.kernels.quantized  # noqa: F401  kernels of codes outside the delegate
        import torch
        from executorch.runtime import Runtime
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    try:
        program = Runtime.get().load_program(path)
        method = program.load_method(entry)
    except RuntimeError as error:
        raise BundleError(f"{path.name}: the runtime refuses it: {_line(error)}") from error
    if method is None:
        raise BundleError(f"{path.name}: no method {entry!r}")

    def session(inputs: Arrays, owner: object = program) -> dict[str, Any]:
        for spec in found.inputs:
            given = inputs.get(spec.name)
            if given is None or (given.shape, given.dtype.name) != (spec.shape, spec.dtype):
                raise ToolchainError(f"executorch: input {spec.name!r} is not {spec.shape}")
        values = [torch.from_numpy(inputs[spec.name].copy()) for spec in found.inputs]
        try:
            results = method.execute(values)
        except RuntimeError as error:
            raise ToolchainError(f"executorch: {path.name}: {_line(error)}") from error
        return {spec.name: r.numpy() for spec, r in zip(found.outputs, results, strict=True)}

    return session
