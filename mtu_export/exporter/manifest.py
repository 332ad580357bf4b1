"""The identity inside every artefact, and the manifest of a bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export import __version__, bundle, checkpoint, targets
from mtu_export.bundle.manifest import (
    CostRecord,
    EmbeddingRecord,
    Golden,
    Image,
    KeptLayer,
    Latent,
    Loop,
    LoraRecord,
    Manifest,
    PartRecord,
    ScheduleRecord,
    SchemeRecord,
    Source,
    TaskRecord,
    TensorRecord,
    Weights,
)
from mtu_export.spec import (
    Cost,
    IntWeights,
    Lowered,
    Plan,
    Program,
    TensorSpec,
)

if TYPE_CHECKING:
    from mtu_export.exporter.reference import Reference
    from mtu_export.exporter.schedule import Baked


_BASELINES: Mapping[str | None, Mapping[str, bool]] = {
    "unfolded": {"fold": False},
    "plain": {"plain": True},
    "dense": {"dense": True},
}
"""What the manifest's ``options`` say of a baseline."""


def weights(plan: Plan) -> dict[str, Path]:
    """Configs and weights of the parts to export, by their names in the checkpoint.

    A file with several parts counts once; configs that are derived from it are no files.
    """
    files: dict[str, Path] = {}
    for name in plan.parts:
        part = plan.spec(name)
        folder = plan.checkpoint / part.folder
        config = checkpoint.sources(folder / "config.json")
        paths = (*config, *checkpoint.weight_files(folder, part.stem))
        files |= {f"{part.folder}/{p.name}": p for p in paths if p not in files.values()}
    return files


def identity(plan: Plan) -> dict[str, str]:
    """The identity of an export, which every artefact holds too."""
    return {
        "name": plan.out.name,
        "schema_version": ".".join(map(str, bundle.SCHEMA)),
        "mtu_export": __version__,
        "family": plan.model.family,
        "source": plan.source or plan.checkpoint.name,
        "source_sha256": bundle.sha256_of(weights(plan)),
        "tasks": "+".join(task.name for task in plan.tasks),
        "target": plan.target,
        "scheme": plan.scheme.name,
    }


def describe(
    plan: Plan,
    identity: Mapping[str, str],
    parts: Sequence[PartRecord],
    baked: Baked | None,
    references: Sequence[Reference],
    loras: Sequence[Mapping[str, Any]] = (),
    fingerprint: str | None = None,
) -> Manifest:
    """The manifest of these parts, with neither tokenizers, files nor proof yet."""
    now = datetime.datetime.now(datetime.UTC)
    first = sorted(parts, key=lambda part: part.kind != "denoiser")
    scheme = first[0].scheme
    assert scheme is not None
    latent, names = plan.model.latent, {part.name: _artefact_names(part, plan) for part in parts}
    optional: dict[str, Any] = {}
    if latent is not None:
        optional["latent"] = Latent(channels=latent.channels, factor=latent.factor)
    if baked is not None:
        optional["loop"] = _loop(baked)
    golden = _golden(references)
    if golden is not None:
        optional["golden"] = golden
    return Manifest(
        schema_version=identity["schema_version"],
        name=identity["name"],
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=versions(plan),
        source=Source(
            name=identity["source"],
            **({"revision": plan.revision} if plan.revision else {}),
            family=plan.model.family,
            sha256=identity["source_sha256"],
            config=dict(plan.model.config),
            loras=tuple(LoraRecord(**lora) for lora in loras),
            **_text_changes(plan),
            fingerprint=fingerprint,
            notes=plan.model.notes,
        ),
        target=plan.target,
        options={**asdict(plan.options), **_BASELINES.get(plan.baseline, {})},
        scheme=scheme,
        image=Image(height=plan.height, width=plan.width),
        tasks=tuple(_task(reference, baked, names) for reference in references),
        parts=tuple(parts),
        tokenizers=(),
        files=(),
        proof=(),
        **optional,
    )


def _text_changes(plan: Plan) -> dict[str, Any]:
    """Keys of the source for a clip skip and embeddings, where there are any."""
    records = tuple(
        EmbeddingRecord(
            name=each.path.name,
            sha256=each.sha256,
            token=each.tokens[0],
            vectors=len(each.tokens),
        )
        for each in plan.model.embeddings
    )
    changes: dict[str, Any] = {"embeddings": records} if records else {}
    return {**changes, "clip_skip": plan.model.clip_skip} if plan.model.clip_skip else changes


def _artefact_names(record: PartRecord, plan: Plan) -> dict[str, str]:
    """Names of a part's inputs and outputs: the graph's to the artefact's."""
    stock = plan.spec(record.name).stock
    names = {} if stock is None else stock.io_names
    there = {tensor.name for tensor in (*record.inputs, *record.outputs)}
    return {name: renamed for name, renamed in names.items() if renamed in there}


def _task(
    reference: Reference, baked: Baked | None, names: Mapping[str, Mapping[str, str]]
) -> TaskRecord:
    """The record of a task; steps and strength are the nearest to its own that have a table."""
    task, flow = reference.task, reference.exported.renamed(names)
    record = {
        "name": task.name,
        "guidance": task.guidance.to_json(),
        "steps": task.steps,
        "prompt": task.prompt,
        "inputs": reference.inputs.to_json(),
        "flow": flow.to_json(),
    }
    if baked is not None and flow.has_loop:
        tables = [key for key in baked.tables if (key[1] is None) == (flow.start is None)]
        counts = {count for count, _ in tables}
        named = counts & set(reference.plan.steps) or counts  # without the golden loop's own
        steps = min(sorted(named), key=lambda count: abs(count - task.steps))
        record["steps"] = steps
        if flow.start is not None:
            wanted = task.strength or 1.0
            strengths = [s for count, s in tables if count == steps and s is not None]
            record["strength"] = min(strengths, key=lambda s: abs(s - wanted))
    return TaskRecord.model_validate_json(json.dumps(record))


