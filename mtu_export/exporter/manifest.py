"""The identity inside every artefact, and the manifest of a bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtu_export import __version__, bundle, checkpoint, targets
from mtu_export.bundle.manifest import (
    CostRecord,
    Image,
    KeptLayer,
    Latent,
    LoraRecord,
    Manifest,
    Mask,
    PartRecord,
    SchemeRecord,
    Source,
    TaskRecord,
    TensorRecord,
    Weights,
)
from mtu_export.checkpoint.layout import PipelineLayout, source_folder
from mtu_export.spec import (
    Cost,
    IntWeights,
    Lowered,
    Plan,
    Program,
    Task,
    TensorSpec,
)


def weights(plan: Plan) -> dict[str, Path]:
    """Configs and weights of the parts to export, by their names in the checkpoint."""
    files = {}
    for part in dict.fromkeys(source_folder(name) for name in plan.components):
        folder = plan.checkpoint / part
        stem = checkpoint.TEXT_WEIGHTS if part.startswith("text_encoder") else checkpoint.WEIGHTS
        paths = (folder / "config.json", *checkpoint.weight_files(folder, stem))
        files |= {f"{part}/{path.name}": path for path in paths}
    return files


def identity(plan: Plan) -> dict[str, str]:
    """The identity of an export, which every artefact holds too."""
    return {
        "name": plan.out.name,
        "schema_version": ".".join(map(str, bundle.SCHEMA)),
        "mtu_export": __version__,
        "family": plan.family,
        "source": plan.source or plan.checkpoint.resolve().name,
        "source_sha256": bundle.sha256_of(weights(plan)),
        "tasks": "+".join(task.name for task in plan.tasks),
        "target": plan.target,
        "scheme": plan.scheme.name,
    }


def describe(
    plan: Plan,
    identity: Mapping[str, str],
    parts: Sequence[PartRecord],
    loras: Sequence[Mapping[str, Any]] = (),
    fingerprint: str | None = None,
) -> Manifest:
    """The manifest of these parts, with neither files, text, loop nor proof yet.

    A task's steps are the count nearest to its default that has a schedule.
    """
    layout = PipelineLayout.read(plan.checkpoint, plan.config)
    stock = checkpoint.stock_config(plan.config, plan.config["in_channels"])
    sizes = ("num_experts", "task_embedding_dim", "router_hidden_dim")
    now = datetime.datetime.now(datetime.UTC)
    first = sorted(parts, key=lambda part: part.component != "unet")
    scheme = first[0].scheme
    assert scheme is not None
    return Manifest(
        schema_version=identity["schema_version"],
        name=identity["name"],
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=versions(plan),
        source=Source(
            name=identity["source"],
            **({"revision": plan.revision} if plan.revision else {}),
            family=plan.family,
            sha256=identity["source_sha256"],
            unet_config={**stock, **{key: plan.config[key] for key in sizes}},
            loras=tuple(LoraRecord(**lora) for lora in loras),
            fingerprint=fingerprint,
        ),
        target=plan.target,
        options=asdict(plan.options),
        scheme=scheme,
        image=Image(
            height=plan.height, width=plan.width, range=(-1, 1), fit="cover", filter="lanczos"
        ),
        tasks=tuple(_task(task, plan, layout, first) for task in plan.tasks),
        parts=tuple(parts),
        tokenizers=(),
        text=None,
        latent=Latent(
            channels=plan.config["out_channels"],
            factor=plan.factor,
            scaling_factor=layout.scaling_factor,
        ),
        mask=Mask(threshold=0.5, resize="nearest", masked_image="image * (mask < 0.5)"),
        loop=None,
        files=(),
        proof=(),
    )


def _task(
    task: Task, plan: Plan, layout: PipelineLayout, parts: Sequence[PartRecord]
) -> TaskRecord:
    """The record of a task; ``scaled`` is explicit where it has a meaning."""
    conditioning = [
        {"kind": entry.kind, "channels": entry.channels}
        | ({"scaled": entry.scaled} if entry.kind == "image_latent" else {})
        for entry in task.conditioning
    ]
    record = {
        **task.to_json(),
        "conditioning": conditioning,
        "steps": min(plan.steps, key=lambda count: abs(count - task.steps)),
        "parts": list(layout.components(task)),
        "entry": next(p.entries[task.name] for p in parts if task.name in p.entries),
    }
    return TaskRecord.model_validate_json(json.dumps(record))


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
    """The manifest's record of one component, its files hashed; ``plan`` has the part's scheme.

    Inputs and outputs are those of the program, in its order, under the names that the artefact
    itself has for them. A program of one method is that of every task which needs the component.
    """
    layout = PipelineLayout(plan.config)
    first = next(iter(program.methods))
    users = [task.name for task in plan.tasks if program.name in layout.components(task)]
    inputs = {
        task: tuple(_tensor(spec, lowered) for spec in program.inputs[task])
        for task in lowered.entries
    }
    others = {task: tensors for task, tensors in inputs.items() if tensors != inputs[first]}
    file = bundle.record(folder, lowered.path)
    record = PartRecord(
        component=program.name,  # type: ignore[arg-type]
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
        weights=Weights(bits=bits, granularity="per_channel" if integer else None),
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
