"""One part, from the checkpoint to a verified artefact."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtu_export import bundle, targets
from mtu_export.bundle import PartRecord, witness
from mtu_export.exporter import collection, manifest, proof, tokenizers
from mtu_export.exporter.reference import Contribution, Reference
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.models import lora
from mtu_export.spec import Arrays, Cost, LivePart, PartSpec, Plan, Program, Task, Verdict
from mtu_export.spec.catalog import SCHEMES
from mtu_export.spec.flow import Call

Cases = Mapping[str, Sequence[tuple[Arrays, Arrays]]]
"""Inputs and reference outputs by task."""
Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """What the export of one part adds to a bundle.

    ``record`` is its record in the manifest; ``cases`` are its goldens, under the first task where
    several tasks run one graph.
    """

    name: str
    record: PartRecord
    proof: tuple[Verdict, ...]
    cases: Cases
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one part yields.

    ``part`` is None for one that only the reference needs; ``contributions``, by task, are for the
    references.
    """

    part: ExportedPart | None
    contributions: Mapping[str, Contribution]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One part to export: its plan and folder, LoRAs to fold in, and how stages are shown."""

    plan: Plan
    part: PartSpec
    folder: Path
    identity: Mapping[str, str]
    watch: Watch
    loras: lora.Scaled = ()

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Enter a stage, prefixed with the part's name unless it is the denoiser."""
        prefix = "" if self.part.kind == "denoiser" else f"{self.name}: "
        return self.watch(prefix + name)


@dataclass(kw_only=True)
class _Source:
    """A part in PyTorch with its goldens, before it is rewritten: one graph per task.

    The names of a scheme's layers are paths in ``modules``.
    """

    graphs: dict[str, Graph]
    modules: list[Any]
    cases: dict[str, list[tuple[Arrays, Arrays]]]
    proof: list[Verdict]
    cost: Cost
    contributions: dict[str, Contribution]


@dataclass(kw_only=True)
class _Captured:
    """A part as a program, and the layers that kept float.

    The program owns gigabytes of weights. :meth:`take_program` hands it over, and the taker drops
    it before a runtime loads the artefact, so that the weights are in memory once.
    """

    kept: Sequence[tuple[str, str]]
    _program: Program | None = field(repr=False)

    def take_program(self) -> Program:
        """The program, once; nothing else refers to its weights afterwards."""
        program, self._program = self._program, None
        if program is None:
            raise AssertionError("the program was taken before")
        return program


def make(job: Job, references: Sequence[Reference]) -> Result:
    """Export one part of the plan and prove it.

    ``references`` are those of the plan's tasks, in order; they take what the part contributes.
    """
    source = _source(job, references)
    contributions = source.contributions
    if job.name not in job.plan.parts:
        return Result(part=None, contributions=contributions)
    cases, verdicts, cost = source.cases, source.proof, source.cost
    captured = _capture(job, source)
    del source  # the modules hold the weights too
    record = _lower(job, captured, cost)
    collection.set_aside()  # captured graphs have reference cycles, and the toolchain stays
    part = _prove(job, record, cases, verdicts, cost)
    return Result(part=part, contributions=contributions)


def _source(job: Job, references: Sequence[Reference]) -> _Source:
    """The part with its goldens: run as the checkpoint has it, then specialised."""
    with job.stage("load"):
        live = load(job.plan, job.name, job.loras)
    users = [each for each in references if each.runs(job.name)] or list(references)
    tasks = [each.task for each in users] if job.part.by_task else [users[0].task]
    cases: dict[str, list[tuple[Arrays, Arrays]]] = {}
    contributions = {}
    graphs: dict[str, Graph] = {}
    for reference in references:
        task = reference.task
        call = next((call for call in reference.flow.calls if call.part == job.name), None)
        if call is None:
            continue
        of_task = f" of {task.name}" if job.part.by_task and len(tasks) > 1 else ""
        graph = graphs[task.name] = live.graph(task, job.plan.size, job.plan.batch)
        with job.stage(f"run in PyTorch{of_task}"):
            inputs = reference.golden_inputs(call, graph)
            if task in tasks:
                pairs = zip(inputs, capture.run(graph, inputs), strict=True)
                cases[task.name] = list(pairs)
        contributions[task.name] = _contribution(job, reference, call, graph, of_task)
    graphs = {task.name: graphs[task.name] for task in tasks}
    return _specialised(job, live, tasks, graphs, cases, contributions)


def load(plan: Plan, name: str, loras: lora.Scaled) -> LivePart:
    """A part in memory, with the LoRAs that have layers for it and the rows of added tokens."""
    live = plan.model.load(name)
    own = [
        (adapter, scales)
        for adapter, scales in loras
        if any(layer.component == name for layer in adapter.layers)
    ]
    if own:
        lora.apply({name: live.module}, own)
    ids = tokenizers.added_ids(plan, name)
    if ids:
        plan.model.embed(name, live.module, ids)
    return live


