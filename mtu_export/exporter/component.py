"""One component, from the checkpoint to a verified artefact."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtu_export import models, targets
from mtu_export.bundle import denoising, verification
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.exporter import golden_inputs, manifest
from mtu_export.exporter.reference import Reference
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.models import lora, stock
from mtu_export.spec import Arrays, Cost, Plan, Program, Verdict

Cases = Mapping[str, Sequence[tuple[Arrays, Arrays]]]
"""Inputs and reference outputs by task."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the export of one component adds to a bundle.

    ``row`` is its part in the manifest, ``cases`` are its goldens: those of a graph that several
    tasks run are of the first.
    """

    component: str
    row: Mapping[str, Any]
    proof: tuple[Verdict, ...]
    cases: Cases
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where one component goes, what is folded into it, and how its stages are shown."""

    plan: Plan
    component: str
    folder: Path
    identity: Mapping[str, str]
    watch: Any
    loras: Sequence[tuple[lora.Lora, float]] = ()

    def stage(self, words: str) -> AbstractContextManager[Any]:
        """Enter a stage; those of other parts than the UNet carry their name."""
        mark = "" if self.component == "unet" else f"{self.component}: "
        return self.watch(mark + words)


@dataclass(kw_only=True)
class _Captured:
    """A component as a program, before a target has it; :func:`_lower` takes the program out."""

    program: Program | None
    kept: Sequence[tuple[str, str]]
    cases: Cases
    proof: list[Verdict]
    cost: Cost


def make(job: Job, references: Sequence[Reference]) -> Made | None:
    """Export one component of the plan, prove it, and give the loops what they need of it.

    ``references`` are those of the plan's tasks. Null for a component that only they need.
    """
    captured = (_unet if job.component == "unet" else _stock)(job, references)
    return None if captured is None else _lower(job, captured)


def _unet(job: Job, references: Sequence[Reference]) -> _Captured:
    plan, several = job.plan, len(job.plan.tasks) > 1
    family = models.load(plan.family)
    with job.stage("load checkpoint"):
        pipeline = family.load(plan.checkpoint)
        live = pipeline.components["unet"]
        _apply(job, live)
    cases: dict[str, list[tuple[Arrays, Arrays]]] = {}
    for reference in references:
        task = reference.task
        of_task = f" of {task.name}" if several else ""
        with job.stage(f"run live-router model{of_task}"):
            graph = family.graph(live, plan, task)
            given = golden_inputs.goldens(graph.inputs, task, plan, reference.known)
            cases[task.name] = list(zip(given, capture.run(graph, given), strict=True))
        if reference.whole:
            count = len(reference.schedule.passes)
            with job.stage(f"run the live-router loop{of_task}, {count} passes"):
                reference.take_unet(graph)
        del graph
    with job.stage("fold"):
        del live
        folded = family.specialise(pipeline, plan.tasks)
        del pipeline
        modules = [folded[task.name].module for task in plan.tasks]
        graphs = {t.name: family.graph(folded[t.name].module, plan, t) for t in plan.tasks}
        cost = capture.cost(graphs[plan.tasks[0].name])
    with job.stage("prove the fold"):
        proof = []
        for reference in references:
            task = reference.task
            given, wanted = zip(*cases[task.name], strict=True)
            found = capture.run(graphs[task.name], given)
            proof.append(verification.folded(wanted, found, task))
            verification.refuse_failure(proof)
    return _capture(job, graphs, modules, cases, proof, cost)


