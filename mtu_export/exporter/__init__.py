"""The pipeline: a checkpoint and a plan go in, a proven bundle comes out.

Component by component, in the order in which a loop needs them:
checkpoint ─load─▶ module ─golden─▶ ─specialise─▶ ─rewrite─▶ ─quantise─▶ ─capture─▶ Program
   ─lower─▶ artefact files ─verify─▶ verdicts; then the loop over all of them ─bundle─▶ folder
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import bundle, checkpoint, targets
from mtu_export.bundle import Bundle
from mtu_export.checkpoint.layout import tokenizer_folder
from mtu_export.exporter import budget, compatibility, manifest, resume
from mtu_export.spec import (
    COMPONENTS,
    CheckpointError,
    IntWeights,
    OutputExists,
    Plan,
    PlanError,
    Unsupported,
    Verdict,
)
from mtu_export.storage.draft import BUNDLE, FOLDED, draft, tidy

if TYPE_CHECKING:
    from mtu_export.exporter.component import Made
    from mtu_export.exporter.reference import Reference
    from mtu_export.models.lora import Lora

Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    """A ``Watch`` that shows nothing."""
    return nullcontext()


def export(plan: Plan, watch: Watch = unwatched) -> Bundle:
    """Make the bundle of ``plan`` at ``plan.out``, whole or not at all.

    Every artefact is loaded from disk and run by its own runtime against PyTorch, and so is the
    loop. Raises ``ParityError`` below a floor, ``ResourceError`` before any work where memory or
    disk will not do, and any other error of ``spec``.
    """
    if plan.resume and (found := _finished(plan)) is not None:
        return found
    budget.check(plan)
    with watch("compare the parts"):
        compatibility.require_compatible_parts(plan, _order(plan))
    with watch("import PyTorch"):
        from mtu_export.bundle import denoising, verification
        from mtu_export.exporter import component, schedule
        from mtu_export.exporter.reference import Reference
        from mtu_export.models import lora
    with watch(f"probe {schedule.origin(plan.checkpoint, plan.scheduler)}"):
        scheduler = schedule.load(plan.checkpoint, plan.scheduler)
        tables = schedule.tables(scheduler, plan.steps)
        references = [Reference(plan, task, scheduler, tables) for task in plan.tasks]
        _check_overrides(plan)
        loras, order = _loras(plan), _order(plan)
    before = resume.stamps(plan)
    identity = manifest.identity(plan)
    mark = resume.fingerprint(plan, identity, manifest.versions(plan))
    keep = mark[:8] if plan.resume else None
    sources = resume.source_files(plan)
    with draft(plan.out, force=plan.force, marker=BUNDLE, sources=sources, keep=keep) as folder:
        state, parts = resume.State(folder, mark), []
        for name in order:
            done = state.get(name) if plan.resume else None
            known = _arrays(references)
            if done is None:
                job = component.Job(
                    plan=plan,
                    component=name,
                    folder=folder,
                    identity=identity,
                    watch=watch,
                    loras=loras,
                )
                one = component.make(job, references)
                if one is not None and any(verdict.passed is False for verdict in one.proof):
                    _refuse(plan, one, loras, watch)
                given = {n: v for n, v in _arrays(references).items() if n not in known}
                state.put(name, one, given)
            else:
                with watch(f"{name}: taken from the export before"):
                    one, given = done
                    for reference in references:
                        reference.arrays |= denoising.named(given, f"{reference.task.name}/")
            parts += [] if one is None else [one]
        said = manifest.describe(plan, identity, [one.row for one in parts])
        said["source"] |= {"loras": lora.identity(loras, order), "fingerprint": mark}
        _write_rest(plan, folder, said, references, parts)
        ladder = [verdict for one in parts for verdict in one.proof]
        for reference in (row for row in references if row.golden()):
            of_task = f" of {reference.task.name}" if len(references) > 1 else ""
            with watch(f"verify the loop{of_task}"):
                ladder += verification.loop(bundle.read(folder), reference.task)
            verification.refuse_failure(ladder, _CHAOS if _coded(plan) else None)
        if resume.stamps(plan) != before:
            raise CheckpointError(f"{plan.checkpoint} was changed while it was exported")
        said["proof"] = [row.to_json() for row in ladder]
        bundle.write_manifest(folder, said)
    return bundle.read(plan.out)


def _arrays(references: Sequence[Reference]) -> dict[str, Any]:
    """What the references have been given, under ``<task>/``."""
    return {f"{row.task.name}/{name}": v for row in references for name, v in row.arrays.items()}


def _finished(plan: Plan) -> Bundle | None:
    """The bundle that is already there, where this plan made it; refuses another one."""
    if not os.path.lexists(plan.out):
        return None
    if not BUNDLE.is_on(plan.out):
        raise OutputExists(plan.out)
    found = bundle.read(plan.out)
    mark = resume.fingerprint(plan, manifest.identity(plan), manifest.versions(plan))
    if found.manifest["source"].get("fingerprint") != mark:
        raise PlanError(
            f"{plan.out} is the bundle of another plan or version; choose another -o, or --force"
        )
    tidy(plan.out)
    return found


def _order(plan: Plan) -> list[str]:
    """Components in the order of a loop: those to export, and encoders whose words a task fixes."""
    names = {*plan.components}
    if "unet" in names:
        encoders = [name for name in COMPONENTS if name.startswith("text_encoder")]
        names |= {name for name in encoders if (plan.checkpoint / name).is_dir()}
    return [name for name in COMPONENTS if name in names]


def _loras(plan: Plan) -> list[tuple[Lora, float]]:
    """The plan's LoRAs, read; refuses one that has layers for nothing that is exported."""
    from mtu_export.models import lora

    found, order = [], _order(plan)
    for word in plan.loras:
        path, scale = lora.parse(word)
        row = lora.read(path)
        meant = dict.fromkeys(layer.component for layer in row.layers)
        if not set(meant) & set(order):
            raise PlanError(
                f"--lora {path}: its layers are those of {', '.join(meant)}; "
                f"exported are: {', '.join(order)}"
            )
        found.append((row, scale))
    return found


