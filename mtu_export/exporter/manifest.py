"""What an export says of itself: the identity inside every artefact, and ``manifest.json``."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtu_export import __version__, bundle, checkpoint, targets
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
        home = plan.checkpoint / part
        stem = checkpoint.TEXT_WEIGHTS if part.startswith("text_encoder") else checkpoint.WEIGHTS
        rows = (home / "config.json", *checkpoint.weight_files(home, stem))
        files |= {f"{part}/{path.name}": path for path in rows}
    return files


def identity(plan: Plan) -> dict[str, str]:
    """What is written inside every artefact too."""
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
    plan: Plan, identity: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of bundle.md for these parts, with neither files, loop nor proof yet.

    A task's steps are its own, or the nearest count that has a schedule.
    """
    layout = PipelineLayout.read(plan.checkpoint, plan.config)
    stock = checkpoint.stock_config(plan.config, plan.config["in_channels"])
    sizes = ("num_experts", "task_embedding_dim", "router_hidden_dim")
    now = datetime.datetime.now(datetime.UTC)
    first = sorted(rows, key=lambda row: row["component"] != "unet")
    return {
        "schema_version": identity["schema_version"],
        "name": identity["name"],
        "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(plan),
        "source": {
            "name": identity["source"],
            **({"revision": plan.revision} if plan.revision else {}),
            "family": plan.family,
            "sha256": identity["source_sha256"],
            "model_config": {**stock, **{key: plan.config[key] for key in sizes}},
        },
        "target": plan.target,
        "options": asdict(plan.options),
        "scheme": first[0]["scheme"],
        "image": {
            "height": plan.height,
            "width": plan.width,
            "range": [-1, 1],
            "fit": "cover",
            "filter": "lanczos",
        },
        "tasks": [
            {
                **task.to_json(),
                "steps": min(plan.steps, key=lambda count, own=task.steps: abs(count - own)),
                "conditioning": _conditioning(task),
                "parts": list(layout.components(task)),
                "entry": next(r["entries"][task.name] for r in first if task.name in r["entries"]),
            }
            for task in plan.tasks
        ],
        "parts": list(rows),
        "tokenizers": [],
        "text": None,
        "latent": {
            "channels": plan.config["out_channels"],
            "factor": plan.factor,
            "scaling_factor": layout.scaling_factor,
        },
        "mask": {
            "threshold": 0.5,
            "resize": "nearest",
            "masked_image": "image * (mask < 0.5)",
        },
        "loop": None,
        "files": [],
        "proof": [],
    }


def versions(plan: Plan) -> dict[str, str]:
    """Versions of what makes the bundle."""
    packages = ("torch", "diffusers", "transformers", *targets.load(plan.target).info.packages)
    found = {name: version for name in packages if (version := _version(name))}
    return {"mtu_export": __version__, **found}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _conditioning(task: Task) -> list[dict[str, Any]]:
    """Entries with ``scaled`` spelled out where it means something."""
    return [
        {"kind": entry.kind, "channels": entry.channels}
        | ({"scaled": entry.scaled} if entry.kind == "image_latent" else {})
        for entry in task.conditioning
    ]


def part(
    program: Program,
    lowered: Lowered,
    cost: Cost,
    plan: Plan,
    folder: Path,
    kept: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The manifest's row of one component, its files hashed; ``plan`` has the part's scheme.

    Inputs and outputs are those of the program, in its order, under the names that the artefact
    itself has for them. A program of one method is that of every task which needs the component.
    """
    layout = PipelineLayout(plan.config)
    path, first = folder / lowered.path, next(iter(program.methods))
    users = [task.name for task in plan.tasks if program.name in layout.components(task)]
    inputs = {
        task: [_spec(spec, lowered) for spec in program.inputs[task]] for task in lowered.entries
    }
    others = {task: row for task, row in inputs.items() if row != inputs[first]}
    return {
        "component": program.name,
        "path": lowered.path,
        "bytes": bundle.size(path),
        "sha256": bundle.sha256(path),
        "entries": {name: lowered.entries.get(name, lowered.entries[first]) for name in users},
        "inputs": inputs[first],
        **({"task_inputs": others} if others else {}),
        "outputs": [_spec(spec, lowered) for spec in program.outputs],
        "scheme": _scheme(plan, lowered, kept),
        "cost": {**asdict(cost), **_weights(program, lowered)},
        "notes": dict(lowered.notes),
    }


def _scheme(plan: Plan, lowered: Lowered, kept: Sequence[tuple[str, str]]) -> dict[str, Any]:
    weights = plan.scheme.weights
    quantised = isinstance(weights, IntWeights)
    bits = weights.bits if quantised else {"float32": 32, "float16": 16}[weights.dtype]
    return {
        "name": plan.scheme.name,
        "weights": {"bits": bits, "granularity": "per_channel" if quantised else None},
        "activations": lowered.activations,
        "calibration": None,  # no target fixes ranges of activations
        "kept_float": [{"layer": layer, "why": why} for layer, why in (*kept, *lowered.kept_float)],
    }


def _spec(spec: TensorSpec, lowered: Lowered) -> dict[str, Any]:
    name = lowered.io_names.get(spec.name, spec.name)
    return {"name": name, "shape": list(spec.shape), "dtype": spec.dtype}


def _weights(program: Program, lowered: Lowered) -> dict[str, Any]:
    """Bytes of codes, scales and float weights, each tensor once (ONNX graphs repeat small ones).

    Where tasks share weights, ``shared_weight_bytes`` are those of all and ``task_weight_bytes``
    those of one task alone.
    """
    import torch

    first, *others = program.methods
    state = program.methods[first].state_dict
    names, apart = (
        frozenset(state),
        {
            name
            for name in program.own
            if any(
                not torch.equal(state[name], program.methods[n].state_dict[name]) for n in others
            )
        },
    )
    own = {task: _bytes(program, task, lowered, apart) for task in program.methods}
    several = len(own) > 1
    shared = _bytes(program, first, lowered, names - apart) if several else 0
    found: dict[str, Any] = {"shared_weight_bytes": shared}
    if several:
        found["task_weight_bytes"] = own
    total = sum(own.values()) + shared if several else _bytes(program, first, lowered, names)
    return {"weight_bytes": total, **found}


def _bytes(program: Program, task: str, lowered: Lowered, names: Collection[str]) -> int:
    import torch

    width = {"float32": 4, "float16": 2}
    matrices, vectors = width[lowered.weight_dtype], width[lowered.vector_dtype]
    state = [t for name, t in program.methods[task].state_dict.items() if name in names]
    floats = [t for t in state if t.is_floating_point()]
    count = sum(t.numel() * (matrices if t.dim() > 1 else vectors) for t in floats)
    return count + sum(t.numel() for t in state if t.dtype == torch.int8)
