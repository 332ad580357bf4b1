"""A task of a bundle, run for one request (``runtime/README.md``, "The flow" and "The loop").

The parts run in the target's runtime, so no checkpoint is needed, and torch only where that runtime
uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, Part, TaskRecord, sampler, tokenizer
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.bundle.rules import Schedules
from mtu_export.bundle.structure import structure_of
from mtu_export.spec import (
    Arrays,
    BundleError,
    ParityError,
    PlanError,
    Runtime,
    Schedule,
    Session,
    ToolchainError,
    UnknownName,
    shown,
)
from mtu_export.spec.flow import Output, Tokens

Progress = Callable[[int, int, np.ndarray], None]
"""Called after each pass with its number, their count and the latent [1, C, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One task of a bundle, checked to have all that its flow needs.

    ``schedules`` are the tables of this task: with a strength where it starts from a picture.
    """

    bundle: Bundle
    task: TaskRecord
    schedules: Schedules
    constants: Mapping[str, np.ndarray]
    runtime: Runtime

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        image = self.bundle.manifest.image
        return image.height, image.width

    @property
    def latent(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the latent; None where the flow has no loop."""
        latent = self.bundle.manifest.latent
        if latent is None or not self.task.flow.has_loop:
            return None
        height, width = (side // latent.factor for side in self.size)
        return latent.channels, height, width

    @property
    def runner(self) -> str:
        """Name and version of the runtime that runs the parts here."""
        runner, reason = self.runtime.runner()
        return runner or str(reason)

    @property
    def slow(self) -> str | None:
        """A warning that this runtime is slow, or None."""
        return self.runtime.slow


def open_loop(source: Bundle, name: str | None = None, runtime: Runtime | None = None) -> Loop:
    """A task (the only one where none is named) in a runtime, else the default one.

    Raises ``PlanError`` for an unknown task, ``BundleError`` where parts or constants are missing
    or do not fit together, or an unknown target.
    """
    tasks = {task.name: task for task in source.tasks}
    if name is None and len(tasks) > 1:
        raise PlanError(f"name a --task; this bundle has: {', '.join(tasks)}")
    if name is not None and name not in tasks:
        raise UnknownName("task", name, list(tasks))
    task = tasks[name] if name is not None else next(iter(tasks.values()))
    present = {part.name for part in source.parts}
    missing = [part for part in task.flow.parts if part not in present]
    if missing:
        raise BundleError(
            f"{source.folder} has no {', '.join(missing)}: task {task.name!r} needs it"
        )
    if source.manifest.target not in targets.names():
        raise BundleError(f"{bundle.MANIFEST}: unknown target {shown(source.manifest.target)}")
    constants = bundle.read_constants(source)
    bundle.validate_wiring(source, task, constants)
    return Loop(
        bundle=source,
        task=task,
        schedules={
            key: table
            for key, table in source.schedules.items()
            if (key[1] is None) == (task.flow.start is None)
        },
        constants=constants,
        runtime=runtime or targets.runtime(targets.load(source.manifest.target)),
    )


class Generation(NamedTuple):
    """``latents`` [1, C, h, w] after each pass; ``image`` [1, 3, H, W] in −1..1, not clipped."""

    latents: list[np.ndarray]
    image: np.ndarray


@np.errstate(all="ignore")  # what is not finite is refused
def generate(loop: Loop, request: Request, progress: Progress = lambda *_: None) -> Generation:
    """Run a task for one request.

    Parts are loaded, used and released in turn; those of a pass are loaded together. Raises
    ``PlanError`` for a request that the task cannot serve, ``BundleError`` for a part that is not
    what the manifest says of it, and ``ParityError`` for one that gives NaN or Inf.
    """
    evaluation = prepare(loop, request)
    latents: list[np.ndarray] = []
    if loop.task.flow.has_loop:
        schedule = schedule_of(loop, request)
        assert request.noise is not None
        passes = sampler.trajectory(
            schedule, request.noise, open_denoiser(loop, evaluation), evaluation.start()
        )
        for _, x in passes:
            latents.append(x)
            progress(len(latents), len(schedule.passes), x)
        del passes
    return Generation(latents, decode(loop, evaluation, latents[-1] if latents else None))


def schedule_of(loop: Loop, request: Request) -> Schedule:
    """The table of a request; raises ``PlanError`` with those that the bundle has."""
    tables = loop.schedules
    steps = sorted({steps for steps, _ in tables})
    if request.steps not in steps:
        legal = ", ".join(map(str, steps))
        raise PlanError(f"the bundle has no table for {request.steps} steps; it has: {legal}")
    if (request.steps, request.strength) not in tables:
        legal = ", ".join(f"{s:g}" for n, s in sorted(tables, key=str) if n == request.steps and s)
        raise PlanError(
            f"the bundle has no table for strength {request.strength} at {request.steps} steps; "
            f"it has: {legal or 'none'}"
        )
    return tables[request.steps, request.strength]


def prepare(loop: Loop, request: Request) -> Evaluation:
    """The evaluation of a request after its once calls: text and pictures are encoded."""
    _check_request(loop, request)
    evaluation, flow = begin(loop, request), loop.task.flow
    opened: dict[str, Session] = {}
    for call in flow.of("once"):
        if call.part not in opened:
            opened = {call.part: open_part(loop, call.part)}  # the one before is released
        evaluation.run_once(call, opened[call.part])
    return evaluation


def begin(loop: Loop, request: Request) -> Evaluation:
    """The evaluation of a request, before its once calls."""
    flow, tokenizers = loop.task.flow, _tokenizers(loop)
    return Evaluation(
        flow,
        loop.task.inputs,
        {name: loop.bundle.part(name).inputs_of(loop.task.name) for name in flow.parts},
        loop.constants,
        request.guidance or loop.task.scales,
        request,
        lambda path, prompt: tokenizers[path].encode(prompt)[0],
    )


def open_denoiser(loop: Loop, evaluation: Evaluation) -> sampler.Denoise:
    """The guided denoiser of a request, its parts loaded."""
    flow = loop.task.flow
    names = dict.fromkeys(call.part for call in (*flow.of("pass"), *flow.of("guided")))
    return evaluation.denoiser({name: open_part(loop, name) for name in names})


def decode(
    loop: Loop,
    evaluation: Evaluation,
    latent: np.ndarray | None,
    opened: dict[str, Session] | None = None,
) -> np.ndarray:
    """The picture [1, 3, H, W] of a latent [1, C, h, w], or of a flow without a loop.

    ``opened`` keeps the parts for the next picture. Raises ``ParityError`` for a picture that is
    not finite.
    """

    def open_once(name: str) -> Session:
        if opened is None:
            return open_part(loop, name)
        if name not in opened:
            opened[name] = open_part(loop, name)
        return opened[name]

    picture = evaluation.picture(latent, open_once)
    if not np.isfinite(picture).all():
        raise ParityError(f"task {loop.task.name!r}: the picture holds NaN or Inf")
    return picture


def preview(loop: Loop, request: Request, latent: np.ndarray) -> np.ndarray:
    """The picture of an intermediate latent; once calls are made again if end calls need them."""
    flow = loop.task.flow
    once = {call.id for call in flow.of("once")}
    needed = {s.call for call in flow.of("end") for s in call.sources() if isinstance(s, Output)}
    evaluation = prepare(loop, request) if once & needed else begin(loop, request)
    return decode(loop, evaluation, latent)


def truncated_text(loop: Loop, prompt: str) -> str:
    """The text of a prompt beyond what its text encoders read; empty where it fits."""
    truncated = [encoder.encode(prompt)[1] for encoder in _tokenizers(loop).values()]
    return max(truncated, key=len, default="")


def _check_request(loop: Loop, request: Request) -> None:
    """Refuse arrays of a wrong shape, and a negative prompt where nothing takes one."""
    task, latent = loop.task, loop.latent
    expected: dict[str, tuple[int, ...]] = {
        name: (1, 3 if picture.kind == "picture" else 1, *loop.size)
        for name, picture in task.inputs.pictures.items()
    }
    expected |= {name: tensor.shape for name, tensor in task.inputs.tensors.items()}
    for name, value in {**request.pictures, **request.tensors}.items():
        if name not in expected:
            raise PlanError(f"task {task.name!r} takes no {name!r}")
        _check_shape(name, value, expected[name])
    for name, number in request.numbers.items():
        if name not in task.inputs.numbers:
            raise PlanError(f"task {task.name!r} takes no {name!r}")
        limits = task.inputs.numbers[name]
        if not limits.minimum <= number <= limits.maximum:
            raise PlanError(f"{name} must be {limits.minimum:g} to {limits.maximum:g}")
    if request.negative_prompt is not None and not task.takes_negative_prompt:
        raise PlanError(f"task {task.name!r} takes no negative prompt: it has no guidance by text")
    if latent is not None:
        if request.noise is None:
            raise PlanError(f"task {task.name!r} needs noise")
        schedule = schedule_of(loop, request)
        _check_shape("noise", request.noise, (1 + schedule.draws, *latent))


def _check_shape(name: str, value: np.ndarray, expected: tuple[int, ...]) -> None:
    if value.shape != expected or value.dtype != np.float32:
        raise PlanError(
            f"{name} must be float32 {list(expected)}, got {value.dtype} {list(value.shape)}"
        )


def open_part(loop: Loop, name: str) -> Session:
    """A part in its runtime; refuses a file whose inputs and outputs are not the manifest's."""
    part: Part = loop.bundle.part(name)
    entry = part.entry_of(loop.task.name)
    runner, reason = loop.runtime.runner()
    if runner is None:
        raise ToolchainError(f"this bundle cannot run here: {reason}")
    structure_of(loop.bundle.manifest.target, part, loop.task.name)
    session = loop.runtime.open(part.path, entry)
    expected = {spec.name: spec.shape for spec in part.outputs}

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = session(inputs)
        if {name: value.shape for name, value in outputs.items()} != expected:
            raise BundleError(f"{part.path.name}: its outputs are not those of the manifest")
        return outputs

    return run


def _tokenizers(loop: Loop) -> dict[str, tokenizer.Tokenizer]:
    """The tokenizers of the flow by folder; their ids are those that the manifest says of them."""
    names = {
        source.tokenizer
        for call in loop.task.flow.calls
        for source in call.sources()
        if isinstance(source, Tokens)
    }
    tokenizers = {}
    for record in loop.bundle.manifest.tokenizers:
        if record.path not in names:
            continue
        path = bundle.inside(loop.bundle.folder, record.path)
        loaded = tokenizer.load(path, record.length, BundleError)
        ids = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad, "length": record.length}
        if record.model_dump(exclude={"path"}) != ids:
            raise BundleError(f"{bundle.MANIFEST}: tokenizers: {record.path!r} has {ids}")
        tokenizers[record.path] = loaded
    return tokenizers
