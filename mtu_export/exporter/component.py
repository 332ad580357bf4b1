"""One component, from the checkpoint to a verified artefact."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtu_export import (
    calibrate,
    capture,
    generate,
    lora,
    manifest,
    models,
    quantize,
    rewrite,
    targets,
)
from mtu_export.exporter import proving
from mtu_export.exporter.reference import Reference
from mtu_export.models import stock
from mtu_export.models.blocks import Graph
from mtu_export.spec import Arrays, Cost, Plan, Program, Verdict


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the export of one component adds to a bundle.

    ``row`` is its part in the manifest, ``cases`` are its goldens.
    """

    component: str
    row: Mapping[str, Any]
    proof: tuple[Verdict, ...]
    cases: Sequence[tuple[Arrays, Arrays]]
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
    cases: Sequence[tuple[Arrays, Arrays]]
    proof: list[Verdict]
    cost: Cost


def make(job: Job, reference: Reference) -> Made | None:
    """Export one component of the plan, prove it, and give the loop what it needs of it.

    Null for a component that only the loop's reference needs.
    """
    captured = (_unet if job.component == "unet" else _stock)(job, reference)
    return None if captured is None else _lower(job, captured)


def _unet(job: Job, reference: Reference) -> _Captured:
    plan, task = job.plan, job.plan.tasks[0]
    family = models.load(plan.family)
    with job.stage("load checkpoint"):
        pipeline = family.load(plan.checkpoint)
        _apply(job, pipeline.components["unet"])
    with job.stage("run live-router model"):
        graph = family.graph(pipeline.components["unet"], plan, task)
        given = _given(reference)
        cases = calibrate.goldens(graph.inputs, task, plan, given)
        wanted = capture.run(graph, cases)
    if reference.whole:
        with job.stage(f"run the live-router loop, {len(reference.schedule.passes)} passes"):
            reference.take_unet(graph)
    del graph
    with job.stage("fold"):
        folded = family.specialise(pipeline, task)
        del pipeline
        graph = family.graph(folded.module, plan, task)
        cost = capture.cost(graph)
    with job.stage("prove the fold"):
        proof = [proving.folded(wanted, capture.run(graph, cases), task)]
        proving.refuse_failure(proof)
    ranges = calibrate.calibration(graph.inputs, task, plan, given)
    rows = list(zip(cases, wanted, strict=True))
    return _capture(job, graph, folded.module, ranges, rows, proof, cost)


def _stock(job: Job, reference: Reference) -> _Captured | None:
    plan, component = job.plan, job.component
    with job.stage("load and run"):
        if component.startswith("text_encoder"):
            module = stock.load_text_encoder(plan.checkpoint, component)
            _apply(job, module)
            graph = stock.text_encoder_graph(
                module,
                module.config,
                penultimate=reference.xl,
                pooled=component == "text_encoder_2",
            )
            cases = reference.ids(component)
        else:
            vae = stock.load_vae(plan.checkpoint)
            encodes = component == "vae_encoder"
            make = stock.vae_encoder_graph if encodes else stock.vae_decoder_graph
            graph = make(vae, plan.height, plan.width)
            name, shape = graph.inputs[0].name, graph.inputs[0].shape
            values = calibrate.pictures((plan.height, plan.width), plan.seed)
            if not encodes:
                values = [generate.noise(shape, plan.seed + i) for i in range(len(values))]
            cases = [{name: value} for value in values]
        wanted = capture.run(graph, cases)
        if component.startswith("text_encoder"):
            reference.take_text(component, list(wanted))
        elif component == "vae_encoder":
            reference.take_encoder(graph)
        else:
            reference.take_decoder(graph)
    if component not in plan.components:
        return None
    cost = capture.cost(graph)
    rows = list(zip(cases, wanted, strict=True))
    return _capture(job, graph, graph.module, cases, rows, [], cost)


def _apply(job: Job, module: Any) -> None:
    """Fold into one component those LoRAs of the plan that have layers for it."""
    rows = [
        (row, scale)
        for row, scale in job.loras
        if any(layer.component == job.component for layer in row.layers)
    ]
    if rows:
        lora.apply({job.component: module}, rows)


def _given(reference: Reference) -> list[Arrays]:
    """Text inputs of the UNet for prompts, where the checkpoint's own encoders can make them."""
    found = [reference.words(case) for case in range(len(reference.prompts))]
    return [row for row in found if row]


def _capture(
    job: Job,
    graph: Graph,
    module: Any,
    ranges: Sequence[Arrays],
    cases: Sequence[tuple[Arrays, Arrays]],
    proof: list[Verdict],
    cost: Cost,
) -> _Captured:
    """Rewrite, quantise and capture a graph whose mathematics are settled.

    ``module`` is what the schemes' layers are named in.
    """
    plan, task = job.plan.part(job.component), job.plan.tasks[0].name
    with job.stage("rewrite and quantise"):
        rewrite.apply(module, targets.load(plan.target).rewrites)
        kept = quantize.quantize(module, plan.scheme)
    with job.stage("capture"):
        program = capture.capture(job.component, {task: graph}, {task: ranges}, calibrate.ORIGIN)
    return _Captured(program=program, kept=kept, cases=cases, proof=proof, cost=cost)


def _lower(job: Job, captured: _Captured) -> Made:
    """Write the artefact and run it; the program's weights are free before a runtime loads it."""
    plan, task = job.plan.part(job.component), job.plan.tasks[0]
    program, captured.program = captured.program, None
    assert program is not None
    gc.collect()
    with job.stage(f"lower to {plan.target}"):
        lowered = targets.load(plan.target).lower(program, plan, job.folder, job.identity)
    row = manifest.part(program, lowered, captured.cost, plan, job.folder, captured.kept)
    del program
    gc.collect()  # graphs are cyclic
    with job.stage("verify"):
        cases = _renamed(row, captured.cases)
        proof = (*captured.proof, *proving.part(plan, row, job.folder, task, cases))
        if all(verdict.passed is not False for verdict in proof):
            row = {**row, **proving.witness(plan, row, job.folder, task, cases)}
    return Made(component=job.component, row=row, proof=proof, cases=cases, cost=captured.cost)


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
