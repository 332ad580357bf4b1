"""What a checkpoint or a bundle holds, as data: for ``mtu-export inspect`` and for notebooks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtu_export import bundle, checkpoint
from mtu_export.bundle import Bundle, Manifest
from mtu_export.models import analysis, deviation
from mtu_export.spec import PlanError, Task, Verdict


def inspect(
    path: str | Path | None = None,
    *,
    revision: str | None = None,
    against: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint or a bundle; None is the embedded checkpoint.

    - A bundle: parts, sizes and proof.
    - A checkpoint: tasks, parameters, FLOPs of a pass at ``height`` x ``width`` pixels, and expert
      weights; with ``against``, another checkpoint or a dense UNet, the deviation of each layer.
      ``revision`` is that of one on the hub, whose commit is part of the result.

    Raises ``CheckpointError``, ``BundleError`` and ``PlanError``.
    """
    folder = checkpoint.locate(path, revision)
    options = {"against": against, "height": height, "width": width}
    if is_bundle(folder):
        for name, value in options.items():
            if value is not None:
                raise PlanError(f"--{name} is for a checkpoint; {str(path)!r} is a bundle")
        return of_bundle(bundle.read(folder))
    if against is None:
        _, commit = checkpoint.source_of(path, folder)
        on_hub = {} if commit is None else {"revision": commit}
        return {**of_checkpoint(folder, height, width), **on_hub}
    if height is not None or width is not None:
        raise PlanError("--against compares weights; leave --height and --width out")
    other = checkpoint.locate(against)
    if is_bundle(other):
        raise PlanError(f"--against takes a checkpoint; {str(against)!r} is a bundle")
    return of_deviation(folder, other)


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, rather than a checkpoint."""
    return (folder / bundle.MANIFEST).is_file()


def of_checkpoint(
    folder: Path, height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """Tasks, parameters, FLOPs and expert weights of a checkpoint; ``height, width`` in pixels.

    Reads only JSON, tensor headers and the routers.
    """
    source = analysis.read(folder)
    tasks = checkpoint.tasks(source.config)
    size, latent, reason = analysis.image_size(source, height, width)
    weights = analysis.expert_weights(source)
    parameters = analysis.parameters(source)
    costs = analysis.costs(source, latent) if size else {}
    return {
        "checkpoint": str(folder),
        "family": checkpoint.family(source.config),
        "config": analysis.family_config(source),
        "dtypes": sorted({header.dtype for header in source.headers.values()}),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "parts": sorted(path.name for path in folder.iterdir() if path.is_dir()),
        "tasks": [_task(task, source.config["in_channels"]) for task in tasks],
        "image": f"{size[0]} x {size[1]}" if size else None,
        "FLOPs": [{"task": name, **asdict(cost)} for name, cost in costs.items()],
        "not counted": reason or None,
        "expert weights": [
            {"layer": layer, "tasks": {task.name: by_task[task.index] for task in tasks}}
            for layer, by_task in weights.items()
        ],
    }


def _task(task: Task, latent_channels: int) -> dict[str, Any]:
    conditioning = " + ".join(f"{c.kind} ({c.channels})" for c in task.conditioning)
    scales = {"text": task.guidance.text, "image": task.guidance.image}
    guidance = ", ".join(f"{key} {value:g}" for key, value in scales.items() if value is not None)
    return {
        "task": task.name,
        "channels": latent_channels + task.channels,
        "conditioning": conditioning or "none",
        "guidance": guidance or "none",
        "passes a step": task.guidance.passes,
        "steps": task.steps,
        "prompt": "the user's" if task.prompt is None else repr(task.prompt),
    }


def of_deviation(folder: Path, against: Path) -> dict[str, Any]:
    """How much two models deviate by layer and kind, and what was not compared."""
    measured = deviation.deviation(*(analysis.read(path, dense=True) for path in (folder, against)))
    return {
        "checkpoint": str(folder),
        "against": str(against),
        "layers": [{"layer": entry.layer, **_measures(entry)} for entry in measured.layers],
        "kinds": [_measures(entry) for entry in measured.kinds],
        "not compared": [{"tensor": name, "reason": reason} for name, reason in measured.left_out],
    }


def _measures(entry: deviation.LayerDeviation) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "deviation": entry.deviation,
        "relative": entry.deviation / entry.reference if entry.reference else None,
        "parameters": entry.parameters,
    }


def of_bundle(source: Bundle) -> dict[str, Any]:
    """What a bundle holds, its proof and its cost, from the manifest."""
    manifest = source.manifest
    shared = bundle.sharing(manifest)
    return {
        "bundle": str(source.folder),
        "source": f"{manifest.source.name} ({manifest.source.family})",
        "target": manifest.target,
        "scheme": manifest.scheme.name,
        "activations": manifest.scheme.activations,
        "image": f"{manifest.image.height} x {manifest.image.width}",
        "options": manifest.options,
        "parts": [
            {
                "part": part.component,
                "path": part.path,
                "MB": round(part.bytes / 1e6, 2),
                "parameters": part.cost.parameters,
                "GFLOPs conv + linear": round(part.cost.flops_conv_linear / 1e9, 3),
                "GFLOPs": round(part.cost.flops_total / 1e9, 3),
                "entries": ", ".join(part.entries),
            }
            for part in manifest.parts
        ],
        **({"weights": shared, "weights by task": _weights_by_task(manifest)} if shared else {}),
        "proof": [_verdict(verdict) for verdict in source.proof],
    }


def _verdict(verdict: Verdict) -> dict[str, str]:
    """A verdict as tables show it; the key of its stage is ``rung``, as in the manifest."""
    return {"rung" if name == "stage" else name: text for name, text in verdict.cells.items()}


def _weights_by_task(manifest: Manifest) -> list[dict[str, Any]]:
    """Bytes of each task's weights and of the shared ones, for parts that tasks share."""
    return [
        {
            "part": part.component,
            "task": task,
            "own bytes": count,
            "shared bytes": part.cost.shared_weight_bytes,
        }
        for part in manifest.parts
        for task, count in part.cost.task_weight_bytes.items()
    ]
