"""One component, from the checkpoint to a verified artefact."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtu_export import bundle, models, targets
from mtu_export.bundle import PartRecord, denoising, witness
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.exporter import collection, golden_inputs, manifest, proof
from mtu_export.exporter.reference import Contribution, Reference
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.models import lora, stock
from mtu_export.spec import Arrays, Cost, Plan, Program, Verdict

Cases = Mapping[str, Sequence[tuple[Arrays, Arrays]]]
"""Inputs and reference outputs by task."""
Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """What the export of one component adds to a bundle.

    ``record`` is its record in the manifest; ``cases`` are its goldens, under the first task where
    several tasks run one graph.
    """

    component: str
    record: PartRecord
    proof: tuple[Verdict, ...]
    cases: Cases
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one component yields.

    ``part`` is None for one that only the golden loops need; ``contributions``, by task, are for
    those loops.
    """

    part: ExportedPart | None
    contributions: Mapping[str, Contribution]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One component to export: plan, folder of the bundle, LoRAs to fold in.

    ``identity`` is metadata for the artefact; ``watch`` shows the stages.
    """

    plan: Plan
    component: str
    folder: Path
    identity: Mapping[str, str]
    watch: Watch
    loras: Sequence[tuple[lora.Lora, float]] = ()

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Enter a stage, prefixed with the component's name unless it is the UNet."""
        prefix = "" if self.component == "unet" else f"{self.component}: "
        return self.watch(prefix + name)


@dataclass(kw_only=True)
class _Source:
    """A component in PyTorch with its goldens, before it is rewritten: one graph per task.

    The names of a scheme's layers are paths in ``modules``.
    """

    graphs: dict[str, Graph]
    modules: list[Any]
    cases: Cases
    proof: list[Verdict]
    cost: Cost
    contributions: Mapping[str, Contribution]


@dataclass(kw_only=True)
class _Captured:
    """A component as a program, and the layers that kept float.

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
    """Export one component of the plan and prove it.

    ``references`` are those of the plan's tasks, in order; they are read and not changed.
    """
    source = (_unet if job.component == "unet" else _stock)(job, references)
    contributions = source.contributions
    if job.component not in job.plan.components:
        return Result(part=None, contributions=contributions)
    cases, verdicts, cost = source.cases, source.proof, source.cost
    captured = _capture(job, source)
    del source  # the modules hold the weights too
    record = _lower(job, captured, cost)
    collection.set_aside()  # captured graphs have reference cycles, and the toolchain stays
    part = _prove(job, record, cases, verdicts, cost)
    return Result(part=part, contributions=contributions)


def _unet(job: Job, references: Sequence[Reference]) -> _Source:
    """The folded UNets of all tasks, their goldens from the live router, and the fold's proof."""
    plan, several = job.plan, len(job.plan.tasks) > 1
    family = models.load(plan.family)
    with job.stage("load checkpoint"):
        pipeline = family.load(plan.checkpoint)
        live = pipeline.components["unet"]
        _apply_loras(job, live)
    cases: dict[str, list[tuple[Arrays, Arrays]]] = {}
    contributions = {}
    for reference in references:
        task = reference.task
        of_task = f" of {task.name}" if several else ""
        with job.stage(f"run live-router model{of_task}"):
            graph = family.graph(live, plan, task)
            inputs = golden_inputs.goldens(graph.inputs, task, plan, reference.known_embeddings)
            cases[task.name] = list(zip(inputs, capture.run(graph, inputs), strict=True))
        if reference.is_complete:
            count = len(reference.schedule.passes)
            with job.stage(f"run the live-router loop{of_task}, {count} passes"):
                contributions[task.name] = reference.run_loop(graph)
        del graph
    with job.stage("fold"):
        del live
        folded = family.specialise(pipeline, plan.tasks)
        del pipeline
        modules = [folded[task.name].module for task in plan.tasks]
        graphs = {t.name: family.graph(folded[t.name].module, plan, t) for t in plan.tasks}
        cost = capture.cost(graphs[plan.tasks[0].name])
    with job.stage("prove the fold"):
        verdicts: list[Verdict] = []
        for task in plan.tasks:
            inputs, expected = zip(*cases[task.name], strict=True)
            actual = capture.run(graphs[task.name], inputs)
            verdicts.append(proof.prove_fold(expected, actual, task))
            proof.refuse_failure(verdicts)
    return _Source(
        graphs=graphs,
        modules=modules,
        cases=cases,
        proof=verdicts,
        cost=cost,
        contributions=contributions,
    )


