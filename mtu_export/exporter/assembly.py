"""The pipeline of an export.

Component by component, in the order in which a loop needs them:
checkpoint ─load─▶ module ─golden─▶ ─specialise─▶ ─rewrite─▶ ─quantise─▶ ─capture─▶ Program
   ─lower─▶ artefact files ─verify─▶ verdicts; then the loop over all of them ─bundle─▶ folder
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import bundle, checkpoint, targets
from mtu_export.bundle import Bundle, Manifest
from mtu_export.bundle.manifest import Text, TextOutput, TokenizerRecord, VerdictRecord
from mtu_export.checkpoint.layout import tokenizer_folder
from mtu_export.exporter import budget, collection, compatibility, limits, manifest, resume
from mtu_export.spec import (
    COMPONENTS,
    CheckpointError,
    IntWeights,
    OutputExists,
    Plan,
    PlanError,
    Verdict,
)
from mtu_export.storage.draft import BUNDLE, draft, tidy

if TYPE_CHECKING:
    from mtu_export.exporter.component import ExportedPart
    from mtu_export.exporter.reference import Reference
    from mtu_export.exporter.schedule import Baked
    from mtu_export.models.lora import Lora

Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    """A ``Watch`` that shows nothing."""
    return nullcontext()


@bundle.refuse_invalid_records()
@collection.rare_collection()
def export(plan: Plan, watch: Watch = unwatched) -> Bundle:
    """Write the bundle of ``plan`` to ``plan.out``, whole or not at all.

    Every artefact is loaded from disk, run by its own runtime and compared with PyTorch, and so is
    the loop of each task. Raises ``ParityError`` below a floor, ``ResourceError``, before any work,
    where memory or disk are too small, and any other error of ``spec``.
    """
    if plan.resume and (finished := _finished_bundle(plan)) is not None:
        return finished
    _require_feasible(plan, watch)
    prepared = _prepare(plan, watch)
    stamps = resume.stamps(plan)
    with draft(
        plan.out,
        force=plan.force,
        marker=BUNDLE,
        sources=resume.source_files(plan),
        keep=prepared.fingerprint[:8] if plan.resume else None,
    ) as folder:
        parts = _export_components(prepared, folder, watch)
        document = _write_bundle(prepared, folder, parts)
        proof = [verdict for part in parts for verdict in part.proof]
        proof += _prove_loops(prepared, bundle.assemble(folder, document), watch)
        if resume.stamps(plan) != stamps:
            raise CheckpointError(f"{plan.checkpoint} was changed while it was exported")
        records = tuple(VerdictRecord(**asdict(verdict)) for verdict in proof)
        bundle.write_manifest(folder, document.model_copy(update={"proof": records}))
    return bundle.assemble(plan.out, bundle.read_manifest(plan.out))


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What an export works with, read and checked before the first component.

    ``plan.steps`` are the step counts that have a table in ``baked``. ``identity`` goes into every
    artefact; ``fingerprint`` tells the parts of this export from those of another.
    """

    plan: Plan
    components: Sequence[str]
    identity: Mapping[str, str]
    fingerprint: str
    scheduler: Any
    baked: Baked
    references: Sequence[Reference]
    loras: Sequence[tuple[Lora, float]]


# --------------------------------------------------------------------------------- before any work


def _finished_bundle(plan: Plan) -> Bundle | None:
    """The existing bundle of this plan, or None; refuses the bundle of another plan."""
    if not os.path.lexists(plan.out):
        return None
    if not BUNDLE.is_on(plan.out):
        raise OutputExists(plan.out)
    existing = bundle.read(plan.out)
    fingerprint = resume.fingerprint(plan, manifest.identity(plan), manifest.versions(plan))
    if existing.manifest.source.fingerprint != fingerprint:
        raise PlanError(
            f"{plan.out} is the bundle of another plan or version; choose another -o, or --force"
        )
    tidy(plan.out)
    return existing


def _require_feasible(plan: Plan, watch: Watch) -> None:
    """Refuse what memory, disk or the parts' configs do not allow."""
    budget.require_resources(plan)
    with watch("compare the parts"):
        compatibility.require_compatible_parts(plan, _components(plan))


def _components(plan: Plan) -> list[str]:
    """The components to load, in loop order: those exported, and encoders of fixed prompts."""
    names = {*plan.components}
    if "unet" in names:
        encoders = [name for name in COMPONENTS if name.startswith("text_encoder")]
        names |= {name for name in encoders if (plan.checkpoint / name).is_dir()}
    return [name for name in COMPONENTS if name in names]


