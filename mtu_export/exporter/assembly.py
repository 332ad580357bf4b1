"""The pipeline of an export.

Part by part, in the order in which flows run them:
checkpoint ─load─▶ module ─golden─▶ ─specialise─▶ ─rewrite─▶ ─quantise─▶ ─capture─▶ Program
   ─lower─▶ artefact files ─verify─▶ verdicts; then the loop over all of them ─bundle─▶ folder
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import bundle, checkpoint, targets
from mtu_export.bundle import Bundle, Manifest
from mtu_export.bundle.manifest import TokenizerRecord, VerdictRecord
from mtu_export.exporter import budget, collection, limits, manifest, resume, tokenizers
from mtu_export.spec import (
    CheckpointError,
    IntWeights,
    OutputExists,
    Plan,
    PlanError,
    Verdict,
)
from mtu_export.spec.flow import Tokens
from mtu_export.storage.draft import BUNDLE, draft, tidy

if TYPE_CHECKING:
    import numpy as np

    from mtu_export.exporter.part import ExportedPart
    from mtu_export.exporter.reference import Reference
    from mtu_export.exporter.schedule import Baked
    from mtu_export.models.lora import Scaled

Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    """A ``Watch`` that shows nothing."""
    return nullcontext()


@bundle.refuse_invalid_records()
@collection.rare_collection()
def export(plan: Plan, watch: Watch = unwatched) -> Bundle:
    """Make the bundle of ``plan`` at ``plan.out``, whole or not at all.

    Every artefact is loaded from disk and run by its own runtime against PyTorch, and so is the
    loop. Raises ``ParityError`` below a floor, ``ResourceError`` before any work where memory or
    disk will not do, and any other error of ``spec``.
    """
    if plan.resume and (finished := _finished_bundle(plan)) is not None:
        return finished
    _require_feasible(plan, watch)
    work = _prepare(plan, watch)
    before = resume.stamps(plan)
    with draft(
        plan.out,
        force=plan.force,
        marker=BUNDLE,
        sources=resume.source_files(plan),
        keep=work.fingerprint[:8] if plan.resume else None,
    ) as folder:
        parts = _export_parts(work, folder, watch)
        described = _write_bundle(work, folder, parts)
        proof = [verdict for part in parts for verdict in part.proof]
        proof += _prove_loops(work, bundle.assemble(folder, described), watch)
        if resume.stamps(plan) != before:
            raise CheckpointError(f"{plan.checkpoint} was changed while it was exported")
        records = tuple(VerdictRecord(**asdict(verdict)) for verdict in proof)
        bundle.write_manifest(folder, described.model_copy(update={"proof": records}))
    return bundle.assemble(plan.out, bundle.read_manifest(plan.out))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """An export with everything it needs in hand; ``baked`` are the loop's tables, if there is one.

    ``parts`` are loaded, in the order in which flows run them: those exported, and encoders of
    fixed prompts.
    """

    plan: Plan
    parts: Sequence[str]
    identity: Mapping[str, str]
    fingerprint: str
    baked: Baked | None
    references: Sequence[Reference]
    loras: Scaled


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
        parts = _parts(plan)
        tokenizers.require_tokenizers(plan, parts)
        plan.model.require_compatible(parts)


def _parts(plan: Plan) -> list[str]:
    """The parts to load: those exported and, with any part of a pass, the text encoders."""
    names, text = {*plan.parts}, plan.model.text
    passes = {call.part for task in plan.tasks for call in plan.model.flow(task).of("pass")}
    if text is not None and names & passes:
        folders = {spec.name: plan.checkpoint / spec.folder for spec in plan.model.parts}
        names |= {call.part for call in text.calls if folders[call.part].is_dir()}
    return [spec.name for spec in plan.model.parts if spec.name in names]


def _prepare(plan: Plan, watch: Watch) -> _Work:
    """Probe the scheduler, read the LoRAs, hash the sources."""
    with watch("import PyTorch"):
        from mtu_export.bundle import loop_proof  # noqa: F401 (its time is counted here)
        from mtu_export.exporter import part, schedule  # noqa: F401
        from mtu_export.exporter.reference import Reference

        collection.set_aside()
    flows = {task.name: plan.model.flow(task) for task in plan.tasks}
    baked = None
    if any(flow.has_loop for flow in flows.values()):
        with watch(f"probe {schedule.origin(plan.checkpoint, plan.scheduler)}"):
            scheduler = schedule.load(plan.checkpoint, plan.scheduler)
            starts = any(flow.start is not None for flow in flows.values())
            pure = any(flow.has_loop and flow.start is None for flow in flows.values())
            baked = schedule.bake(
                scheduler,
                plan.steps,
                ([None] if pure else []) + ([*plan.strengths] if starts else []),
                required=plan.steps_named,
            )
            limits.require_tables_fit(baked.tables)
    references = []
    for task in plan.tasks:
        flow = flows[task.name]
        table = None
        if baked is not None and flow.has_loop:
            table = baked.golden_table(task.strength if flow.start is not None else None)
        references.append(Reference(plan, task, table, None if baked is None else baked.golden))
    _check_overrides(plan)
    _require_text(plan)
    identity = manifest.identity(plan)
    return _Work(
        plan=plan,
        parts=_parts(plan),
        identity=identity,
        fingerprint=resume.fingerprint(plan, identity, manifest.versions(plan)),
        baked=baked,
        references=references,
        loras=_read_loras(plan),
    )


def _check_overrides(plan: Plan) -> None:
    """Refuse, before any work, an override that matches no layer of what will be quantised."""
    from mtu_export.graph import quantize, rewrite

    for name in plan.parts:
        scheme = plan.schemes[name]
        if any(override.required for override in scheme.overrides):
            outline = plan.model.outline(name, plan.tasks[0])
            rewrite.apply(outline, targets.rewrites(plan))
            quantize.layers(outline, scheme)


def _require_text(plan: Plan) -> None:
    """Refuse embeddings and a clip skip where no text encoder is exported or encodes a prompt."""
    parts = _parts(plan)
    if any(plan.spec(name).kind == "text_encoder" for name in parts):
        return
    flags = {"--embedding": plan.model.embeddings, "--clip-skip": plan.model.clip_skip}
    for flag, value in flags.items():
        if value:
            raise PlanError(f"{flag} changes a text encoder; exported are: {', '.join(parts)}")


def _read_loras(plan: Plan) -> Scaled:
    """The plan's LoRAs; refuses one without layers for any part that is exported."""
    from mtu_export.models import lora

    loras, parts = [], _parts(plan)
    for source in plan.loras:
        adapter, scales = lora.load(source)
        adapted = dict.fromkeys(layer.component for layer in adapter.layers)
        if not set(adapted) & set(parts):
            raise PlanError(
                f"--lora {source.path}: its layers are those of {', '.join(adapted)}; "
                f"exported are: {', '.join(parts)}"
            )
        loras.append((adapter, scales))
    return loras


