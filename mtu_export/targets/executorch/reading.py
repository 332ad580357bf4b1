"""Reads an untrusted ``.pte`` without a runtime."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtu_export.spec import BundleError, Structure, TensorSpec, ToolchainMissing, first_line
from mtu_export.targets.executorch.sharing import require_unshared

DTYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 11: "bool"}
_LISTED = 200
"""Characters of the list of methods that a message shows."""

_MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    RecursionError,
    struct.error,
)


def structure(path: Path, entry: str) -> Structure:
    """Read the method ``entry`` from the file's flatbuffer, without the runtime.

    Operators are ``<namespace>::<name>.<overload>`` and ``delegate::<backend>``.
    """
    try:
        from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    head = _head(path)
    try:
        require_unshared(head)
        program = _flatbuffer_to_program(head)
        _check_segments(program, head, path)
        plans = {plan.name: plan for plan in program.execution_plan}
        if len(plans) < len(program.execution_plan):
            raise BundleError(f"{path.name}: a method appears twice")
        interface = json.loads(_constant(plans["_interface"]))
        if entry not in interface or entry not in plans:
            methods = ", ".join(interface)[:_LISTED]
            raise BundleError(f"{path.name}: no method {entry!r}; it has: {methods}")
        identity = json.loads(_constant(plans["_identity"]))
        names, plan = interface[entry], plans[entry]
        return Structure(
            inputs=_specs(plan, names["inputs"], plan.inputs),
            outputs=_specs(plan, names["outputs"], plan.outputs),
            operators=_operators(plan),
            identity={str(key): str(value) for key, value in identity.items()},
        )
    except _MALFORMED as error:
        raise BundleError(
            f"{path.name}: not a program of this product ({first_line(error)})"
        ) from error


def _head(path: Path) -> bytes:
    """The flatbuffer before the segments; refuses a foreign or truncated file."""
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
    """Refuse a segment that extends past the end of the file."""
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
    """Number of calls by operator or delegate, sorted by name."""
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