def _stock(job: Job, references: Sequence[Reference]) -> _Source:
    """A text encoder or half of the VAE: the same graph for every task that needs it."""
    with job.stage("load and run"):
        if job.component.startswith("text_encoder"):
            return _text_encoder(job, references)
        return _vae(job, references)


def _text_encoder(job: Job, references: Sequence[Reference]) -> _Source:
    module = stock.load_text_encoder(job.plan.checkpoint, job.component)
    _apply_loras(job, module)
    graph = stock.text_encoder_graph(
        module,
        module.config,
        penultimate=references[0].is_sdxl,
        pooled=job.component == "text_encoder_2",
    )
    # also for tasks with a fixed prompt: its embeddings become constants of the bundle
    cases = {}
    for reference in references:
        ids = reference.ids(job.component)
        cases[reference.task.name] = list(zip(ids, capture.run(graph, ids), strict=True))
    contributions = {
        task: Contribution(text=tuple(outputs for _, outputs in pairs))
        for task, pairs in cases.items()
    }
    users = _users(job, references) or list(references)
    return _of_one_graph(graph, users[0].task.name, cases[users[0].task.name], contributions)


def _vae(job: Job, references: Sequence[Reference]) -> _Source:
    plan, encodes = job.plan, job.component == "vae_encoder"
    vae = stock.load_vae(plan.checkpoint)
    build = stock.vae_encoder_graph if encodes else stock.vae_decoder_graph
    graph = build(vae, plan.height, plan.width)
    name, shape = graph.inputs[0].name, graph.inputs[0].shape
    values = golden_inputs.pictures((plan.height, plan.width), plan.seed)
    if not encodes:
        values = [denoising.noise(shape, plan.seed + i) for i in range(len(values))]
    inputs = [{name: value} for value in values]
    cases = list(zip(inputs, capture.run(graph, inputs), strict=True))
    users = _users(job, references)
    contributions = {
        user.task.name: user.run_encoder(graph) if encodes else user.run_decoder(graph)
        for user in users
    }
    return _of_one_graph(graph, users[0].task.name, cases, contributions)


def _of_one_graph(
    graph: Graph,
    task: str,
    cases: Sequence[tuple[Arrays, Arrays]],
    contributions: Mapping[str, Contribution],
) -> _Source:
    """The source of a part that all tasks run alike; its goldens are those of ``task``."""
    return _Source(
        graphs={task: graph},
        modules=[graph.module],
        cases={task: cases},
        proof=[],
        cost=capture.cost(graph),
        contributions=contributions,
    )


def _users(job: Job, references: Sequence[Reference]) -> list[Reference]:
    """The references whose tasks run the component."""
    layout = PipelineLayout(job.plan.config)
    return [each for each in references if job.component in layout.components(each.task)]


def _apply_loras(job: Job, module: Any) -> None:
    """Fold into one component those LoRAs of the plan that have layers for it."""
    loras = [
        (adapter, scale)
        for adapter, scale in job.loras
        if any(layer.component == job.component for layer in adapter.layers)
    ]
    if loras:
        lora.apply({job.component: module}, loras)


def _capture(job: Job, source: _Source) -> _Captured:
    """Rewrite, quantise and capture the component's graphs."""
    plan = job.plan.part(job.component)
    with job.stage("rewrite and quantise"):
        for module in source.modules:
            rewrite.apply(module, targets.rewrites(plan))
        kept = quantize.quantize(source.modules, plan.scheme)
    with job.stage("capture"):
        program = capture.capture(job.component, source.graphs)
    return _Captured(_program=program, kept=kept)


def _lower(job: Job, captured: _Captured, cost: Cost) -> PartRecord:
    """Write the artefact and return its record. The program is freed when this returns."""
    plan, program = job.plan.part(job.component), captured.take_program()
    gc.collect()
    with job.stage(f"lower to {plan.target}"):
        lowered = targets.load(plan.target).lower(program, plan, job.folder, job.identity)
    return manifest.part(program, lowered, cost, plan, job.folder, captured.kept)


def _prove(
    job: Job, record: PartRecord, cases: Cases, verdicts: Sequence[Verdict], cost: Cost
) -> ExportedPart:
    """Run the artefact as it is on disk, and record a witness of its weights."""
    plan = job.plan.part(job.component)
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
        component=job.component, record=record, proof=tuple(verdicts), cases=renamed, cost=cost
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