def _contribution(
    job: Job, reference: Reference, call: Call, graph: Graph, of_task: str
) -> Contribution:
    """What the part adds to a reference: its once calls, the loop, or the picture."""
    flow, plan = reference.flow, job.plan
    if call.when == "once":
        with job.stage(f"run in PyTorch{of_task}"):
            return reference.run_once(job.name, graph)
    stages = ("pass", "guided") if call.when != "end" else ("end",)
    names = list(dict.fromkeys(c.part for when in stages for c in flow.of(when)))
    if names[-1] != job.name:  # the loop is run with the last of its parts
        return Contribution()
    graphs = {job.name: graph}
    for name in names[:-1]:
        others = load(plan, name, job.loras)
        graphs[name] = others.graph(reference.task, plan.size, plan.batch)
    if call.when == "end":
        return reference.run_end(graphs)
    count = 0 if reference.schedule is None else len(reference.schedule.passes)
    with job.stage(f"run the loop in PyTorch{of_task}, {count} passes"):
        return reference.run_loop(graphs)


def _specialised(
    job: Job,
    live: LivePart,
    tasks: Sequence[Task],
    graphs: dict[str, Graph],
    cases: dict[str, list[tuple[Arrays, Arrays]]],
    contributions: dict[str, Contribution],
) -> _Source:
    """The part as it exists on a phone: the live graphs, or each task's own, proved equal."""
    first, verdicts = tasks[0].name, []
    with job.stage("specialise"):
        specialised = live.specialise(tasks)
    if specialised is not None:
        graphs = {
            task.name: live.graph(
                task, job.plan.size, job.plan.batch, specialised[task.name].module
            )
            for task in tasks
        }
        with job.stage("prove the fold"):
            for task in tasks:
                inputs, expected = zip(*cases[task.name], strict=True)
                actual = capture.run(graphs[task.name], inputs)
                verdicts.append(proof.prove_fold(job.name, expected, actual, task))
                proof.refuse_failure(verdicts)
    return _Source(
        graphs=graphs,
        modules=[graph.layers for graph in graphs.values()],
        cases=cases,
        proof=verdicts,
        cost=capture.cost(graphs[first]),
        contributions=contributions,
    )


def _capture(job: Job, source: _Source) -> _Captured:
    """Rewrite, quantise and capture the part's graphs."""
    plan = job.plan.part(job.name)
    with job.stage("rewrite and quantise"):
        for module in source.modules:
            rewrite.apply(module, targets.rewrites(plan))
        scheme = SCHEMES["fp32"] if plan.is_plain else plan.scheme  # its toolchain quantises
        kept = quantize.quantize(source.modules, scheme)
    with job.stage("capture"):
        program = capture.capture(job.name, source.graphs)
    return _Captured(_program=program, kept=kept)


def _lower(job: Job, captured: _Captured, cost: Cost) -> PartRecord:
    """Write the artefact and return its record. The program is freed when this returns."""
    plan, program = job.plan.part(job.name), captured.take_program()
    gc.collect()
    with job.stage(f"lower to {plan.target}"):
        lowered = targets.load(plan.target).lower(program, plan, job.folder, job.identity)
    return manifest.part(program, lowered, cost, plan, job.folder, captured.kept)


def _prove(
    job: Job, record: PartRecord, cases: Cases, verdicts: Sequence[Verdict], cost: Cost
) -> ExportedPart:
    """Run the artefact as it is on disk, and record a witness of its weights."""
    plan = job.plan.part(job.name)
    with job.stage("verify"):
        part = bundle.part(job.folder, record)
        renamed = {task: _renamed(record, pairs) for task, pairs in cases.items()}
        verdicts = list(verdicts)
        for task, pairs in renamed.items():
            verdicts += proof.prove_fresh_part(plan, part, task, pairs)
        if all(verdict.passed is not False for verdict in verdicts):
            numbers = witness.measure(plan.target, part, renamed)
            if numbers:
                by_task = {task: tuple(values) for task, values in numbers.items()}
                record = record.model_copy(update={"witness": by_task})
    return ExportedPart(
        name=job.name, record=record, proof=tuple(verdicts), cases=renamed, cost=cost
    )


def _renamed(
    record: PartRecord, cases: Sequence[tuple[Arrays, Arrays]]
) -> list[tuple[Arrays, Arrays]]:
    """Cases under the names that the artefact has for its inputs and outputs, in their order."""
    inputs, outputs = ([t.name for t in side] for side in (record.inputs, record.outputs))
    return [
        (dict(zip(inputs, a.values(), strict=True)), dict(zip(outputs, b.values(), strict=True)))
        for a, b in cases
    ]
