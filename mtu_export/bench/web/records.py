"""What browsers measured, as measurements of a record; a provider is a measurement of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING

from mtu_export import __version__
from mtu_export.bench import statistics, work
from mtu_export.bench.record import (
    IMAGE,
    Check,
    DeviceRecord,
    Image,
    Measurement,
    Memory,
    MemoryRecord,
    Program,
    Round,
    Run,
)
from mtu_export.bench.web.messages import (
    PROVIDERS,
    CheckResult,
    ImageResult,
    PageRecord,
    PartResult,
    ProviderResult,
)
from mtu_export.bundle import PIPELINE, Bundle
from mtu_export.bundle.loop_proof import PASSES
from mtu_export.spec import DeviceError
from mtu_export.spec.options import BenchOptions

if TYPE_CHECKING:
    from mtu_export.bench.devices.web import WebResult

SOFTWARE = "swiftshader"
"""In the name of an adapter that is no GPU."""
MEMORY_NOTE = "memory: the peak is that of WebAssembly for the whole page; a browser tells no more"
_NONE = MemoryRecord(anonymous=None, file=None, peak=None)


def collect(
    sources: Sequence[Bundle],
    options: BenchOptions,
    measure: Callable[[Bundle, str], WebResult],
) -> Run:
    """A record of all bundles and tasks; what no browser runs is "not run" with its reason."""
    measurements: list[Measurement] = []
    device: DeviceRecord | None = None
    notes = dict.fromkeys([MEMORY_NOTE])
    for source in sources:
        for task in source.tasks:
            if options.task and task.name not in options.task:
                continue
            if source.manifest.target != "onnx":
                reason = f"a browser runs ONNX bundles, not those for {source.manifest.target}"
                measurements += _not_run(source, task.name, reason)
                continue
            result = measure(source, task.name)
            device = device or describe(result.record)
            notes |= dict.fromkeys(result.notes)
            measurements += measurements_of(source, result)
    if device is None:
        raise DeviceError("nothing to measure: a browser runs ONNX bundles")
    return Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        mode="full" if options.mode == "full" else "quick",
        mtu_export=__version__,
        device=device,
        measurements=tuple(
            row for row in measurements if not options.part or row.part in options.part
        ),
        notes=tuple(notes),
    )


def describe(page: PageRecord) -> DeviceRecord:
    """The device, of which a browser tells little."""
    system = " ".join(word for word in (page.platform, page.platform_version) if word)
    return DeviceRecord(
        kind="web",
        model=page.model or f"{'phone' if page.mobile else 'computer'}, model not told",
        os=system or "not told",
        arch=page.architecture or "not told",
        cores=page.cores,
        memory=None if page.device_memory is None else int(page.device_memory * 2**30),
        browser=page.user_agent,
        secure_context=page.secure_context,
    )


def measurements_of(source: Bundle, result: WebResult) -> Iterator[Measurement]:
    """Each part in each provider, then the whole picture."""
    for provider in result.record.providers:
        base = _base(source, result.plan.task, provider)
        for name in result.plan.parts:
            part = provider.parts.get(name)
            yield _part(source, base, name, part, provider)
        if result.plan.image:
            yield _image(source, base, provider)


def _base(source: Bundle, task: str, provider: ProviderResult) -> Measurement:
    engine = provider.engine
    return Measurement(
        kind="bundle",
        bundle=work.describe(source),
        task=task,
        part=IMAGE,
        status=provider.status,
        reason=provider.reason,
        emulated=SOFTWARE in (provider.adapter or "").lower(),
        runner=Program(name="page", version=__version__, detail=provider.adapter),
        engine=None if engine is None else engine.program,
        provider=provider.provider,
        threads=provider.threads,
    )


def _not_run(source: Bundle, task: str, reason: str) -> Iterator[Measurement]:
    for provider in PROVIDERS:
        entry = ProviderResult(provider=provider, status="not run", reason=reason)
        yield _base(source, task, entry)


def _part(
    source: Bundle, base: Measurement, name: str, part: PartResult | None, result: ProviderResult
) -> Measurement:
    if part is None or part.status == "failed" or not part.rounds:
        reason = (part.reason if part else None) or result.reason or "it was not reached"
        status = "failed" if base.status == "measured" else base.status
        return base.model_copy(update={"part": name, "status": status, "reason": reason})
    rounds = tuple(
        Round(
            load_s=each.load_s,
            load_again_s=each.load_again_s,
            first_s=each.first_s,
            samples_s=each.samples_s,
        )
        for each in part.rounds
        if each.load_s is not None and each.first_s is not None
    )
    latency, done = statistics.summarize(rounds), work.work_of(source.part(name))
    if latency is None:
        reason = result.reason or "it was not reached"
        return base.model_copy(update={"part": name, "status": "failed", "reason": reason})
    checks = [check for check in result.checks if check.part == name]
    update = {
        "part": name,
        "status": "measured",
        "reason": None,
        "work": done,
        "rounds": rounds,
        "latency": latency,
        "gflops": done.flops_total / latency.median / 1e9 if latency.median else None,
        "checks": tuple(each for check in checks for each in _checks(check)),
    }
    return base.model_copy(update=update)


def _checks(check: CheckResult) -> Iterator[Check]:
    for name, db in check.outputs.items():
        floor = check.floor_db
        yield Check(name=name, psnr_db=db, floor_db=floor, passed=db >= floor)


def _image(source: Bundle, base: Measurement, result: ProviderResult) -> Measurement:
    image = result.image
    if image is None:
        status = "failed" if base.status == "measured" else base.status
        reason = base.reason or "it was not reached"
        return base.model_copy(update={"status": status, "reason": reason})
    rounds = tuple(
        Round(
            load_s=each.load_s,
            load_again_s=None,
            first_s=each.first_s,
            samples_s=() if each.seconds is None else (each.seconds,),
        )
        for each in image.rounds
    )
    checks = [c for c in result.checks if (c.part, c.stage) == (PIPELINE, PASSES)]
    peak = None if result.memory is None else result.memory.wasm
    update = {
        "status": "measured",
        "reason": None,
        "rounds": rounds,
        "latency": statistics.summarize(rounds),
        "checks": tuple(each for check in checks for each in _checks(check)),
        "image": _picture(source, base.task, image),
        "memory": Memory(
            start=_NONE, loaded=_NONE, run=MemoryRecord(anonymous=None, file=None, peak=peak)
        ),
    }
    return base.model_copy(update=update)


def _picture(source: Bundle, task: str, image: ImageResult) -> Image:
    counts, golden = work.counts(source, source.task(task)), source.manifest.golden
    calls = {name: entry.seconds for name, entry in image.calls.items() if entry.seconds}
    is_whole = all(name in calls for name in counts.runs)
    seconds = (
        sum(runs * median(calls[name]) for name, runs in counts.runs.items()) if is_whole else 0.0
    )
    return Image(
        steps=counts.steps,
        passes=counts.passes,
        branches=counts.branches,
        seconds=seconds if is_whole else None,
        measured_steps=image.steps if golden is None else golden.steps,
        measured_s=tuple(each.seconds for each in image.rounds if each.seconds is not None),
    )