def _loop(baked: Baked) -> Loop:
    """The tables of the scheduler; a count without one says why."""
    optional: dict[str, Any] = {}  # keys that a manifest has only where they say something
    if baked.skipped:
        optional["skipped"] = {str(steps): reason for steps, reason in baked.skipped.items()}
    return Loop(
        scheduler=baked.scheduler,
        prediction_type=baked.prediction_type,
        schedules=tuple(
            ScheduleRecord.of(steps, table) for (steps, _), table in baked.tables.items()
        ),
        **optional,
    )


def _golden(references: Sequence[Reference]) -> Golden | None:
    """The golden request of a task that was run to its end.

    Tasks that take any prompt come first: a task with a fixed prompt ignores the request's.
    """
    complete = [reference for reference in references if reference.golden()]
    if not complete:
        return None
    first = min(complete, key=lambda each: each.task.prompt is not None)
    strengths = [r.request.strength for r in complete if r.request.strength is not None]
    optional: dict[str, Any] = {"strength": strengths[0]} if strengths else {}
    if first.schedule is not None:
        optional["steps"] = first.request.steps
    return Golden(prompt=first.request.prompt, **optional)


def versions(plan: Plan) -> dict[str, str]:
    """Versions of the packages that make the bundle."""
    packages = ("torch", "diffusers", "transformers", *targets.load(plan.target).info.packages)
    installed = {name: version for name in packages if (version := _version(name))}
    return {"mtu_export": __version__, **installed}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def part(
    program: Program,
    lowered: Lowered,
    cost: Cost,
    plan: Plan,
    folder: Path,
    kept: Sequence[tuple[str, str]],
) -> PartRecord:
    """The manifest's record of one part, its files hashed; ``plan`` has the part's scheme.

    Inputs and outputs are those of the program, in its order, under the names that the artefact
    itself has for them. A program of one method is that of every task which runs the part.
    """
    first = next(iter(program.methods))
    users = [task.name for task in plan.tasks if program.name in plan.model.flow(task).parts]
    inputs = {
        task: tuple(_tensor(spec, lowered) for spec in program.inputs[task])
        for task in lowered.entries
    }
    others = {task: tensors for task, tensors in inputs.items() if tensors != inputs[first]}
    file = bundle.record(folder, lowered.path)
    record = PartRecord(
        name=program.name,
        kind=plan.spec(program.name).kind,
        path=file.path,
        bytes=file.bytes,
        sha256=file.sha256,
        entries={name: lowered.entries.get(name, lowered.entries[first]) for name in users},
        inputs=inputs[first],
        outputs=tuple(_tensor(spec, lowered) for spec in program.outputs),
        scheme=_scheme(plan, lowered, kept),
        cost=CostRecord(**asdict(cost), **_weights(program, lowered)),
        notes=dict(lowered.notes),
    )
    return record.model_copy(update={"task_inputs": others}) if others else record


def _scheme(plan: Plan, lowered: Lowered, kept: Sequence[tuple[str, str]]) -> SchemeRecord:
    weights = plan.scheme.weights
    integer = isinstance(weights, IntWeights)
    bits = weights.bits if integer else {"float32": 32, "float16": 16}[weights.dtype]
    return SchemeRecord(
        name=plan.scheme.name,
        weights=Weights(bits=bits, granularity=lowered.granularity if integer else None),
        activations=lowered.activations,
        calibration=None,  # no target fixes ranges of activations
        kept_float=tuple(
            KeptLayer(layer=layer, why=why) for layer, why in (*kept, *lowered.kept_float)
        ),
    )


def _tensor(spec: TensorSpec, lowered: Lowered) -> TensorRecord:
    name = lowered.io_names.get(spec.name, spec.name)
    return TensorRecord(name=name, shape=spec.shape, dtype=spec.dtype)  # type: ignore[arg-type]


def _weights(program: Program, lowered: Lowered) -> dict[str, Any]:
    """Bytes of codes, scales and float weights, each tensor once (ONNX graphs repeat small ones).

    Where tasks share weights, ``shared_weight_bytes`` are those of all and ``task_weight_bytes``
    those of one task alone.
    """
    import torch

    if lowered.weight_bytes is not None:
        return {"weight_bytes": lowered.weight_bytes, "shared_weight_bytes": 0}
    first, *others = program.methods
    state = program.methods[first].state_dict
    if not others:
        total = _bytes(program, first, lowered, state.keys())
        return {"weight_bytes": total, "shared_weight_bytes": 0}
    of_one_task = {
        name
        for name in program.task_tensors
        if any(not torch.equal(state[name], program.methods[n].state_dict[name]) for n in others)
    }
    shared = _bytes(program, first, lowered, state.keys() - of_one_task)
    by_task = {task: _bytes(program, task, lowered, of_one_task) for task in program.methods}
    return {
        "weight_bytes": shared + sum(by_task.values()),
        "shared_weight_bytes": shared,
        "task_weight_bytes": by_task,
    }


def _bytes(program: Program, task: str, lowered: Lowered, names: Collection[str]) -> int:
    import torch

    width = {"float32": 4, "float16": 2}
    matrices, vectors = width[lowered.weight_dtype], width[lowered.vector_dtype]
    state = [t for name, t in program.methods[task].state_dict.items() if name in names]
    floats = [t for t in state if t.is_floating_point()]
    count = sum(t.numel() * (matrices if t.dim() > 1 else vectors) for t in floats)
    return count + sum(t.numel() for t in state if t.dtype == torch.int8)
