"""A run of the suite: contenders measured in rounds that take turns, then checked.

Each round of each contender is a process of its own, so every round loads anew; within a round the
order rotates, so that a slow minute of the machine meets all of them. Checks come after the timing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Literal

from mtu_export import __version__
from mtu_export.bench import job as jobs
from mtu_export.bench import peak, statistics, work
from mtu_export.bench.devices import Device, DeviceLost
from mtu_export.bench.job import Job, Result
from mtu_export.bench.record import (
    IMAGE,
    BundleRecord,
    Check,
    Comparison,
    DeviceState,
    Fleet,
    Image,
    Kind,
    Measurement,
    Peak,
    Round,
    Run,
)
from mtu_export.bench.work import Mode, Settings
from mtu_export.bundle import Bundle, TaskRecord
from mtu_export.spec import MtuExportError, ToolchainMissing

Progress = Callable[[str], None]
ROUNDS: dict[str, int] = {"quick": 3, "full": 5}
IMAGE_SAMPLES = 2  # whole pictures of a round
PACKAGES = ("numpy", "torch", "diffusers", "onnx", "onnxruntime", "executorch", "coremltools")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What takes part: a bundle, or why there is none.

    ``label`` is the record to show where there is no bundle: that of the bundle it would be a
    baseline of. ``task`` limits it to one task.
    """

    kind: Kind
    bundle: Bundle | None
    label: BundleRecord
    task: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How a run is made.

    ``rounds`` and ``samples`` replace those of the mode; ``tasks`` and ``parts`` select, all by
    default. ``state`` is a folder that keeps results: a run that was stopped goes on from there.
    """

    mode: Mode = "quick"
    settings: Settings = field(default_factory=Settings)
    rounds: int | None = None
    samples: int | None = None
    tasks: Sequence[str] = ()
    parts: Sequence[str] = ()
    checks: bool = True
    commit: str | None = None
    state: Path | None = None


@dataclass(kw_only=True)
class _Item:
    """One contender's part on its way: its rounds so far."""

    contender: Contender
    task: TaskRecord
    part: str
    job: Job | None = None
    results: list[Result] = field(default_factory=list)
    reason: str | None = None
    status: Literal["measured", "failed", "not run"] = "measured"
    checks: tuple[Check, ...] = ()
    before: DeviceState | None = None
    after: DeviceState | None = None


