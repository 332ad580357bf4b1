"""The jobs of a bundle: each part and the whole picture, measured and checked on its goldens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mtu_export import bundle, targets
from mtu_export.bench.job import COMPUTE_UNIT, Job, JobPart
from mtu_export.bench.program import Compiler, Past, Program
from mtu_export.bench.record import IMAGE, BundleRecord, Work
from mtu_export.bundle import Bundle, Part, TaskRecord, loop_proof, runner, sampler, verification
from mtu_export.bundle.loop_proof import GoldenLoop
from mtu_export.spec import Arrays, PlanError
from mtu_export.spec.catalog import SCHEMES

ENGINES = ("onnx", "executorch")
"""Targets whose artefacts a runner opens."""
Mode = Literal["quick", "full"]
_SAMPLES: Mapping[Mode, tuple[int, int, float]] = {"quick": (3, 20, 2e12), "full": (10, 50, 1e13)}
"""Fewest and most samples of a round, and the FLOPs that a round's samples may take together."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How jobs are run; ``options`` are the engine's, in addition to the contract's."""

    threads: int = 0
    cpus: str = "all"
    samples: int = 5
    warmup: int = 1
    load_again: bool = True
    cooldown_ms: int = 0
    deadline_s: float = 1800.0
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Floor in dB of each register that a check compares, and the register's name for people."""

    floors: Mapping[str, tuple[str, float]]


def identity(source: Bundle) -> str:
    """SHA-256 of the manifest, which holds the hashes of all files."""
    return bundle.sha256(source.folder / bundle.MANIFEST)


def describe(source: Bundle) -> BundleRecord:
    """The bundle for a record."""
    manifest = source.manifest
    return BundleRecord(
        name=manifest.name,
        manifest_sha256=identity(source),
        source=manifest.source.name,
        source_sha256=manifest.source.sha256,
        target=manifest.target,
        scheme=manifest.scheme.name,
        height=manifest.image.height,
        width=manifest.image.width,
        tasks=tuple(task.name for task in source.tasks),
        bytes=source.bytes,
        options=dict(manifest.options),
        versions=dict(manifest.versions),
    )


def work_of(part: Part) -> Work:
    """Bytes and work of one run of a part."""
    cost = part.record.cost
    return Work(
        bytes=part.bytes,
        parameters=cost.parameters,
        flops_conv_linear=cost.flops_conv_linear,
        flops_total=cost.flops_total,
    )


# ------------------------------------------------------------------------------------- one part


def part_job(source: Bundle, task: str, name: str, settings: Settings) -> Job:
    """Measures one part on its first golden input. Raises ``PlanError`` where there is none."""
    part = source.part(name)
    inputs, _ = _cases(source, part, task)[0]
    registers = {output.name: f"out/{output.name}" for output in part.outputs}
    program = [_call(part, {key: f"in/{key}" for key in inputs}, registers)]
    job = _job(source, task, [part], settings)
    return replace(
        job,
        tensors={f"in/{key}": value for key, value in inputs.items()},
        program=program,
        samples=settings.samples,
        warmup=settings.warmup,
        load_again=settings.load_again,
    )


def part_check(source: Bundle, task: str, name: str, settings: Settings) -> tuple[Job, Floors]:
    """Compares one part with PyTorch on all its goldens."""
    part = source.part(name)
    tensors, program, expected, floors = {}, [], {}, {}
    floor = verification.part_floor(SCHEMES[part.scheme.name], part, None)
    for number, (inputs, outputs) in enumerate(_cases(source, part, task)):
        registers = {key: f"{number}/{key}" for key in outputs}
        tensors |= {f"in/{number}/{key}": value for key, value in inputs.items()}
        tensors |= {f"expected/{number}/{key}": value for key, value in outputs.items()}
        program.append(_call(part, {key: f"in/{number}/{key}" for key in inputs}, registers))
        for key, register in registers.items():
            expected[register] = f"expected/{number}/{key}"
            floors[register] = (f"{key}, case {number}", floor)
    job = _job(source, task, [part], settings)
    job = replace(job, tensors=tensors, program=program, expected=expected)
    return job, Floors(floors=floors)


