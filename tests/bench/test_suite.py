"""A run of the suite on a device that is a script: turns, failures, losses, comparisons, checks."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtu_export import bundle
from mtu_export.bench import api, peak, record, work
from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.host import Host
from mtu_export.bench.job import Calls, EngineRecord, Job, Result, RunnerRecord, failed
from mtu_export.bench.memory import Meter
from mtu_export.bench.record import IMAGE, DeviceRecord, DeviceState, Memory, MemoryRecord, Run
from mtu_export.bench.suite import Contender, Suite, SuiteOptions
from mtu_export.bundle import Bundle
from mtu_export.spec import PlanError, UnknownName
from mtu_export.spec.options import BenchOptions
from tests.support.vectors import TESTDATA

MEMORY = MemoryRecord(anonymous=1_000_000, file=2_000_000, peak=4_000_000)


@pytest.fixture(scope="module")
def source() -> Bundle:
    return bundle.read(TESTDATA / "edit-onnx-int8")


class Script:
    """A device whose results a function gives; it keeps the jobs that it was asked."""

    name = "script"

    def __init__(self, answer: Callable[[Job, int], Result], *, emulated: bool = False) -> None:
        self.answer, self.emulated = answer, emulated
        self.jobs: list[Job] = []
        self.prepared: list[Bundle] = []
        self.waits = 0

    def describe(self) -> DeviceRecord:
        return DeviceRecord(
            kind="host", model="script", os="none", arch="none", emulated=self.emulated
        )

    def refuses(self, bundle: Bundle) -> str | None:
        return None if bundle.manifest.target == "onnx" else "no engine"

    def prepare(self, bundles: Sequence[Bundle]) -> None:
        self.prepared += bundles

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        return self.answer(job, len(self.jobs))

    def state(self, *, wait: bool = False) -> DeviceState:
        self.waits += wait
        return DeviceState(thermal_status=0)

    def close(self) -> None:
        pass


def measured(job: Job, seconds: float = 0.01) -> Result:
    """A result that answers a job."""
    count = {
        name: sum(step.get("part") == name for step in job.program) * job.samples
        for name in job.parts
    }
    return Result(
        status="measured",
        runner=RunnerRecord(name="script", version="1", language="none"),
        engine=EngineRecord(name="engine", version="2"),
        threads=2,
        load_s=dict.fromkeys(job.parts, 0.5),
        load_again_s=dict.fromkeys(job.parts, 0.1) if job.load_again else {},
        first_s=0.2,
        samples_s=(seconds,) * job.samples,
        calls={n: Calls(count=c, seconds=(seconds / 2,) * c) for n, c in count.items()},
        memory=Memory(start=MEMORY, loaded=MEMORY, run=MEMORY, peak_total=5_000_000),
        psnr_db=dict.fromkeys(job.expected, 50.0),
    )


def contender(source: Bundle, kind: Any = "bundle", **values: Any) -> Contender:
    return Contender(kind=kind, bundle=source, label=work.describe(source), **values)


def run_of(
    device: Script, groups: Sequence[Sequence[Contender]], **options: Any
) -> tuple[Run, Suite]:
    used = Suite(device, SuiteOptions(**options))
    return used.run(groups), used


def is_peak(job: Job) -> bool:
    return "peak" in job.parts


def test_a_record_has_every_part_and_the_picture(source: Bundle, tmp_path: Path) -> None:
    device = Script(lambda job, _: measured(job))
    run, _ = run_of(device, [[contender(source)]], rounds=2)
    parts = [each.part for each in run.measurements]
    assert parts == ["text_encoder", "vae_encoder", "unet", "vae_decoder", IMAGE]
    unet = run.measurements[2]
    assert unet.latency is not None
    assert unet.latency.rounds == (0.01, 0.01)
    assert unet.rounds[0].load_again_s == 0.1
    assert unet.work is not None
    assert unet.gflops == pytest.approx(unet.work.flops_total / 0.01 / 1e9)
    assert unet.gflops is not None
    peak_gflops = peak.FLOPS / 0.01 / 1e9
    assert unet.share_of_peak == pytest.approx(unet.gflops / peak_gflops)
    assert {check.name for check in unet.checks} == {
        f"out_sample, case {number}" for number in range(bundle.CASES)
    }
    assert all(check.passed for check in unet.checks)
    assert device.waits == 2 * len(parts)
    path = tmp_path / "record.json"
    record.write(run, path)
    assert record.read(path) == run


def test_a_picture_counts_the_calls_of_the_task(source: Bundle) -> None:
    run, _ = run_of(Script(lambda job, _: measured(job)), [[contender(source)]], rounds=1)
    image = run.measurements[-1].image
    task = source.task("edit")
    passes = len(source.schedules[task.steps, None].passes)
    assert image is not None
    assert (image.steps, image.passes, image.branches) == (task.steps, passes, 3)
    once = 3  # text encoder, VAE encoder, VAE decoder
    assert image.seconds == pytest.approx((once + passes * 3) * 0.005)
    assert len(image.measured_s) == 2


def test_contenders_take_turns_and_are_compared(source: Bundle) -> None:
    """The second of the pair takes twice as long, and the machine slows down all the time."""
    state = {"drift": 1.0}

    def answer(job: Job, _: int) -> Result:
        state["drift"] *= 1.05
        slow = 2.0 if job.options.get("slow") else 1.0
        return measured(job, 0.01 * slow * state["drift"])

    device = Script(answer)
    used = Suite(device, SuiteOptions(rounds=4, parts=("unet",), checks=False))
    original = used._job

    def job_of(other: Bundle, task: str, part: str) -> Job:
        job = original(other, task, part)
        return job if other is source else type(job)(**{**vars(job), "options": {"slow": "1"}})

    used._job = job_of  # type: ignore[method-assign]
    dense = bundle.read(source.folder)
    run = used.run([[contender(source), contender(dense, "dense")]])
    turns = [
        "slow" if job.options.get("slow") else "fast" for job in device.jobs if not is_peak(job)
    ]
    assert turns == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    (comparison,) = run.comparisons
    assert (comparison.subject, comparison.baseline) == ("bundle", "dense")
    assert comparison.ratio == pytest.approx(0.5, rel=0.06)
    assert comparison.low < comparison.ratio < comparison.high


def test_a_failure_is_a_row_with_its_reason(source: Bundle) -> None:
    device = Script(
        lambda job, _: (
            failed("killed, most likely out of memory")
            if "unet" in job.parts and len(job.parts) == 1
            else measured(job)
        )
    )
    run, _ = run_of(device, [[contender(source)]], rounds=3)
    by_part = {each.part: each for each in run.measurements}
    assert by_part["unet"].status == "failed"
    assert by_part["unet"].reason == "killed, most likely out of memory"
    assert by_part["unet"].latency is None
    assert by_part["vae_decoder"].status == "measured"
    asked = [job for job in device.jobs if set(job.parts) == {"unet"}]
    assert len(asked) == 1, "a part that failed is not asked again"


def test_what_no_device_runs_is_not_run(source: Bundle) -> None:
    other = source.manifest.model_copy(update={"target": "coreml"})
    refused = Bundle(
        folder=source.folder, manifest=other, parts=source.parts, schedules=source.schedules
    )
    device = Script(lambda job, _: measured(job))
    run, _ = run_of(device, [[contender(refused)]])
    assert {(each.status, each.reason) for each in run.measurements} == {("not run", "no engine")}
    assert device.jobs == []
    assert device.prepared == []


def test_a_baseline_that_could_not_be_made_is_a_row(source: Bundle) -> None:
    lost = Contender(
        kind="plain", bundle=None, label=work.describe(source), reason="its int8 path failed"
    )
    device = Script(lambda job, _: measured(job))
    run, _ = run_of(device, [[contender(source), lost]], parts=("unet",), rounds=1)
    plain = run.measurements[-1]
    assert (plain.kind, plain.status, plain.reason) == ("plain", "failed", "its int8 path failed")
    assert run.comparisons == ()


def test_a_lost_device_leaves_what_is_measured(source: Bundle) -> None:
    def answer(job: Job, number: int) -> Result:
        if number > 5:
            raise DeviceLost("the phone is gone")
        return measured(job)

    run, _ = run_of(Script(answer), [[contender(source)]], rounds=1)
    statuses = [each.status for each in run.measurements]
    assert "measured" in statuses
    assert statuses[-1] == "not run"
    assert run.measurements[-1].reason == "the phone is gone"


def test_a_device_lost_between_two_jobs_ends_no_command(source: Bundle) -> None:
    """Heat and clocks are asked before and after a job, when the cable may be pulled too."""

    class Unplugged(Script):
        def state(self, *, wait: bool = False) -> DeviceState:
            if len(self.jobs) > 3:
                raise DeviceLost("the phone is gone")
            return super().state(wait=wait)

    run, _ = run_of(Unplugged(lambda job, _: measured(job)), [[contender(source)]], rounds=1)
    statuses = [each.status for each in run.measurements]
    assert statuses[0] == "measured"
    assert statuses[-1] == "not run"
    assert run.measurements[-1].reason == "the phone is gone"


def test_a_stopped_run_goes_on(source: Bundle, tmp_path: Path) -> None:
    first = Script(lambda job, _: measured(job))
    options: dict[str, Any] = {"rounds": 2, "parts": ("unet",), "state": tmp_path}
    run, _ = run_of(first, [[contender(source)]], **options)
    second = Script(lambda job, _: failed("never asked"))
    again, _ = run_of(second, [[contender(source)]], **options)
    assert second.jobs == []
    assert again.measurements == run.measurements
    more = Script(lambda job, _: measured(job, 0.02))
    run_of(more, [[contender(source)]], **{**options, "rounds": 3})
    assert [job for job in more.jobs if not is_peak(job)], "another round is new"
    other = Script(lambda job, _: measured(job))
    run_of(other, [[contender(source)]], **options, settings=work.Settings(load_again=False))
    assert [job for job in other.jobs if not is_peak(job)], "another job is new"


def test_a_check_below_its_floor_shows(source: Bundle) -> None:
    def answer(job: Job, _: int) -> Result:
        return measured(job).model_copy(update={"psnr_db": dict.fromkeys(job.expected, 3.0)})

    run, _ = run_of(Script(answer), [[contender(source)]], parts=("unet",), rounds=1)
    assert [check.passed for check in run.measurements[0].checks] == [False] * bundle.CASES


def test_emulated_is_on_every_row(source: Bundle) -> None:
    device = Script(lambda job, _: measured(job), emulated=True)
    run, _ = run_of(device, [[contender(source)]], rounds=1)
    assert all(each.emulated for each in run.measurements)


@pytest.mark.parametrize(("flops", "quick", "full"), [(1, 20, 50), (7e11, 3, 14), (2e13, 3, 10)])
def test_large_models_take_fewer_samples(flops: float, quick: int, full: int) -> None:
    assert work.samples_for(int(flops), "quick") == quick
    assert work.samples_for(int(flops), "full") == full


def test_the_host_runs_a_bundle_by_both_runners(source: Bundle) -> None:
    """testdata on this host; the C++ runner joins where it is built."""
    host = Host("python")
    job, floors = work.image_check(source, "edit", work.Settings(threads=1))
    result = host.run(job)
    assert result.status == "measured", result.reason
    for register, (name, floor) in floors.floors.items():
        assert result.psnr_db[register] >= floor, name
    described = host.describe()
    assert described.cores
    assert described.page_size
    assert not described.emulated


def test_a_runner_that_says_nothing_is_a_failed_result(
    source: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    job = work.part_job(source, "edit", "unet", work.Settings())
    result = Host("python").run(job)
    assert result.status == "failed"
    assert result.reason == "the runner ended with exit code 1: without a word"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"device": "phone"}, "unknown device 'phone'"),
    ({"device": "host:1"}, "unknown device"),
    ({"device": "adb:"}, "unknown device"),
    ({"mode": "slow"}, "unknown mode"),
    ({"cpus": "0"}, "--cpus takes"),
    ({"cpus": "fast"}, "--cpus takes"),
    ({"engine_options": ("x",)}, "--option takes NAME=VALUE"),
    ({"rounds": 0}, "--rounds must be from 1"),
    ({"keep": True}, "--keep belongs to --device adb"),
    ({"ort_web": "x"}, "--ort-web belongs to --device web"),
    ({"device": "web", "runner": "python"}, "--runner belongs to --device host"),
    ({"model": "x"}, "give --baseline too"),
]


@pytest.mark.parametrize(("values", "words"), REFUSALS)
def test_options_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as refused:
        BenchOptions(**values)
    assert words in str(refused.value)


def test_names_are_checked(source: Bundle) -> None:
    with pytest.raises(UnknownName, match="choose from: edit"):
        api.bench([source], task="t2i")
    with pytest.raises(UnknownName, match="vae_decoder, image"):
        api.bench([source], part="nothing")
    with pytest.raises(PlanError, match="at least one"):
        api.bench([])


def test_a_record_from_elsewhere_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text, words in (("{", "the file"), ("{}", "created"), ('{"format": "9"}', "format")):
        path.write_text(text)
        with pytest.raises(PlanError, match="no benchmark record") as refused:
            record.read(path)
        assert words in str(refused.value)
    with pytest.raises(PlanError, match="cannot read"):
        record.read(tmp_path / "none.json")


def test_memory_is_read() -> None:
    size = 64_000_000
    meter = Meter()
    before = meter.read()["anonymous"]
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:  # never reused memory
        block.write(b"x" * size)
        after = meter.read()["anonymous"]
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * size
