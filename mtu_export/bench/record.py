"""The record of a run: what was measured, on which device, and how it compares.

``make schema`` writes ``runtime/bench.schema.json`` from these models, so that other languages can
write and check records. Times are seconds, sizes and memory bytes, clocks kHz, temperatures °C.
What could not be read is None, never a guess; unknown keys are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtu_export.spec import PlanError
from mtu_export.spec.records import Count, Hash, Number

FORMAT = "1.0"
LARGEST_RECORD = 64_000_000
"""Bytes of a record's file."""
IMAGE = "image"
"""Stands for a part where the whole picture is measured: all calls of the flow."""

Seconds = Annotated[float, Field(ge=0, le=1e7)]
Ratio = Annotated[float, Field(gt=0, le=1e9)]
Text = Annotated[str, Field(max_length=1000)]
Status = Literal["measured", "failed", "not run"]
Kind = Literal["bundle", "dense", "unfolded", "plain", "single"]
"""``bundle`` is what the user named; the others are its baselines (``bench/baselines.py``):
``single`` is the bundle of one of its tasks alone."""


class BenchRecord(BaseModel):
    """An object of a record: strict, frozen, without unknown keys or values that are not finite."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True
    )

    def to_json(self) -> dict[str, Any]:
        """The object as JSON has it."""
        return self.model_dump(mode="json")


# -------------------------------------------------------------------------------------- a device


class DeviceState(BenchRecord):
    """What changes on a device while it works.

    ``thermal_status`` is Android's, 0 (none) to 6 (shutdown); iOS's nominal, fair, serious and
    critical are 0, 1, 3 and 4. ``temperature`` is the hottest sensor's; ``battery`` is a share,
    ``charging`` whether it is plugged in; ``clocks`` the current clock of each core;
    ``free_memory`` what the system calls available, to the app where one measures.
    ``throttled``: the limit of waiting for a cool device passed before the measurement began.
    """

    thermal_status: Annotated[int, Field(ge=0, le=6)] | None = None
    temperature: Number | None = None
    battery: Annotated[float, Field(ge=0, le=1)] | None = None
    charging: bool | None = None
    clocks: tuple[Count, ...] | None = None
    free_memory: Count | None = None
    throttled: bool = False


class DeviceRecord(BenchRecord):
    """The device that ran.

    ``kind`` is the driver; ``instructions`` the vector instruction sets that matter to kernels;
    ``emulated``: an emulator ran the code, so no time of it is a speed; ``libc`` the C library of
    the runner's process (glibc on a phone measures other kernels than an app's).
    """

    kind: Literal["host", "adb", "ios", "web"]
    model: Text
    soc: Text | None = None
    os: Text
    arch: Text
    cores: Count | None = None
    memory: Count | None = None
    page_size: Count | None = None
    governor: Text | None = None
    instructions: tuple[Text, ...] = ()
    emulated: bool = False
    libc: Text | None = None
    browser: Text | None = None
    secure_context: bool | None = None


# ------------------------------------------------------------------------------- one measurement


class Program(BenchRecord):
    """A runner or an engine, with its version; ``detail`` is its compiler or build."""

    name: Text
    version: Text
    detail: Text | None = None


class BundleRecord(BenchRecord):
    """Which bundle was measured; ``options`` are those of its manifest."""

    name: Text
    manifest_sha256: Hash
    source: Text
    source_sha256: Hash
    target: Text
    scheme: Text
    height: Count
    width: Count
    tasks: tuple[Text, ...]
    bytes: Count
    options: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


class Work(BenchRecord):
    """Bytes and work of one sample; FLOPs count a multiply-add as two.

    ``flops_conv_linear`` leaves out attention's two products (the paper's counting may do either).
    """

    bytes: Count
    parameters: Count
    flops_conv_linear: Count
    flops_total: Count


class MemoryRecord(BenchRecord):
    """Resident memory of the runner's process: anonymous, file-backed (mapped), and the peak of
    the phase, None where the system does not tell it apart."""

    anonymous: Count | None
    file: Count | None
    peak: Count | None


class Memory(BenchRecord):
    """Memory before the engine loads, after loading, and after the samples."""

    start: MemoryRecord
    loaded: MemoryRecord
    run: MemoryRecord
    peak_total: Count | None = None


class Round(BenchRecord):
    """One process: loading, the first pass, and every sample after it.

    ``load_s`` includes reading the file (``cache: unknown``: an unrooted device cannot drop its
    page cache); ``load_again_s`` is a second opening in the same process.
    """

    load_s: Seconds
    load_again_s: Seconds | None
    first_s: Seconds
    samples_s: Annotated[tuple[Seconds, ...], Field(max_length=100_000)]


class Summary(BenchRecord):
    """Statistics of all samples of all rounds; ``rounds`` are the medians of each round."""

    median: Seconds
    p90: Seconds
    min: Seconds
    count: Count
    rounds: tuple[Seconds, ...]


class Check(BenchRecord):
    """PSNR of one output against the goldens, on the device that ran, in a process of its own."""

    name: Text
    psnr_db: Number
    floor_db: Number
    passed: bool


class Image(BenchRecord):
    """A whole picture at the task's own steps.

    ``passes`` of the table, ``branches`` of the guidance: so many runs of the denoiser for each
    pass. ``seconds`` is the sum of the parts' medians over all calls; ``measured_s`` are whole
    pictures run as one program at ``measured_steps``.
    """

    steps: Count
    passes: Count
    branches: Count
    seconds: Seconds | None = None
    measured_steps: Count | None = None
    measured_s: tuple[Seconds, ...] = ()


class Measurement(BenchRecord):
    """One part of one bundle and task, or its whole picture, on one engine.

    ``status`` "failed" and "not run" have a ``reason`` and no numbers. ``gflops`` is
    ``flops_total`` per second of the median, 1e9; ``share_of_peak`` relates it to the engine's
    large matrix product of the same run.
    """

    kind: Kind
    bundle: BundleRecord
    task: Text
    part: Text
    status: Status
    reason: Text | None = None
    emulated: bool = False
    runner: Program | None = None
    engine: Program | None = None
    provider: Text = "cpu"
    threads: Count | None = None
    mask: Text | None = None
    work: Work | None = None
    rounds: Annotated[tuple[Round, ...], Field(max_length=1000)] = ()
    latency: Summary | None = None
    gflops: Number | None = None
    share_of_peak: Number | None = None
    memory: Memory | None = None
    checks: tuple[Check, ...] = ()
    image: Image | None = None
    before: DeviceState | None = None
    after: DeviceState | None = None


class Peak(BenchRecord):
    """Median time of a large float32 matrix product [n, n] x [n, n] in an engine, in this run."""

    engine: Text
    size: Count
    seconds: Seconds
    gflops: Number
    rounds: tuple[Seconds, ...]


class Comparison(BenchRecord):
    """Time of ``subject`` over time of ``baseline``, from rounds that took turns.

    ``ratio`` is the median of the rounds' ratios of medians, ``low`` and ``high`` their extremes;
    ``rounds`` are the ratios of all rounds.
    """

    subject: Kind
    baseline: Kind
    bundle: Text
    target: Text
    scheme: Text
    task: Text
    part: Text
    provider: Text = "cpu"
    ratio: Ratio
    low: Ratio
    high: Ratio
    rounds: Annotated[tuple[Ratio, ...], Field(max_length=1000)] = ()


class Fleet(BenchRecord):
    """N single-task bundles against one multi-task bundle: bytes on disk, resident memory with
    every task at hand, and seconds from one task's last pass to another's first."""

    target: Text
    scheme: Text
    tasks: tuple[Text, ...]
    one_bytes: Count
    fleet_bytes: Count
    one_memory: Count | None = None
    fleet_memory: Count | None = None
    one_switch_s: Seconds | None = None
    fleet_switch_s: Seconds | None = None
    reason: Text | None = None


class Run(BenchRecord):
    """A whole record: one device, one command."""

    format: Literal["1.0"] = FORMAT
    created: Text
    mode: Literal["quick", "full"]
    mtu_export: Text
    commit: Text | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    device: DeviceRecord
    measurements: Annotated[tuple[Measurement, ...], Field(max_length=10_000)]
    peaks: tuple[Peak, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    fleets: tuple[Fleet, ...] = ()
    notes: tuple[Text, ...] = ()


def read(path: Path) -> Run:
    """Read and check a record; raises ``PlanError`` in one line."""
    try:
        size = path.stat().st_size
        if size > LARGEST_RECORD:
            raise PlanError(f"{path}: {size:,} bytes; a record has at most {LARGEST_RECORD:,}")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise PlanError(f"cannot read {path}: {reason}") from None
    try:
        return Run.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PlanError(f"{path} is no benchmark record: {where}: {first['msg']}") from None


def write(run: Run, path: Path) -> None:
    """Write a record whole or not at all; raises ``OSError``."""
    text = json.dumps(run.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    draft = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(text, "utf-8")
    draft.replace(path)


def json_schema() -> Mapping[str, Any]:
    """The JSON Schema of a record."""
    schema = Run.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