# ----------------------------------------------------------------------------------------- parts


def _export_parts(work: _Work, folder: Path, watch: Watch) -> list[ExportedPart]:
    """Export each part or take it from an interrupted export; add it to the references."""
    from mtu_export.exporter import part

    state, parts = resume.State(folder, work.fingerprint), []
    for name in work.parts:
        result = state.get(name) if work.plan.resume else None
        if result is None:
            job = part.Job(
                plan=work.plan,
                part=work.plan.spec(name),
                folder=folder,
                identity=work.identity,
                watch=watch,
                loras=work.loras,
            )
            result = part.make(job, work.references)
            if result.part is not None:
                _refuse_failed_part(work, result.part, watch)
            state.put(name, result)
        else:
            with watch(f"{name}: kept from the interrupted export"):
                pass
        for reference in work.references:
            if reference.task.name in result.contributions:
                reference.add(result.contributions[reference.task.name])
        parts += [] if result.part is None else [result.part]
    return parts


def _refuse_failed_part(work: _Work, part: ExportedPart, watch: Watch) -> None:
    """Raise ``ParityError``; for a denoiser's integer weights, it names the costliest layers."""
    from mtu_export.exporter import proof, sensitivity

    failed = [verdict.task for verdict in part.proof if verdict.passed is False]
    hint, integer = None, isinstance(work.plan.schemes[part.name].weights, IntWeights)
    integer &= not work.plan.is_plain
    if failed and part.record.kind == "denoiser" and integer:
        with watch("measure what each layer loses"):
            hint = sensitivity.layer_sensitivity(
                work.plan, part.name, failed[0], part.cost, work.loras
            )
    proof.refuse_failure(part.proof, hint)


