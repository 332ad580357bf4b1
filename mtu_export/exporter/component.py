"""One component, from the checkpoint to a verified artefact."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
from mtu_export.spec import Arrays, Cost, Plan, Verdict


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
    """Where one component goes, what is folded into it, and how its stages are shown.

    ``folded`` collects what the LoRAs changed, by component.
    """

    plan: Plan
    component: str
    folder: Path
    identity: Mapping[str, str]
    watch: Any
    loras: Sequence[tuple[lora.Lora, float]] = ()
    folded: dict[str, lora.Report] = field(default_factory=dict)

    def stage(self, words: str) -> AbstractContextManager[Any]:
        """Enter a stage; those of other parts than the UNet carry their name."""
        mark = "" if self.component == "unet" else f"{self.component}: "
        return self.watch(mark + words)


def make(job: Job, reference: Reference) -> Made | None:
    """Export one component of the plan, prove it, and give the loop what it needs of it.

    Null for a component that only the loop's reference needs.
    """
    return _unet(job, reference) if job.component == "unet" else _stock(job, reference)


def _unet(job: Job, reference: Reference) -> Made:
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
    return _lower(job, graph, ranges, list(zip(cases, wanted, strict=True)), proof, cost)


def _stock(job: Job, reference: Reference) -> Made | None:
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
    return _lower(job, graph, cases, list(zip(cases, wanted, strict=True)), [], cost)


def _apply(job: Job, module: Any) -> None:
    """Fold into one component those LoRAs of the plan that have layers for it."""
    rows = [
        (row, scale)
        for row, scale in job.loras
        if any(layer.component == job.component for layer in row.layers)
    ]
    if rows:
        job.folded[job.component] = lora.apply({job.component: module}, rows)


def _given(reference: Reference) -> list[Arrays]:
    """Text inputs of the UNet for prompts, where the checkpoint's own encoders can make them."""
    found = [reference.words(case) for case in range(len(reference.prompts))]
    return [row for row in found if row]


def _lower(
    job: Job,
    graph: Graph,
    ranges: Sequence[Arrays],
    cases: Sequence[tuple[Arrays, Arrays]],
    proof: list[Verdict],
    cost: Cost,
) -> Made:
    """Rewrite, quantise, capture, lower and verify a graph whose mathematics are settled."""
    plan, component, task = job.plan.part(job.component), job.component, job.plan.tasks[0]
    target = targets.load(plan.target)
    with job.stage("rewrite and quantise"):
        rewrite.apply(graph.module, target.rewrites)
        kept = quantize.quantize(graph.module, plan.scheme)
    with job.stage("capture"):
        program = capture.capture(
            component, {task.name: graph}, {task.name: ranges}, calibrate.ORIGIN
        )
        del graph
    with job.stage(f"lower to {plan.target}"):
        lowered = target.lower(program, plan, job.folder, job.identity)
    row = manifest.part(program, lowered, cost, plan, job.folder, kept)
    del program
    gc.collect()  # graphs are cyclic: free their weights before a runtime loads them again
    with job.stage("verify"):
        renamed = _renamed(row, cases)
        proof += proving.part(plan, row, job.folder, task, renamed)
    return Made(component=component, row=row, proof=tuple(proof), cases=renamed, cost=cost)


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