def _write_rest(
    plan: Plan,
    folder: Path,
    said: dict[str, Any],
    references: Sequence[Reference],
    parts: Sequence[Made],
) -> None:
    """Write what belongs to a bundle beside its parts, and say so in its manifest."""
    from mtu_export.bundle import source_tokenizer

    files, words, constants = [bundle.GOLDENS], {}, {}
    cases = {f"{one.component}/{task}": rows for one in parts for task, rows in one.cases.items()}
    bundle.write_goldens(folder, cases, {row.task.name: row.golden() for row in references})
    for row in references:
        constants |= row.constants()
    if constants:
        bundle.write_constants(folder, constants)
        files.append(bundle.CONSTANTS)
    for path in checkpoint.licences(plan.checkpoint):
        shutil.copyfile(path, folder / path.name)
        files.append(path.name)
    for name in (one.component for one in parts if one.component.startswith("text_encoder")):
        home = tokenizer_folder(name)
        shutil.rmtree(folder / home, ignore_errors=True)  # of an export that was stopped here
        found = source_tokenizer.export(plan.checkpoint / home, folder / home)
        ids = {"bos": found.bos, "eos": found.eos, "pad": found.pad, "length": found.length}
        said["tokenizers"].append({"path": home, **ids})
        words[name] = home
        files.append(home)
    said["text"] = {"inputs": _text(references[0], parts), "tokenizers": words}
    said["loop"] = loop(references)
    said["files"] = [
        {"path": n, "bytes": bundle.size(folder / n), "sha256": bundle.sha256(folder / n)}
        for n in files
    ]
    bundle.write_manifest(folder, said)


def loop(references: Sequence[Reference]) -> dict[str, Any]:
    """The manifest's ``loop``, with the golden request of a task that was run to its end.

    A task with a prompt of its own asks for no other one, so one that takes any comes first.
    """
    rows = [row.loop() for row in sorted(references, key=lambda row: row.task.prompt is not None)]
    return next((row for row in rows if "golden" in row), rows[0])


def _text(reference: Reference, parts: Sequence[Made]) -> dict[str, list[dict[str, str]]]:
    """Which outputs are joined to which input of the UNet, under the artefacts' own names."""
    order = ("hidden_states", "pooled")
    rows = {one.component: one.row for one in parts}
    found = {}
    for name, sources in reference.text.items():
        found[name] = [
            {"component": c, "output": rows[c]["outputs"][order.index(row["output"])]["name"]}
            for row in sources
            if rows.get(c := row["component"])
        ]
    return {name: sources for name, sources in found.items() if sources}


def _refuse(plan: Plan, one: Made, loras: Sequence[tuple[Lora, float]], watch: Watch) -> None:
    """Raise ``ParityError``; for integer weights of the UNet with the layers that cost most."""
    from mtu_export.bundle import verification
    from mtu_export.exporter import sensitivity

    more = None
    if one.component == "unet" and _coded(plan):
        failed = next(verdict.task for verdict in one.proof if verdict.passed is False)
        with watch("measure what each layer loses"):
            more = sensitivity.layer_sensitivity(plan, failed, one.cost, loras)
    verification.refuse_failure(one.proof, more)


_CHAOS = (
    "each part passes: a loop of few steps can turn a rounding into another picture; see whether "
    "it is so for other noise and another picture: --seed N"
)


def _coded(plan: Plan) -> bool:
    return isinstance(plan.scheme.weights, IntWeights)


def _check_overrides(plan: Plan) -> None:
    """Refuse, before any work, an override that matches no layer of what will be quantised."""
    from mtu_export import models
    from mtu_export.graph import quantize, rewrite

    if isinstance(plan.scheme.weights, IntWeights) and "unet" in plan.components:
        found = checkpoint.headers(plan.checkpoint / "unet")
        channels = plan.config["in_channels"] + plan.tasks[0].channels
        outline = models.load(plan.family).outline(plan.config, found, channels)
        rewrite.apply(outline, targets.rewrites(plan))
        quantize.layers(outline, plan.scheme)


def check(found: Bundle, floor_db: float | None = None, runner: str | None = None) -> list[Verdict]:
    """Run a bundle against its goldens: :func:`verification.verify_bundle`."""
    from mtu_export.bundle import verification

    return verification.verify_bundle(found, floor_db, runner)


def save_folded(plan: Plan, watch: Watch = unwatched) -> Path:
    """Fold one task and save it as a stock ``UNet2DConditionModel`` folder; returns its path.

    Raises ``Unsupported`` where no stock UNet holds the task.
    """
    with draft(plan.out, force=plan.force, marker=FOLDED, sources=[plan.checkpoint]) as folder:
        with watch("import PyTorch"):
            from mtu_export import models
            from mtu_export.graph import quantize
        with watch("load checkpoint"):
            family = models.load(plan.family)
            pipeline = family.load(plan.checkpoint)
        with watch("fold"):
            (folded,) = family.specialise(pipeline, plan.tasks).values()
        if folded.deviations:
            raise Unsupported(f"no stock UNet2DConditionModel fits: {folded.deviations[0]}")
        with watch("save"):
            quantize.quantize([folded.module], plan.scheme)
            folded.module.save_pretrained(folder)
            config = checkpoint.read_json(folder / FOLDED.file)
            config |= {FOLDED.key: FOLDED.value, "_task": plan.tasks[0].name}
            (folder / FOLDED.file).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return plan.out
