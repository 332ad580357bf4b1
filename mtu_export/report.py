"""What `inspect`, `list` and `doctor` show: data first, then tables of it."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mtu_export import checkpoint, models, targets
from mtu_export.bundle import Bundle
from mtu_export.catalog import SCHEMES, TASKS
from mtu_export.console import table, verdict_cells
from mtu_export.spec import FloatWeights, Task

_PACKAGE = "mtu-export"


def _kind(name: str) -> str:
    """Which part of the method a tensor of format 1 belongs to."""
    if ".ff.experts." in name:
        return "experts"
    if ".ff.router." in name:
        return "routers"
    task_tensor = name.startswith(("task_embedding.", "conv_in.")) or ".norm3." in name
    return "task tensors" if task_tensor else "backbone"


def of_checkpoint(folder: Path) -> dict[str, Any]:
    """Tasks, sizes and parameters by kind of a checkpoint, from its JSON and headers alone."""
    config = checkpoint.read_config(folder)
    rows = checkpoint.tasks(config)
    found = checkpoint.headers(folder / "unet")
    kinds: dict[str, int] = dict.fromkeys(("backbone", "experts", "routers", "task tensors"), 0)
    for name, header in found.items():
        kinds[_kind(name)] += math.prod(header.shape)
    keys = ("num_experts", "task_embedding_dim", "router_hidden_dim", "task_norm")
    return {
        "checkpoint": str(folder),
        "family": checkpoint.family(config),
        "config": {key: config.get(key, "replace" if key == "task_norm" else None) for key in keys},
        "dtypes": sorted({header.dtype for header in found.values()}),
        "parameters": {**kinds, "total": sum(kinds.values())},
        "parts": sorted(p.name for p in folder.iterdir() if p.is_dir()),
        "tasks": [_task(task, config["in_channels"]) for task in rows],
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


def of_bundle(found: Bundle) -> dict[str, Any]:
    """What a bundle holds, its proof and its cost, from the manifest."""
    manifest = found.manifest
    return {
        "bundle": str(found.folder),
        "source": f"{manifest['source']['name']} ({manifest['source']['family']})",
        "target": manifest["target"],
        "scheme": manifest["scheme"]["name"],
        "activations": manifest["scheme"]["activations"],
        "image": f"{manifest['image']['height']} x {manifest['image']['width']}",
        "options": manifest["options"],
        "parts": [
            {
                "part": part["component"],
                "path": part["path"],
                "MB": round(part["bytes"] / 1e6, 2),
                "parameters": part["cost"]["parameters"],
                "GFLOPs conv + linear": round(part["cost"]["flops_conv_linear"] / 1e9, 3),
                "GFLOPs": round(part["cost"]["flops_total"] / 1e9, 3),
                "entries": ", ".join(part["entries"]),
            }
            for part in manifest["parts"]
        ],
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
            {"target": name, "default scheme": targets.load(name).default_scheme}
            for name in targets.names()
        ],
        "schemes": schemes,
        "families": list(models.names()),
        "presets": presets,
    }


def packages() -> dict[str, Any]:
    """Versions found against the ranges that the project declares, and the runtimes here."""
    rows = []
    for text in importlib.metadata.requires(_PACKAGE) or ():
        need = Requirement(text)
        extra = str(need.marker).partition("extra == ")[2].strip("\"'") if need.marker else ""
        if extra in ("all", "dev"):
            continue
        try:
            version = importlib.metadata.version(need.name)
            state = "ok" if version in need.specifier else "not tried"
        except importlib.metadata.PackageNotFoundError:
            hint = f"[{extra}]" if extra else ""
            version, state = None, f"missing: pip install '{_PACKAGE}{hint}'"
        rows.append(
            {
                "package": need.name,
                "found": version,
                "tried": str(need.specifier),
                "state": state,
                "extra": extra,
            }
        )
    runners = []
    for name in targets.names():
        runner, reason = targets.load(name).runner()
        runners.append({"target": name, "runner": runner, "reason": reason})
    return {"packages": rows, "runners": runners}


def show(found: Mapping[str, Any]) -> None:
    """Print scalars as lines and lists of rows as tables."""
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            head = list(value[0])
            table(head, [[f"{row[name]}" for name in head] for row in value])
        elif isinstance(value, dict):
            print(f"{key}: " + ", ".join(f"{k} {_number(v)}" for k, v in value.items()))
        else:
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