def _stock(job: Job, references: Sequence[Reference]) -> _Captured | None:
    plan, component = job.plan, job.component
    layout = PipelineLayout(plan.config)
    users = [row for row in references if component in layout.components(row.task)]
    with job.stage("load and run"):
        if component.startswith("text_encoder"):
            module = stock.load_text_encoder(plan.checkpoint, component)
            _apply(job, module)
            graph = stock.text_encoder_graph(
                module,
                module.config,
                penultimate=references[0].xl,
                pooled=component == "text_encoder_2",
            )
            # a fixed prompt asks the encoder too, at export alone
            found = [(ids := row.ids(component), capture.run(graph, ids)) for row in references]
            for row, (_, outputs) in zip(references, found, strict=True):
                row.take_text(component, list(outputs))
            cases, wanted = found[references.index(users[0]) if users else 0]
        else:
            vae = stock.load_vae(plan.checkpoint)
            encodes = component == "vae_encoder"
            make = stock.vae_encoder_graph if encodes else stock.vae_decoder_graph
            graph = make(vae, plan.height, plan.width)
            name, shape = graph.inputs[0].name, graph.inputs[0].shape
            values = golden_inputs.pictures((plan.height, plan.width), plan.seed)
            if not encodes:
                values = [denoising.noise(shape, plan.seed + i) for i in range(len(values))]
            cases = [{name: value} for value in values]
            wanted = capture.run(graph, cases)
            for row in users:
                (row.take_encoder if encodes else row.take_decoder)(graph)
    if component not in plan.components:
        return None
    cost, task = capture.cost(graph), users[0].task.name
    rows = list(zip(cases, wanted, strict=True))
    return _capture(job, {task: graph}, [graph.module], {task: rows}, [], cost)


def _apply(job: Job, module: Any) -> None:
    """Fold into one component those LoRAs of the plan that have layers for it."""
    rows = [
        (row, scale)
        for row, scale in job.loras
        if any(layer.component == job.component for layer in row.layers)
    ]
    if rows:
        lora.apply({job.component: module}, rows)


def _capture(
    job: Job,
    graphs: Mapping[str, Graph],
    modules: Sequence[Any],
    cases: Cases,
    proof: list[Verdict],
    cost: Cost,
) -> _Captured:
    """Rewrite, quantise and capture graphs whose mathematics are settled, one a task.

    ``modules`` are what the schemes' layers are named in.
    """
    plan = job.plan.part(job.component)
    with job.stage("rewrite and quantise"):
        for module in modules:
            rewrite.apply(module, targets.rewrites(plan))
        kept = quantize.quantize(modules, plan.scheme)
    with job.stage("capture"):
        program = capture.capture(job.component, graphs)
    return _Captured(program=program, kept=kept, cases=cases, proof=proof, cost=cost)


def _lower(job: Job, captured: _Captured) -> Made:
    """Write the artefact and run it; the program's weights are free before a runtime loads it."""
    plan = job.plan.part(job.component)
    program, captured.program = captured.program, None
    assert program is not None
    gc.collect()
    with job.stage(f"lower to {plan.target}"):
        lowered = targets.load(plan.target).lower(program, plan, job.folder, job.identity)
    row = manifest.part(program, lowered, captured.cost, plan, job.folder, captured.kept)
    del program
    gc.collect()  # graphs are cyclic
    cases: dict[str, list[tuple[Arrays, Arrays]]] = {}
    proof = captured.proof
    with job.stage("verify"):
        for task, pairs in captured.cases.items():
            cases[task] = _renamed(row, pairs)
            proof = [*proof, *verification.part(plan, row, job.folder, task, cases[task])]
        if all(verdict.passed is not False for verdict in proof):
            row = {**row, **verification.witness(plan, row, job.folder, cases)}
    return Made(
        component=job.component, row=row, proof=tuple(proof), cases=cases, cost=captured.cost
    )


def _renamed(
    row: Mapping[str, Any], cases: Sequence[tuple[Arrays, Arrays]]
) -> list[tuple[Arrays, Arrays]]:
    """Cases under the names that the artefact has for its inputs and outputs, in their order."""
    names = [[spec["name"] for spec in row[side]] for side in ("inputs", "outputs")]
    return [
        tuple(  # type: ignore[misc]
            dict(zip(side, arrays.values(), strict=True))
            for side, arrays in zip(names, case, strict=True)
        )
        for case in cases
    ]