# ---------------------------------------------------------------------------------------- bundle


def _write_bundle(work: _Work, folder: Path, parts: Sequence[ExportedPart]) -> Manifest:
    """Write all but the parts of a bundle; its manifest has no proof yet."""
    from mtu_export.models import lora

    described = manifest.describe(
        work.plan,
        work.identity,
        [part.record for part in parts],
        work.baked,
        work.references,
        loras=lora.identity(work.loras, list(work.parts)),
        fingerprint=work.fingerprint,
    )
    records = _write_tokenizers(work, folder, parts)
    files = [*_write_tensors(work.references, folder, parts), *_copy_licences(work.plan, folder)]
    files += [record.path for record in records]
    described = described.model_copy(
        update={
            "tokenizers": tuple(records),
            "files": tuple(bundle.record(folder, path) for path in files),
        }
    )
    bundle.write_manifest(folder, described)
    return described


def _write_tensors(
    references: Sequence[Reference], folder: Path, parts: Sequence[ExportedPart]
) -> list[str]:
    """Write goldens and constants; returns the files' names."""
    cases = {f"{part.name}/{task}": pairs for part in parts for task, pairs in part.cases.items()}
    loops = {reference.task.name: reference.golden() for reference in references}
    bundle.write_goldens(folder, cases, loops)
    constants: dict[str, np.ndarray] = {}
    for reference in references:
        constants |= reference.constants
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
    work: _Work, folder: Path, parts: Sequence[ExportedPart]
) -> list[TokenizerRecord]:
    """The manifest's ``tokenizers``: those of the text encoders that are exported."""
    from mtu_export.bundle import source_tokenizer

    exported = {part.name for part in parts}
    names = {
        source.tokenizer
        for reference in work.references
        for call in reference.exported.calls
        if call.part in exported
        for source in call.sources()
        if isinstance(source, Tokens)
    }
    records = []
    for name in sorted(names):
        shutil.rmtree(folder / name, ignore_errors=True)  # of an export that was stopped here
        written = source_tokenizer.export(
            checkpoint.on_disk(work.plan.checkpoint / name),
            folder / name,
            tokenizers.added(work.plan),
        )
        records.append(
            TokenizerRecord(
                path=name,
                bos=written.bos,
                eos=written.eos,
                pad=written.pad,
                length=written.length,
            )
        )
    return records


def _prove_loops(work: _Work, written: Bundle, watch: Watch) -> list[Verdict]:
    """The verdicts of each task's loop, run with the bundle on disk."""
    from mtu_export.bundle import loop_proof, verification
    from mtu_export.exporter import proof

    complete = [reference for reference in work.references if reference.golden()]
    if not complete:
        return []
    verdicts: list[Verdict] = []
    floor = verification.pass_floor(work.plan.scheme, work.plan.floor_db)
    for reference in complete:
        of_task = f" of {reference.task.name}" if len(work.references) > 1 else ""
        with watch(f"verify the loop{of_task}"):
            verdicts += loop_proof.prove_loop(written, written.task(reference.task.name), floor)
        proof.refuse_failure(verdicts)
    return verdicts