def _prepare(plan: Plan, watch: Watch) -> _Prepared:
    """Probe the scheduler, read the LoRAs, hash the sources."""
    with watch("import PyTorch"):
        from mtu_export.bundle import loop_proof  # noqa: F401 (its time is counted here)
        from mtu_export.exporter import component, schedule  # noqa: F401
        from mtu_export.exporter.reference import Reference

        collection.set_aside()
    with watch(f"probe {schedule.origin(plan.checkpoint, plan.scheduler)}"):
        scheduler = schedule.load(plan.checkpoint, plan.scheduler)
        baked = schedule.bake(scheduler, plan.steps, required=plan.steps_named)
        limits.require_tables_fit(baked.tables)
        references = [Reference(plan, task, baked) for task in plan.tasks]
        _check_overrides(plan)
        loras = _read_loras(plan)
    identity = manifest.identity(plan)
    steps = tuple(steps for steps in plan.steps if steps in baked.tables)
    return _Prepared(
        plan=replace(plan, steps=steps or (baked.golden,)),
        components=_components(plan),
        identity=identity,
        fingerprint=resume.fingerprint(plan, identity, manifest.versions(plan)),
        scheduler=scheduler,
        baked=baked,
        references=references,
        loras=loras,
    )


def _check_overrides(plan: Plan) -> None:
    """Refuse, before any work, an override that matches no layer of what will be quantised."""
    from mtu_export import models
    from mtu_export.graph import quantize, rewrite

    if isinstance(plan.scheme.weights, IntWeights) and "unet" in plan.components:
        headers = checkpoint.headers(plan.checkpoint / "unet")
        channels = plan.config["in_channels"] + plan.tasks[0].channels
        outline = models.load(plan.family).outline(plan.config, headers, channels)
        rewrite.apply(outline, targets.rewrites(plan))
        quantize.layers(outline, plan.scheme)


def _read_loras(plan: Plan) -> list[tuple[Lora, float]]:
    """The plan's LoRAs; refuses one without layers for any component that is exported."""
    from mtu_export.models import lora

    loras, components = [], _components(plan)
    for path, scale in plan.loras:
        adapter = lora.read(path)
        adapted = dict.fromkeys(layer.component for layer in adapter.layers)
        if not set(adapted) & set(components):
            raise PlanError(
                f"--lora {path}: its layers are those of {', '.join(adapted)}; "
                f"exported are: {', '.join(components)}"
            )
        loras.append((adapter, scale))
    return loras


# ----------------------------------------------------------------------------------------- parts


def _export_components(prepared: _Prepared, folder: Path, watch: Watch) -> list[ExportedPart]:
    """Export each component, or take it from an interrupted export; feed the golden loops."""
    from mtu_export.exporter import component

    state, parts = resume.State(folder, prepared.fingerprint), []
    for name in prepared.components:
        result = state.get(name) if prepared.plan.resume else None
        if result is None:
            job = component.Job(
                plan=prepared.plan,
                component=name,
                folder=folder,
                identity=prepared.identity,
                watch=watch,
                loras=prepared.loras,
            )
            result = component.make(job, prepared.references)
            if result.part is not None:
                _refuse_failed_part(prepared, result.part, watch)
            state.put(name, result)
        else:
            with watch(f"{name}: kept from the interrupted export"):
                pass  # a line on the console
        for reference in prepared.references:
            if reference.task.name in result.contributions:
                reference.add(name, result.contributions[reference.task.name])
        parts += [] if result.part is None else [result.part]
    return parts


def _refuse_failed_part(prepared: _Prepared, part: ExportedPart, watch: Watch) -> None:
    """Raise ``ParityError`` where a verdict failed, for an int8 UNet with its costliest layers."""
    from mtu_export.exporter import proof, sensitivity

    failed = [verdict.task for verdict in part.proof if verdict.passed is False]
    hint, integer = None, isinstance(prepared.plan.scheme.weights, IntWeights)
    if failed and part.component == "unet" and integer:
        with watch("measure what each layer loses"):
            hint = sensitivity.layer_sensitivity(
                prepared.plan, failed[0], part.cost, prepared.loras
            )
    proof.refuse_failure(part.proof, hint)