class Suite:
    """One run on one device; ``progress`` is told each step in one line."""

    def __init__(
        self, device: Device, options: SuiteOptions, progress: Progress = lambda _: None
    ) -> None:
        self.device, self.options, self.progress = device, options, progress
        self.rounds = options.rounds or ROUNDS[options.mode]
        self.lost: str | None = None
        self._peaks: dict[str, list[float]] = {}
        self.notes: list[str] = []

    def run(self, groups: Sequence[Sequence[Contender]], fleets: Sequence[Fleet] = ()) -> Run:
        """Measure groups of contenders; within a group each is compared with the first."""
        described = self.device.describe()
        self.emulated = described.emulated  # no time is a speed, so there is no yardstick
        bundles = [c.bundle for group in groups for c in group if c.bundle is not None]
        runnable = [each for each in bundles if self.device.refuses(each) is None]
        self.device.prepare(runnable)
        items = [item for group in groups for item in self._group(group)]
        peaks = tuple(self._peak(engine, seconds) for engine, seconds in self._peaks.items())
        measurements = tuple(self._measurement(item, peaks, described.emulated) for item in items)
        return Run(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            mode=self.options.mode,
            mtu_export=__version__,
            commit=self.options.commit,
            versions=_versions(),
            device=described,
            measurements=measurements,
            peaks=peaks,
            comparisons=tuple(_comparisons(measurements)),
            fleets=tuple(fleets),
            notes=tuple(self.notes),
        )

    # ------------------------------------------------------------------------------------ a group

    def _group(self, group: Sequence[Contender]) -> list[_Item]:
        items: list[_Item] = []
        first = group[0].bundle
        assert first is not None
        for task in first.tasks:
            if self.options.tasks and task.name not in self.options.tasks:
                continue
            denoiser = work.denoiser_of(first, task)
            for part in work.parts_of(first, task):
                if self.options.parts and part not in self.options.parts:
                    continue
                turns = [
                    self._item(contender, task, part)
                    for contender in group
                    if contender is group[0]
                    or (part == denoiser and contender.task in (None, task.name))
                ]
                self._take_turns(turns, yardstick=part == denoiser)
                items += turns
        for item in items:
            self._check(item)
        return items

    def _item(self, contender: Contender, task: TaskRecord, part: str) -> _Item:
        """A contender's part with its job, or the reason why there is none."""
        item = _Item(contender=contender, task=task, part=part)
        source = contender.bundle
        if source is None:
            item.status, item.reason = "failed", contender.reason
            return item
        refused = self.device.refuses(source)
        if refused is not None:
            item.status, item.reason = "not run", refused
            return item
        try:
            item.job = self._job(source, task.name, part)
        except MtuExportError as error:
            item.status, item.reason = "failed", str(error)
        return item

    def _job(self, source: Bundle, task: str, part: str) -> Job:
        settings = self.options.settings
        if part == IMAGE:
            count = self.options.samples or IMAGE_SAMPLES
            return work.image_job(source, task, replace(settings, samples=count))
        flops = source.part(part).record.cost.flops_total
        count = self.options.samples or work.samples_for(flops, self.options.mode)
        return work.part_job(source, task, part, replace(settings, samples=count))

    def _take_turns(self, items: Sequence[_Item], *, yardstick: bool) -> None:
        """Every round of every contender; their engine's yardstick may take turns with them."""
        engines = {item.job.engine for item in items if item.job} & {*peak.ENGINES}
        for number in range(self.rounds):
            for engine in sorted(engines) if yardstick and not self.emulated else ():
                self._measure_peak(engine, number)
            shift = number % max(1, len(items))
            for item in [*items[shift:], *items[:shift]]:
                if item.job is not None and item.status == "measured":
                    self._round(item, number)

    def _round(self, item: _Item, number: int) -> None:
        if self.lost is not None:
            item.status, item.reason = "not run", self.lost
            return
        assert item.job is not None
        name = f"{item.contender.kind} {item.contender.label.name} {item.task.name} {item.part}"
        self.progress(f"{name}: round {number + 1} of {self.rounds}")
        before = self._state(wait=True)
        item.before = item.before or before
        result = self._ask(item.job, f"{item.part}-{item.task.name}-{number}")
        item.after = self._state() or item.after
        if result is None:
            item.status, item.reason = "not run", self.lost
        elif result.status == "failed":
            item.status, item.reason = "failed", result.reason
        else:
            item.results.append(result)

    def _state(self, *, wait: bool = False) -> DeviceState | None:
        """Heat, battery and clocks; None of a device that is lost."""
        try:
            return None if self.lost is not None else self.device.state(wait=wait)
        except DeviceLost as error:
            self.lost = str(error)
            return None

    def _ask(self, job: Job, key: str) -> Result | None:
        """The result of a job: kept from a run that was stopped, or new; None where it is lost."""
        path = None
        if self.options.state is not None:
            document = json.dumps(job.document(job.identity), sort_keys=True)
            path = self.options.state / f"{jobs.stamp(self.device.name, key, document)}.json"
            if path.is_file():
                return jobs.parse(path.read_bytes())
        if self.lost is not None:
            return None
        try:
            result = self.device.run(job)
        except DeviceLost as error:
            self.lost = str(error)
            return None
        if path is not None and result.status == "measured":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result.to_json()), "utf-8")
        return result

    def _measure_peak(self, engine: str, number: int) -> None:
        if self.lost is not None:
            return
        try:
            job = peak.peak_job(engine, self.options.settings)
        except ToolchainMissing as error:
            self._note(f"no yardstick of {engine}: {error}")
            return
        count = len(self._peaks.get(engine, []))
        result = self._ask(job, f"peak-{count}-{number}")
        if result is None or result.status == "failed":
            self._note(f"no yardstick of {engine}: {result.reason if result else self.lost}")
            return
        self._peaks.setdefault(engine, []).append(median(result.samples_s))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # ------------------------------------------------------------------------------------- checks

    def _check(self, item: _Item) -> None:
        """Compare with the goldens on the device, in a process of its own."""
        source = item.contender.bundle
        if not self.options.checks or item.status != "measured" or source is None:
            return
        settings = self.options.settings
        try:
            if item.part == IMAGE:
                job, floors = work.image_check(source, item.task.name, settings)
            else:
                job, floors = work.part_check(source, item.task.name, item.part, settings)
        except MtuExportError as error:
            self._note(f"{item.contender.label.name} {item.part}: not checked: {error}")
            return
        self.progress(f"{item.contender.kind} {item.contender.label.name} {item.part}: check")
        result = self._ask(job, f"check-{item.part}-{item.task.name}")
        if result is None:
            self._note(f"{item.contender.label.name} {item.part}: not checked: {self.lost}")
            return
        if result.status == "failed":
            item.status, item.reason = "failed", f"the check: {result.reason}"
            return
        item.checks = tuple(
            Check(name=name, psnr_db=db, floor_db=floor, passed=db >= floor)
            for register, (name, floor) in floors.floors.items()
            if (db := result.psnr_db.get(register)) is not None
        )

    # ----------------------------------------------------------------------------------- records

    def _peak(self, engine: str, seconds: Sequence[float]) -> Peak:
        middle = median(seconds)
        return Peak(
            engine=engine,
            size=peak.SIZE,
            seconds=middle,
            gflops=peak.FLOPS / middle / 1e9,
            rounds=tuple(seconds),
        )

    def _measurement(self, item: _Item, peaks: Sequence[Peak], emulated: bool) -> Measurement:
        """The record of an item; numbers only where every round was measured."""
        contender = item.contender
        record = contender.label if contender.bundle is None else work.describe(contender.bundle)
        measurement = Measurement(
            kind=contender.kind,
            bundle=record,
            task=item.task.name,
            part=item.part,
            status=item.status,
            reason=item.reason,
            emulated=emulated,
            provider=item.job.provider if item.job else "cpu",
            before=item.before,
            after=item.after,
        )
        if item.status != "measured" or not item.results or contender.bundle is None:
            return measurement
        return _with_numbers(measurement, item, contender.bundle, peaks)


