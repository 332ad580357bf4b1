"""A job's file as the Python runner reads it: its keys, and registers and shapes before any run.

Normative: ``runtime/android/runner/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from mtu_export.bench.record import BenchRecord
from mtu_export.spec import PlanError

Shape = tuple[int, ...]
Extents = Annotated[tuple[Annotated[int, Field(ge=1, le=2**31 - 1)], ...], Field(max_length=8)]
Inside = Annotated[str, Field(min_length=1, max_length=4096)]
"""A path beside the job's file."""


class TensorFile(BenchRecord):
    """An input or output of a part."""

    name: str
    shape: Extents
    dtype: Literal["float32", "int32"]


class PartFile(BenchRecord):
    """An artefact and its entry."""

    path: Inside
    entry: Annotated[str, Field(min_length=1, pattern=r"^[^./][^/]*$")]
    inputs: tuple[TensorFile, ...]
    outputs: tuple[TensorFile, ...]


class _Call(BenchRecord):
    op: Literal["call"]
    part: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class _Sum(BenchRecord):
    op: Literal["sum"]
    terms: Annotated[tuple[tuple[float, str], ...], Field(min_length=1)]
    out: str


class _Scaled(BenchRecord):
    op: Literal["scale", "divide"]
    by: float
    source: Annotated[str, Field(alias="in")]
    out: str


class _Concat(BenchRecord):
    op: Literal["concat"]
    axis: Annotated[int, Field(ge=0, le=7)]
    sources: Annotated[tuple[str, ...], Field(alias="in", min_length=1)]
    out: str


class _Slice(BenchRecord):
    op: Literal["slice"]
    begin: Annotated[int, Field(ge=0)]
    source: Annotated[str, Field(alias="in")]
    out: str


Instruction = Annotated[_Call | _Sum | _Scaled | _Concat | _Slice, Field(discriminator="op")]


class JobFile(BenchRecord):
    """The whole of a job's file."""

    format: Literal[1]
    engine: str
    library: Inside | None = None
    options: dict[str, str] = Field(default_factory=dict)
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    cpus: Annotated[str, Field(pattern="^(all|big|[0-9a-fA-F]{1,64})$")] = "all"
    parts: Annotated[dict[str, PartFile], Field(min_length=1, max_length=64)]
    tensors: Inside | None = None
    program: Annotated[tuple[Instruction, ...], Field(min_length=1, max_length=100_000)]
    expected: dict[str, str] = Field(default_factory=dict)
    outputs: Inside | None = None
    keep: tuple[str, ...] = ()
    load_again: bool = False
    warmup: Annotated[int, Field(ge=0, le=100_000)] = 0
    samples: Annotated[int, Field(ge=1, le=100_000)]
    cooldown_ms: Annotated[float, Field(ge=0, le=1e7)] = 0
    deadline_s: Annotated[float, Field(gt=0, le=604_800)] = 600


def read(path: Path) -> JobFile:
    """Read a job; raises ``PlanError`` in one line."""
    try:
        job = JobFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its JSON"
        raise PlanError(f"{path.name}: {where}: {first['msg']}") from None
    for name in (job.library, job.tensors, job.outputs, *(p.path for p in job.parts.values())):
        if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise PlanError(f"{path.name}: {name!r} leads out of the job's folder")
    if job.expected and job.tensors is None:
        raise PlanError(f"{path.name}: expected needs tensors")
    return job


def check(job: JobFile, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse registers that nothing has written and shapes that do not fit."""
    shapes: dict[str, Shape] = {name: array.shape for name, array in tensors.items()}
    for index, step in enumerate(job.program):
        try:
            shapes |= _written(step, job.parts, shapes)
        except (KeyError, ValueError) as error:
            text = f"no register {error}" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"program[{index}] ({step.op}): {text}") from None
    for register, name in job.expected.items():
        if register not in shapes or name not in tensors or shapes[register] != tensors[name].shape:
            raise PlanError(f"expected: {register!r} and {name!r} are not two arrays of one shape")
    for register in job.keep:
        if register not in shapes:
            raise PlanError(f"keep: no register {register!r}")


def _written(
    step: _Call | _Sum | _Scaled | _Concat | _Slice,
    parts: Mapping[str, PartFile],
    shapes: Mapping[str, Shape],
) -> dict[str, Shape]:
    """The registers that an instruction writes, and their shapes."""
    if isinstance(step, _Call):
        return _called(step, parts, shapes)
    if isinstance(step, _Sum):
        terms = {shapes[name] for _, name in step.terms}
        if len(terms) > 1:
            raise ValueError(f"its terms have shapes {sorted(terms)}")
        return {step.out: terms.pop()}
    if isinstance(step, _Concat):
        several = [shapes[name] for name in step.sources]
        rest = {(*s[: step.axis], *s[step.axis + 1 :]) for s in several}
        if len(rest) > 1 or any(len(s) <= step.axis for s in several):
            raise ValueError(f"its inputs have shapes {several}")
        total = sum(s[step.axis] for s in several)
        return {step.out: (*several[0][: step.axis], total, *several[0][step.axis + 1 :])}
    shape = shapes[step.source]
    if isinstance(step, _Slice):
        if not shape or step.begin >= shape[0]:
            raise ValueError(f"no entry {step.begin} in {list(shape)}")
        return {step.out: (1, *shape[1:])}
    if step.op == "divide" and not float(np.float32(step.by)):
        raise ValueError("divide by 0")
    return {step.out: shape}


def _called(
    step: _Call, parts: Mapping[str, PartFile], shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    if step.part not in parts:
        raise ValueError(f"no part {step.part!r}")
    part = parts[step.part]
    if step.inputs.keys() != {spec.name for spec in part.inputs}:
        raise ValueError(f"its inputs are not those of {step.part!r}")
    for spec in part.inputs:
        shape = shapes[step.inputs[spec.name]]
        if shape != spec.shape:
            raise ValueError(f"input {spec.name!r} is {list(spec.shape)}, got {list(shape)}")
    outputs = {spec.name: spec.shape for spec in part.outputs}
    if not step.outputs.keys() <= outputs.keys():
        raise ValueError(f"its outputs are not those of {step.part!r}")
    return {register: outputs[name] for name, register in step.outputs.items()}