# ---------------------------------------------------------------------------------------- bundle


def _write_bundle(prepared: _Prepared, folder: Path, parts: Sequence[ExportedPart]) -> Manifest:
    """Write all files of a bundle but the parts; returns its manifest, without the proof."""
    from mtu_export.exporter.reference import describe_loop
    from mtu_export.models import lora

    document = manifest.describe(
        prepared.plan,
        prepared.identity,
        [part.record for part in parts],
        loras=lora.identity(prepared.loras, list(prepared.components)),
        fingerprint=prepared.fingerprint,
    )
    tokenizers, folders = _write_tokenizers(prepared.plan, folder, parts)
    files = [
        *_write_tensors(prepared.references, folder, parts),
        *_copy_licences(prepared.plan, folder),
    ]
    document = document.model_copy(
        update={
            "tokenizers": tuple(tokenizers),
            "text": Text(inputs=_text_sources(prepared.references[0], parts), tokenizers=folders),
            "loop": describe_loop(prepared.scheduler, prepared.baked, prepared.references),
            "files": tuple(bundle.record(folder, path) for path in (*files, *folders.values())),
        }
    )
    bundle.write_manifest(folder, document)
    return document


def _write_tensors(
    references: Sequence[Reference], folder: Path, parts: Sequence[ExportedPart]
) -> list[str]:
    """Write goldens and constants; returns the files' names."""
    cases = {
        f"{part.component}/{task}": pairs for part in parts for task, pairs in part.cases.items()
    }
    loops = {reference.task.name: reference.golden() for reference in references}
    bundle.write_goldens(folder, cases, loops)
    constants = {}
    for reference in references:
        constants |= reference.constants()
    if not constants:
        return [bundle.GOLDENS]
    bundle.write_constants(folder, constants)
    return [bundle.GOLDENS, bundle.CONSTANTS]


def _copy_licences(plan: Plan, folder: Path) -> list[str]:
    licences = checkpoint.licences(plan.checkpoint)
    for path in licences:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in licences]


def _write_tokenizers(
    plan: Plan, folder: Path, parts: Sequence[ExportedPart]
) -> tuple[list[TokenizerRecord], dict[str, str]]:
    """The manifest's ``tokenizers``, and the tokenizer's folder of each text encoder."""
    from mtu_export.bundle import source_tokenizer

    tokenizers, folders = [], {}
    for encoder in (p.component for p in parts if p.component.startswith("text_encoder")):
        name = tokenizer_folder(encoder)
        shutil.rmtree(folder / name, ignore_errors=True)  # of an export that was stopped here
        exported = source_tokenizer.export(plan.checkpoint / name, folder / name)
        tokenizers.append(
            TokenizerRecord(
                path=name,
                bos=exported.bos,
                eos=exported.eos,
                pad=exported.pad,
                length=exported.length,
            )
        )
        folders[encoder] = name
    return tokenizers, folders


def _text_sources(
    reference: Reference, parts: Sequence[ExportedPart]
) -> dict[str, tuple[TextOutput, ...]]:
    """Per text input of the UNet, the encoder outputs to concatenate, named as in the artefacts."""
    order = ("hidden_states", "pooled")
    records = {part.component: part.record for part in parts}
    inputs = {}
    for name, sources in reference.text_sources.items():
        inputs[name] = tuple(
            TextOutput(
                component=record.component,
                output=record.outputs[order.index(source["output"])].name,
            )
            for source in sources
            if (record := records.get(source["component"])) is not None
        )
    return {name: sources for name, sources in inputs.items() if sources}


def _prove_loops(prepared: _Prepared, assembled: Bundle, watch: Watch) -> list[Verdict]:
    """Run each task's loop with the bundle on disk; its verdicts, none of which failed."""
    from mtu_export.bundle import loop_proof, verification
    from mtu_export.exporter import proof

    complete = [reference for reference in prepared.references if reference.golden()]
    if not complete:
        return []
    verdicts: list[Verdict] = []
    floor = verification.pass_floor(prepared.plan.scheme, prepared.plan.floor_db)
    for reference in complete:
        of_task = f" of {reference.task.name}" if len(prepared.references) > 1 else ""
        with watch(f"verify the loop{of_task}"):
            verdicts += loop_proof.prove_loop(assembled, reference.task, floor)
        proof.refuse_failure(verdicts)
    return verdicts