def _with_numbers(
    measurement: Measurement, item: _Item, source: Bundle, peaks: Sequence[Peak]
) -> Measurement:
    rounds = tuple(
        Round(
            load_s=sum(result.load_s.values()),
            load_again_s=sum(result.load_again_s.values()) if result.load_again_s else None,
            first_s=result.first_s or 0.0,
            samples_s=result.samples_s,
        )
        for result in item.results
    )
    last, latency = item.results[-1], statistics.summarize(rounds)
    if latency is None:
        return measurement
    update: dict[str, object] = {
        "runner": None if last.runner is None else last.runner.program,
        "engine": None if last.engine is None else last.engine.program,
        "threads": last.threads,
        "mask": last.mask,
        "rounds": rounds,
        "latency": latency,
        "memory": last.memory,
        "checks": item.checks,
    }
    if item.part != IMAGE:
        done = work.work_of(source.part(item.part))
        gflops = done.flops_total / latency.median / 1e9 if latency.median else None
        yardstick = next((p for p in peaks if p.engine == source.manifest.target), None)
        update |= {"work": done, "gflops": gflops}
        if gflops is not None and yardstick is not None:
            update["share_of_peak"] = gflops / yardstick.gflops
    else:
        update["image"] = _image(source, item)
    return measurement.model_copy(update=update)


def _image(source: Bundle, item: _Item) -> Image:
    """A picture at the task's own steps, from the medians of calls within whole pictures."""
    counts = work.counts(source, item.task)
    seconds = 0.0
    for part, runs in counts.runs.items():
        calls = [s for r in item.results if part in r.calls for s in r.calls[part].seconds]
        seconds += runs * median(calls) if calls else 0.0
    golden = source.manifest.golden
    return Image(
        steps=counts.steps,
        passes=counts.passes,
        branches=counts.branches,
        seconds=seconds,
        measured_steps=None if golden is None else golden.steps,
        measured_s=tuple(s for result in item.results for s in result.samples_s),
    )


def _comparisons(measurements: Sequence[Measurement]) -> list[Comparison]:
    """Every bundle against each of its baselines, part by part."""
    comparisons = []
    for index, subject in enumerate(measurements):
        if subject.kind != "bundle":
            continue
        for other in measurements[index + 1 :]:
            if other.kind == "bundle" and other.part == subject.part:
                break
            same = (other.task, other.part) == (subject.task, subject.part)
            ratio = statistics.comparison(subject, other) if same else None
            comparisons += [] if ratio is None else [ratio]
    return comparisons


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