def _call(
    part: Part, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> Mapping[str, object]:
    return {"op": "call", "part": part.name, "inputs": inputs, "outputs": outputs}


def _cases(source: Bundle, part: Part, task: str) -> Sequence[tuple[Arrays, Arrays]]:
    entry = part.entry_of(task)
    first = next(name for name in part.proved if part.entries[name] == entry)
    cases = bundle.Goldens(source).cases(part.name, first)
    if not cases:
        raise PlanError(f"{bundle.GOLDENS} has no case of {part.name} for task {task!r}")
    return cases


def _job(source: Bundle, task: str, parts: list[Part], settings: Settings) -> Job:
    """A job with these parts, and nothing to do yet."""
    target = source.manifest.target
    options = dict(targets.load(target).info.session_options)
    if COMPUTE_UNIT in source.manifest.options:
        options[COMPUTE_UNIT] = str(source.manifest.options[COMPUTE_UNIT])
    return Job(
        engine=target,
        folder=source.folder,
        identity=identity(source),
        parts={part.name: job_part(source, part, task) for part in parts},
        tensors={},
        program=(),
        options={**options, **settings.options},
        threads=settings.threads,
        cpus=settings.cpus,
        cooldown_ms=settings.cooldown_ms,
        deadline_s=settings.deadline_s,
    )


def job_part(source: Bundle, part: Part, task: str, prefix: str = "") -> JobPart:
    """A part as a job names it; ``prefix`` is a folder above the bundle."""
    return JobPart(
        path=f"{prefix}{part.record.path}",
        entry=part.entry_of(task),
        inputs=part.inputs_of(task),
        outputs=part.outputs,
    )


# ------------------------------------------------------------------------------------ the picture


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A task's golden request, ready for programs."""

    loop: runner.Loop
    golden: GoldenLoop


def picture_of(source: Bundle, task: str) -> Picture:
    """The golden request of a task; raises ``PlanError`` where the bundle cannot run it."""
    tensors = bundle.Goldens(source).loop(task)
    if not tensors:
        raise PlanError(f"{bundle.GOLDENS} holds no loop of task {task!r}")
    loop = runner.open_loop(source, task)
    return Picture(loop=loop, golden=loop_proof.golden_loop(loop, tensors))


def image_job(source: Bundle, task: str, settings: Settings) -> Job:
    """Measures whole pictures of the golden request, all parts loaded."""
    picture = picture_of(source, task)
    program = _compiled(picture, None)
    job = _job(source, task, _parts(picture), settings)
    return replace(
        job,
        tensors=program.tensors,
        program=program.instructions,
        samples=settings.samples,
        warmup=settings.warmup,
    )


def image_check(source: Bundle, task: str, settings: Settings) -> tuple[Job, Floors]:
    """Each pass from the reference's states, and the picture of its last latent."""
    picture = picture_of(source, task)
    golden = picture.golden
    past = Past(latents=golden.latents, outputs=golden.outputs)
    program = _compiled(picture, past)
    names = {f"x after pass {i}": reg for i, reg in enumerate(program.latents)}
    names["picture"] = program.picture
    expected = {f"expected/{i}": latent for i, latent in enumerate(golden.latents)}
    expected["expected/picture"] = golden.picture
    floor = verification.pass_floor(SCHEMES[source.manifest.scheme.name], None)
    job = _job(source, task, _parts(picture), settings)
    job = replace(
        job,
        tensors={**program.tensors, **expected},
        program=program.instructions,
        expected=dict(zip(names.values(), expected, strict=True)),
    )
    return job, Floors(floors={reg: (name, floor) for name, reg in names.items()})


def _compiled(picture: Picture, past: Past | None) -> Program:
    loop, request = picture.loop, picture.golden.request
    shapes = {
        name: {output.name: output.shape for output in loop.bundle.part(name).outputs}
        for name in loop.task.flow.parts
    }
    schedule = runner.schedule_of(loop, request) if loop.task.flow.has_loop else None
    return Compiler(runner.begin(loop, request), shapes).picture(schedule, past)


def _parts(picture: Picture) -> list[Part]:
    return [picture.loop.bundle.part(name) for name in picture.loop.task.flow.parts]


# ------------------------------------------------------------------------------------ the count


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Runs of each part for a picture at the task's own steps; ``passes`` of its table."""

    steps: int
    passes: int
    branches: int
    runs: Mapping[str, int]


def counts(source: Bundle, task: TaskRecord) -> Counts:
    """How often each part runs for a picture with the prompt alone."""
    branches, flow = len(sampler.branches(task.scales)), task.flow
    passes = 0
    if flow.has_loop:
        strength = task.strength if flow.start is not None else None
        passes = len(source.schedules[task.steps, strength].passes)
    runs: dict[str, int] = {}
    for call in flow.calls:
        often = 1
        if call.when == "pass":
            batch = max(spec.shape[0] for spec in source.part(call.part).inputs_of(task.name))
            often = passes * math.ceil(branches / batch)
        elif call.when == "guided":
            often = passes
        runs[call.part] = runs.get(call.part, 0) + often
    return Counts(steps=task.steps, passes=passes, branches=branches, runs=runs)


def parts_of(source: Bundle, task: TaskRecord) -> list[str]:
    """The parts that a task runs and the bundle has, then the picture where it has all of them."""
    present = [name for name in task.flow.parts if name in {part.name for part in source.parts}]
    whole = len(present) == len(task.flow.parts)
    golden = bool(bundle.Goldens(source).loop(task.name))
    return [*present, IMAGE] if whole and golden else present


def denoiser_of(source: Bundle, task: TaskRecord) -> str | None:
    """The part that passes run; None where there is no loop."""
    return next((call.part for call in task.flow.of("pass")), None)


def samples_for(flops: int, mode: Mode) -> int:
    """Samples of a round, by the work of one: large models need fewer for the same certainty."""
    fewest, most, budget = _SAMPLES[mode]
    return max(fewest, min(most, int(budget // max(flops, 1))))
