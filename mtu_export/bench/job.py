"""What a runner is asked, and what it answers: files in JSON that every runner reads and writes.

The form is normative in ``runtime/android/runner/README.md``; the C++ runner and
``bench/python_runner.py`` take the same jobs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mtu_export.bench.record import BenchRecord, Memory, Program, Seconds
from mtu_export.bundle.goldens import save_tensors
from mtu_export.spec import Arrays, TensorSpec
from mtu_export.spec.records import Count, Number

FORMAT = 1
JOB, TENSORS, RESULT = "job.json", "tensors.safetensors", "result.json"
COMPUTE_UNIT = "compute_unit"
"""Core ML's option of a manifest and of a job: the processors that may run a model."""
LARGEST_RESULT = 16_000_000
"""Bytes of a result's file."""


@dataclass(frozen=True, kw_only=True)
class JobPart:
    """An artefact to load: ``path`` within the bundle's folder, its entry, inputs and outputs."""

    path: str
    entry: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def document(self, root: str) -> dict[str, Any]:
        """As a job's file has it; ``root`` is the bundle's folder beside the job."""
        return {
            "path": f"{root}/{self.path}",
            "entry": self.entry,
            "inputs": [_tensor(spec) for spec in self.inputs],
            "outputs": [_tensor(spec) for spec in self.outputs],
        }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a runner: it loads ``parts``, runs ``program`` and times each run.

    ``folder`` holds the parts on this host, ``identity`` is a hash of its content. ``tensors`` are
    registers from the start; ``expected`` maps registers to tensors that they are compared with
    after the program. ``threads`` 0 is the engine's default; ``cpus`` is ``all``, ``big`` or a
    hexadecimal mask.
    """

    engine: str
    folder: Path
    identity: str
    parts: Mapping[str, JobPart]
    tensors: Arrays
    program: Sequence[Mapping[str, Any]]
    expected: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    cpus: str = "all"
    samples: int = 1
    warmup: int = 0
    load_again: bool = False
    cooldown_ms: int = 0
    deadline_s: float = 600.0

    @property
    def provider(self) -> str:
        """What runs it: Core ML's compute units, such as ``cpu_and_ne``; elsewhere the CPU."""
        return self.options.get(COMPUTE_UNIT, "cpu").lower()

    @property
    def is_check(self) -> bool:
        """Whether it compares results instead of measuring."""
        return bool(self.expected)

    def document(self, root: str, library: str | None = None) -> dict[str, Any]:
        """The job's file; ``root`` is where the bundle lies beside it, ``library`` the engine."""
        return {
            "format": FORMAT,
            "engine": self.engine,
            **({} if library is None else {"library": library}),
            "options": dict(self.options),
            "threads": self.threads,
            "cpus": self.cpus,
            "parts": {name: part.document(root) for name, part in self.parts.items()},
            "tensors": TENSORS,
            "program": [dict(instruction) for instruction in self.program],
            "expected": dict(self.expected),
            "load_again": self.load_again,
            "warmup": self.warmup,
            "samples": self.samples,
            "cooldown_ms": self.cooldown_ms,
            "deadline_s": self.deadline_s,
        }

    def write(self, folder: Path, root: str, library: str | None = None) -> Path:
        """Write the job and its tensors into ``folder``; returns the job's path."""
        save_tensors(self.tensors, folder / TENSORS)
        path = folder / JOB
        path.write_text(json.dumps(self.document(root, library), allow_nan=False), "utf-8")
        return path


# ---------------------------------------------------------------------------------------- results


class RunnerRecord(BenchRecord):
    """The runner's own description."""

    name: str
    version: str
    language: str
    compiler: str | None = None
    libc: str | None = None

    @property
    def program(self) -> Program:
        """For a record."""
        detail = ", ".join(text for text in (self.language, self.compiler) if text)
        return Program(name=self.name, version=self.version, detail=detail)


class EngineRecord(BenchRecord):
    """The engine that was loaded."""

    name: str
    version: str

    @property
    def program(self) -> Program:
        """For a record."""
        return Program(name=self.name, version=self.version)


class Calls(BenchRecord):
    """The calls of one part within the samples, in order."""

    count: Count
    seconds: tuple[Seconds, ...]


class Clocks(BenchRecord):
    """Clock of each core in kHz, before and after the samples."""

    before: tuple[Count, ...] | None = None
    after: tuple[Count, ...] | None = None


class Machine(BenchRecord):
    """What the runner sees of its machine."""

    arch: str
    cores: Count
    page_size: Count
    clocks_khz: Clocks = Clocks()
    governor: str | None = None


class Result(BenchRecord):
    """What a runner answers; after a failure the numbers that it has."""

    format: Literal[1] = FORMAT
    status: Literal["measured", "failed"]
    reason: Annotated[str, Field(max_length=1000)] | None = None
    runner: RunnerRecord | None = None
    engine: EngineRecord | None = None
    threads: Count | None = None
    mask: str | None = None
    load_s: dict[str, Seconds] = Field(default_factory=dict)
    load_again_s: dict[str, Seconds] = Field(default_factory=dict)
    first_s: Seconds | None = None
    samples_s: tuple[Seconds, ...] = ()
    calls: dict[str, Calls] = Field(default_factory=dict)
    memory: Memory | None = None
    psnr_db: dict[str, Number] = Field(default_factory=dict)
    machine: Machine | None = None


def stamp(*values: object) -> str:
    """A short hash of what identifies a result."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def failed(reason: str) -> Result:
    """The result of a runner that left none."""
    return Result(status="failed", reason=" ".join(reason.split())[:1000])


def parse(text: str | bytes) -> Result:
    """A result's file; one that is damaged is a failed result, not an exception."""
    if len(text) > LARGEST_RESULT:
        return failed(f"the runner's result has {len(text):,} bytes")
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its JSON"
        return failed(f"the runner's result cannot be read: {where}: {first['msg']}")


def mismatch(job: Job, result: Result) -> str | None:
    """Why a result cannot be the answer to a job, in one line; None where it can."""
    parts = set(result.load_s) | set(result.load_again_s) | set(result.calls)
    if parts - set(job.parts):
        return "the runner's result is of another job: it names other parts"
    if result.status == "failed":
        return None
    measured = set(result.load_s) == set(job.parts) and result.first_s is not None
    if not measured or len(result.samples_s) != job.samples:
        return f"the runner's result is of another job: {len(result.samples_s)} samples"
    if set(result.psnr_db) != set(job.expected):
        return "the runner's result is of another job: it compares other registers"
    return None
