"""What a checkpoint or a bundle holds, as data: for ``mtu-export inspect`` and for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtu_export import bundle, checkpoint, models
from mtu_export.bundle import Bundle, Manifest
from mtu_export.checkpoint import Folder
from mtu_export.models import sources
from mtu_export.spec import PlanError
from mtu_export.spec.model import LayerDeviation


def inspect(
    path: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    against: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint or a bundle; None is the embedded checkpoint.

    - A bundle: parts, sizes and proof.
    - A checkpoint: tasks, parameters, FLOPs of a pass at ``height`` x ``width`` pixels, and expert
      weights; with ``against``, another checkpoint or a dense UNet, the deviation of each layer.
      ``revision`` is that of one on the hub, whose commit is part of the result; ``variant`` is
      that of the weights.

    Raises ``CheckpointError``, ``BundleError`` and ``PlanError``.
    """
    folder = sources.open(path, revision, variant=variant)
    options = {"against": against, "height": height, "width": width}
    if is_bundle(folder):
        for name, value in options.items():
            if value is not None:
                raise PlanError(f"--{name} is for a checkpoint; {str(path)!r} is a bundle")
        return of_bundle(bundle.read(checkpoint.on_disk(folder)))
    if against is None:
        _, commit = checkpoint.source_of(path, folder)
        on_hub = {} if commit is None else {"revision": commit}
        return {**of_checkpoint(folder, height, width), **on_hub}
    if height is not None or width is not None:
        raise PlanError("--against compares weights; leave --height and --width out")
    other = sources.open(against)
    if is_bundle(other):
        raise PlanError(f"--against takes a checkpoint; {str(against)!r} is a bundle")
    return of_deviation(folder, other)


def is_bundle(folder: Folder) -> bool:
    """Whether a folder is a bundle, rather than a checkpoint."""
    return (folder / bundle.MANIFEST).is_file()


def of_checkpoint(
    folder: Folder, height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """What a family says of a checkpoint; ``height, width`` in pixels."""
    return models.open(folder).describe(height, width)


def of_deviation(folder: Folder, against: Folder) -> dict[str, Any]:
    """How much two models deviate by layer and kind, and what was not compared."""
    measured = models.open(folder).deviation(models.open(against))
    return {
        "checkpoint": str(folder),
        "against": str(against),
        "layers": [{"layer": entry.layer, **_measures(entry)} for entry in measured.layers],
        "kinds": [_measures(entry) for entry in measured.kinds],
        "not compared": [{"tensor": name, "reason": reason} for name, reason in measured.left_out],
    }


def _measures(entry: LayerDeviation) -> dict[str, Any]:
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
                "part": part.name,
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
        "proof": [verdict.cells for verdict in source.proof],
    }


def _weights_by_task(manifest: Manifest) -> list[dict[str, Any]]:
    """Bytes of each task's weights and of the shared ones, for parts that tasks share."""
    return [
        {
            "part": part.name,
            "task": task,
            "own bytes": count,
            "shared bytes": part.cost.shared_weight_bytes,
        }
        for part in manifest.parts
        for task, count in part.cost.task_weight_bytes.items()
    ]
