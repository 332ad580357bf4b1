"""What `inspect`, `list` and `doctor` show: data first, then tables of it."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mtu_export import bundle, checkpoint, models, targets
from mtu_export.bundle import Bundle, Manifest
from mtu_export.checkpoint.presets import TASKS
from mtu_export.cli.console import plain, table, verdict_cells
from mtu_export.models import analysis
from mtu_export.spec import FloatWeights, Task
from mtu_export.spec.catalog import SCHEMES

_PACKAGE = "mtu-export"
_MOST_SHOWN = 8
"""Experts whose weights are printed one by one."""
_MOST_ROWS = 20
"""Layers that a table of deviations shows."""


def of_checkpoint(
    folder: Path, height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """Tasks, parameters, FLOPs and expert weights of a checkpoint; ``height, width`` in pixels.

    Reads JSON, headers and routers alone.
    """
    source = analysis.read(folder)
    config = source.config
    rows = checkpoint.tasks(config)
    size, latent, reason = analysis.image_size(source, height, width)
    weights = analysis.expert_weights(source)
    kinds = analysis.parameters(source)
    costs = analysis.costs(source, latent) if size else {}
    keys = ("num_experts", "task_embedding_dim", "router_hidden_dim", "task_norm")
    return {
        "checkpoint": str(folder),
        "family": checkpoint.family(config),
        "config": {key: config.get(key, "replace" if key == "task_norm" else None) for key in keys},
        "dtypes": sorted({header.dtype for header in source.found.values()}),
        "parameters": {**kinds, "total": sum(kinds.values())},
        "parts": sorted(p.name for p in folder.iterdir() if p.is_dir()),
        "tasks": [_task(task, config["in_channels"]) for task in rows],
        "image": f"{size[0]} x {size[1]}" if size else None,
        "FLOPs": [{"task": name, **asdict(cost)} for name, cost in costs.items()],
        "not counted": reason or None,
        "expert weights": [
            {"layer": layer, "tasks": {task.name: row[task.index] for task in rows}}
            for layer, row in weights.items()
        ],
    }


def _task(task: Task, latent: int) -> dict[str, Any]:
    conditioning = " + ".join(f"{c.kind} ({c.channels})" for c in task.conditioning)
    scales = {"text": task.guidance.text, "image": task.guidance.image}
    guidance = ", ".join(f"{key} {value:g}" for key, value in scales.items() if value is not None)
    return {
        "task": task.name,
        "channels": latent + task.channels,
        "conditioning": conditioning or "none",
        "guidance": guidance or "none",
        "passes a step": task.guidance.passes,
        "steps": task.steps,
        "prompt": "the user's" if task.prompt is None else repr(task.prompt),
    }


def of_deviation(folder: Path, against: Path) -> dict[str, Any]:
    """How far a model is from another by layer and kind, and what was not compared."""
    found = analysis.deviation(*(analysis.read(path, dense=True) for path in (folder, against)))
    return {
        "checkpoint": str(folder),
        "against": str(against),
        "layers": [{"layer": row.layer, **_measured(row)} for row in found.rows],
        "kinds": [_measured(row) for row in found.kinds],
        "not compared": [{"tensor": name, "reason": reason} for name, reason in found.left_out],
    }


def _measured(row: analysis.Row) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "deviation": row.deviation,
        "relative": row.deviation / row.reference if row.reference else None,
        "parameters": row.parameters,
    }


def of_bundle(found: Bundle) -> dict[str, Any]:
    """What a bundle holds, its proof and its cost, from the manifest."""
    manifest = found.manifest
    shared = bundle.sharing(manifest)
    return {
        "bundle": str(found.folder),
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
        "proof": [
            dict(
                zip(
                    ("part", "task", "rung", "PSNR", "floor", "verdict", "runner"),
                    verdict_cells(row),
                    strict=True,
                )
            )
            for row in found.proof
        ],
    }


def _weights_by_task(manifest: Manifest) -> list[dict[str, Any]]:
    """Bytes of weights of each task alone, and of all, in the parts that tasks share."""
    return [
        {
            "part": part.component,
            "task": task,
            "own bytes": own,
            "shared bytes": part.cost.shared_weight_bytes,
        }
        for part in manifest.parts
        for task, own in part.cost.task_weight_bytes.items()
    ]


def names() -> dict[str, Any]:
    """Every name that a command takes, and what it stands for."""
    schemes = []
    for scheme in SCHEMES.values():
        weights = scheme.weights
        stored = weights.dtype if isinstance(weights, FloatWeights) else f"{weights.bits}-bit codes"
        schemes.append({"scheme": scheme.name, "weights": stored, "floor dB": scheme.floor_db})
    presets = [
        {
            "preset (upcycle)": name,
            "conditioning": " + ".join(c.kind for c in rows["sd"].conditioning) or "none",
            "passes a step": rows["sd"].guidance.passes,
        }
        for name, rows in TASKS.items()
    ]
    return {
        "targets": [
            {"target": name, "default scheme": targets.load(name).info.default_scheme}
            for name in targets.names()
        ],
        "schemes": schemes,
        "families": list(models.names()),
        "presets": presets,
    }


def packages() -> dict[str, Any]:
    """Versions found against the ranges that the project declares, and the runtimes here."""
    extras: dict[str, list[str]] = {}
    needs: dict[str, Requirement] = {}
    for text in importlib.metadata.requires(_PACKAGE) or ():
        need = Requirement(text)
        extra = str(need.marker).partition("extra == ")[2].strip("\"'") if need.marker else ""
        if extra not in ("all", "dev") and need.name != _PACKAGE:
            needs.setdefault(need.name, need)
            extras.setdefault(need.name, []).extend([extra] if extra else [])
    rows = []
    for name, need in needs.items():
        try:
            version = importlib.metadata.version(name)
            state = "ok" if version in need.specifier else "not tried"
        except importlib.metadata.PackageNotFoundError:
            hint = f"[{_smallest(extras[name])}]" if extras[name] else ""
            version, state = None, f"missing: pip install '{_PACKAGE}{hint}'"
        rows.append(
            {
                "package": name,
                "found": version,
                "tried": str(need.specifier),
                "state": state,
                "extra": ", ".join(extras[name]),
            }
        )
    runners = []
    for name in targets.names():
        runner, reason = targets.runtime(targets.load(name)).runner()
        runners.append({"target": name, "runner": runner, "reason": reason})
    return {"packages": rows, "runners": runners}


def _smallest(extras: Sequence[str]) -> str:
    return next((extra for extra in ("onnx", "export") if extra in extras), extras[0])


def show(found: Mapping[str, Any]) -> None:
    """Print scalars as lines and lists of rows as tables."""
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            head = list(value[0])
            table(head, [[f"{row[name]}" for name in head] for row in value])
        elif isinstance(value, dict):
            print(plain(f"{key}: " + ", ".join(f"{k} {_number(v)}" for k, v in value.items())))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(plain(f"{key}: {text}"))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_checkpoint(found: Mapping[str, Any]) -> None:
    """Print what ``of_checkpoint`` found."""
    apart = ("parameters", "image", "FLOPs", "not counted", "expert weights")
    show({key: value for key, value in found.items() if key not in apart})
    rows = [[kind, _millions(count), f"{count:,}"] for kind, count in found["parameters"].items()]
    table(["parameters", "", "exact"], rows)
    if found["not counted"]:
        print(plain(f"FLOPs not counted: {found['not counted']}"))
    else:
        counted = [
            [
                row["task"],
                _flops(row["flops_conv_linear"]),
                _flops(row["flops_total"]),
                _millions(row["parameters"]),
            ]
            for row in found["FLOPs"]
        ]
        head = ["folded UNet of task", "conv + linear", "with attention", "parameters"]
        table(head, counted, f"FLOPs of one pass at {found['image']}")
    _show_weights(found["expert weights"])


def _show_weights(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a layer; where the tasks are too many for one line, one table for some of them."""
    if not rows:
        return
    names = list(rows[0]["tasks"])
    cells = [[_weights(row["tasks"][name]) for name in names] for row in rows]
    layers = [analysis.short(row["layer"]) for row in rows]
    widths = [max(map(len, (name, cells[0][i]))) + 3 for i, name in enumerate(names)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    room -= max(map(len, ("layer", *layers))) + 4
    title = "expert weights"
    if len(next(iter(rows[0]["tasks"].values()))) > _MOST_SHOWN:
        title += ": least to greatest, and how many experts share the work (e to the entropy)"
    while names:
        taken = max(1, sum(sum(widths[: i + 1]) <= room for i in range(len(names))))
        body = [[layer, *row[:taken]] for layer, row in zip(layers, cells, strict=True)]
        table(["layer", *names[:taken]], body, title)
        names, widths = names[taken:], widths[taken:]
        cells = [row[taken:] for row in cells]


def _weights(row: Sequence[float]) -> str:
    """Weights of one layer and task: all of them, or their span where they are many."""
    if len(row) <= _MOST_SHOWN:
        return " ".join(f"{value:.2f}" for value in row)
    entropy = -sum(value * math.log(value) for value in row if value > 0)
    return f"{min(row):.2f} to {max(row):.2f}, {math.exp(entropy):4.1f}"


def show_deviation(found: Mapping[str, Any]) -> None:
    """Print what ``of_deviation`` found: kinds, the first layers, and what was left out."""
    show({key: found[key] for key in ("checkpoint", "against")})
    head = ["kind", "‖θ_f − θ_p‖", "relative", "parameters"]
    table(head, [_measures(row) for row in found["kinds"]], "deviation by kind")
    layers = found["layers"]
    rows = [[row["layer"], *_measures(row)] for row in layers[:_MOST_ROWS]]
    table(["layer", *head], rows, "deviation by layer")
    if len(layers) > _MOST_ROWS:
        print(f"and {len(layers) - _MOST_ROWS} more (--json has all)")
    reasons: dict[str, list[str]] = {}
    for row in found["not compared"]:
        reasons.setdefault(row["reason"].partition(":")[0], []).append(row["tensor"])
    for reason, names in reasons.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        print(plain(f"not compared, {reason}: {', '.join(names[:2])}{more}"))


def _measures(row: Mapping[str, Any]) -> list[str]:
    relative = "" if row["relative"] is None else f"{row['relative']:.2%}"
    return [row["kind"], f"{row['deviation']:.4g}", relative, f"{row['parameters']:,}"]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _flops(count: int) -> str:
    """FLOPs with three significant digits."""
    unit, name = (1e12, "TFLOPs") if count >= 1e11 else (1e9, "GFLOPs")
    return f"{count / unit:#.3g}".rstrip(".") + f" {name}"
