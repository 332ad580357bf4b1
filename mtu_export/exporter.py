"""The pipeline: a checkpoint and a plan go in, a proven bundle comes out.

checkpoint ─load─▶ Pipeline ─golden─▶ ─specialise─▶ ─rewrite─▶ ─quantise─▶ ─capture─▶ Program
   ─lower─▶ artefact files ─verify─▶ verdicts ─bundle─▶ folder
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtu_export import budget, bundle, checkpoint, manifest, targets, verify
from mtu_export.bundle import Bundle, Part
from mtu_export.catalog import SCHEMES
from mtu_export.draft import BUNDLE, FOLDED, draft
from mtu_export.plan import size_step
from mtu_export.spec import (
    Arrays,
    BundleError,
    Cost,
    IntWeights,
    ParityError,
    Plan,
    Task,
    Unsupported,
    Verdict,
)

Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    """A ``Watch`` that shows nothing."""
    return nullcontext()


def export(plan: Plan, watch: Watch = unwatched) -> Bundle:
    """Make the bundle of ``plan`` at ``plan.out``, whole or not at all.

    Every artefact is loaded from disk and run by its own runtime against the live-router model.
    Raises ``ParityError`` below the floor, ``ResourceError`` before any work where memory or disk
    will not do, and any other error of ``spec``.
    """
    budget.check(plan)
    with draft(plan.out, force=plan.force, mark=BUNDLE, source=plan.checkpoint) as folder:
        with watch("import PyTorch"):
            from mtu_export import calibrate, capture, models, quantize, rewrite
        target, family, task = targets.load(plan.target), models.load(plan.family), plan.tasks[0]
        with watch("load checkpoint"):
            _check_overrides(plan)
            pipeline = family.load(plan.checkpoint)
            identity = manifest.identity(plan)
        with watch("run live-router model"):
            graph = family.graph(pipeline.components["unet"], plan, task)
            cases = calibrate.goldens(graph.inputs, task, plan)
            wanted = capture.run(graph, cases)
            del graph
        with watch("fold"):
            folded = family.specialise(pipeline, task)
            del pipeline
            graph = family.graph(folded.module, plan, task)
            cost = capture.cost(graph)
        with watch("prove the fold"):
            ladder = [_folded(wanted, capture.run(graph, cases), task)]
            _refuse_failure(ladder)
        with watch("rewrite and quantise"):
            rewrite.apply(folded.module, target.rewrites)
            kept = quantize.quantize(folded.module, plan.scheme)
        with watch("capture"):
            ranges = {task.name: calibrate.calibration(graph.inputs, task, plan)}
            program = capture.capture("unet", {task.name: graph}, ranges, calibrate.ORIGIN)
            del graph, folded
        with watch(f"lower to {plan.target}"):
            lowered = target.lower(program, plan, folder, identity)
        said = manifest.describe(plan, identity, lowered, kept)
        said["parts"] = [manifest.part(program, lowered, cost, plan, folder)]
        del program
        gc.collect()  # graphs are cyclic: free their weights before a runtime loads them again
        bundle.write_goldens(folder, {f"unet/{task.name}": list(zip(cases, wanted, strict=True))})
        for path in checkpoint.licences(plan.checkpoint):
            shutil.copyfile(path, folder / path.name)
        bundle.write_manifest(folder, said)
        with watch("verify"):
            ladder += check(bundle.read(folder), plan.floor_db)
        if verify.failure(ladder) and isinstance(plan.scheme.weights, IntWeights):
            with watch("measure what each layer loses"):
                _refuse_failure(ladder, _losses(plan, cost))
        _refuse_failure(ladder)
        said["proof"] = [asdict(row) for row in ladder]
        bundle.write_manifest(folder, said)
    return bundle.read(plan.out)


def _check_overrides(plan: Plan) -> None:
    """Refuse, before any work, an override that matches no layer of what will be quantised."""
    from mtu_export import models, quantize, rewrite

    if isinstance(plan.scheme.weights, IntWeights):
        found = checkpoint.headers(plan.checkpoint / "unet")
        channels = plan.config["in_channels"] + plan.tasks[0].channels
        outline = models.load(plan.family).outline(plan.config, found, channels)
        rewrite.apply(outline, targets.load(plan.target).rewrites)
        quantize.layers(outline, plan.scheme)


def save_folded(plan: Plan, watch: Watch = unwatched) -> Path:
    """Fold one task and save it as a stock ``UNet2DConditionModel`` folder; returns its path.

    Raises ``Unsupported`` where no stock UNet holds the task.
    """
    with draft(plan.out, force=plan.force, mark=FOLDED, source=plan.checkpoint) as folder:
        with watch("import PyTorch"):
            from mtu_export import models, quantize
        with watch("load checkpoint"):
            family = models.load(plan.family)
            pipeline = family.load(plan.checkpoint)
        with watch("fold"):
            folded = family.specialise(pipeline, plan.tasks[0])
        if folded.deviations:
            raise Unsupported(f"no stock UNet2DConditionModel fits: {folded.deviations[0]}")
        with watch("save"):
            quantize.quantize(folded.module, plan.scheme)
            folded.module.save_pretrained(folder)
            config = checkpoint.read_json(folder / FOLDED.file)
            config |= {FOLDED.key: FOLDED.value, "_task": plan.tasks[0].name}
            (folder / FOLDED.file).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return plan.out


# -------------------------------------------------------------------------------------- verify


def check(found: Bundle, floor_db: float | None = None) -> list[Verdict]:
    """Run every artefact of a bundle against its goldens; read structure where nothing runs.

    The floor is ``floor_db``, else what the export recorded, else the scheme's. Raises
    ``BundleError`` where the files contradict the manifest.
    """
    name, scheme = found.manifest["target"], found.manifest["scheme"]
    if name not in targets.names() or scheme.get("name") not in SCHEMES:
        raise BundleError(f"{bundle.MANIFEST}: unknown target or scheme")
    goldens = bundle.read_goldens(found)
    row = SCHEMES[scheme["name"]]
    rung = "quantised" if isinstance(row.weights, IntWeights) else "exported"
    recorded = {(v.component, v.task, v.rung): v.floor_db for v in found.proof}
    verdicts = []
    for part in found.parts:
        for task in part.entries:
            cases = goldens.get(f"{part.component}/{task}")
            if not cases or len(cases) < bundle.CASES:
                raise BundleError(
                    f"{bundle.GOLDENS} has not {bundle.CASES} cases of {part.component}/{task}"
                )
            floor = recorded.get((part.component, task, rung), row.floor(scheme["activations"]))
            floor = floor if floor_db is None else floor_db
            if not 0 <= floor <= verify.CEILING_DB:
                raise BundleError(f"{bundle.MANIFEST}: a floor of {floor:g} dB is none")
            verdicts.append(_check_entry(name, part, task, cases, rung, floor))
    return verdicts


def _check_entry(
    target_name: str,
    part: Part,
    task: str,
    cases: Sequence[tuple[Arrays, Arrays]],
    rung: str,
    floor: float,
) -> Verdict:
    """Structure first, then the runtime, if there is one here."""
    target, entry = targets.load(target_name), part.entries[task]
    structure = target.structure(part.path, entry)
    for what, said, is_there in (
        ("inputs", part.inputs, structure.inputs),
        ("outputs", part.outputs, structure.outputs),
    ):
        if said != is_there:
            raise BundleError(f"{part.path.name}: its {what} are not those of the manifest")
    for inputs, outputs in cases:
        if set(outputs) != {s.name for s in part.outputs}:
            raise BundleError(f"{bundle.GOLDENS}: outputs of {task!r} are not those of the part")
        if {s.name: s.shape for s in part.inputs} != {k: v.shape for k, v in inputs.items()}:
            raise BundleError(f"{bundle.GOLDENS}: inputs of {task!r} are not those of the part")
    runner, reason = target.runner()
    if runner is None:
        count = sum(structure.operators.values())
        return verify.not_run(
            component=part.component,
            task=task,
            rung=rung,
            floor_db=floor,
            reason=f"{reason}; its structure was checked ({count} operators)",
        )
    session = target.open(part.path, entry)
    return verify.judge(
        [wanted for _, wanted in cases],
        [session(inputs) for inputs, _ in cases],
        component=part.component,
        task=task,
        rung=rung,
        floor_db=floor,
        runner=runner,
    )


def _folded(wanted: Sequence[Arrays], found: Sequence[Arrays], task: Task) -> Verdict:
    version = importlib.metadata.version("torch")
    return verify.judge(
        wanted,
        found,
        component="unet",
        task=task.name,
        rung="folded",
        floor_db=SCHEMES["fp32"].floor_db,
        runner=f"torch {version}",
    )


def _refuse_failure(verdicts: Sequence[Verdict], more: str | None = None) -> None:
    line = verify.failure(verdicts)
    if line is not None:
        raise ParityError(f"parity below the floor: {line}" + (f"; {more}" if more else ""))


_WORK = 2e13
"""FLOPs that the search for the costliest layers may take: one to two minutes on two cores."""


def _losses(plan: Plan, cost: Cost) -> str:
    """What each layer's weights lose alone; a large model is measured on smaller pictures.

    One pass a layer: for SD 1.5 at 512 x 512 that is 20 minutes, at 128 x 128 one.
    """
    from mtu_export import calibrate, models, quantize, rewrite, sensitivity

    assert isinstance(plan.scheme.weights, IntWeights)
    family, task = models.load(plan.family), plan.tasks[0]
    folded = family.specialise(family.load(plan.checkpoint), task).module
    rewrite.apply(folded, targets.load(plan.target).rewrites)
    work = len(quantize.layers(folded, plan.scheme)[0]) * cost.flops_total / plan.batch
    step, small = size_step(plan.config, plan.factor), replace(plan, batch=1)
    while work > _WORK and max(small.height, small.width) > step:
        height, width = (max(step, n // 2 // step * step) for n in (small.height, small.width))
        work *= height * width / (small.height * small.width)
        small = replace(small, height=height, width=width)
    graph = family.graph(folded, small, task)
    cases = calibrate.goldens(graph.inputs, task, small)[1:2]
    together, losses = sensitivity.measure(graph, folded, plan.scheme, cases)
    size = (small.height, small.width)
    return sensitivity.describe(together, losses, size, plan.scheme.weights.bits)
