"""What `inspect`, `list` and `doctor` print."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import Requirement

from mtu_export import models, targets
from mtu_export.cli.console import plain, table
from mtu_export.models.mtu.presets import TASKS
from mtu_export.models.pipeline import anatomy
from mtu_export.spec import FloatWeights
from mtu_export.spec.catalog import SCHEMES

_PACKAGE = "mtu-export"
_MOST_SHOWN = 8
"""Experts whose weights are printed one by one."""
_MOST_LAYERS = 20
"""Layers that a table of deviations shows."""
_TITLES = {"passes a step": "passes per step"}
"""Titles of columns whose keys in JSON read otherwise."""


_FLAGS = {"unfolded": "--no-fold", "plain": "--plain"}
"""The flags of the baselines that a target exports."""


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
            "conditioning": " + ".join(c.kind for c in variants["sd"].conditioning) or "none",
            "passes a step": variants["sd"].guidance.passes,
        }
        for name, variants in TASKS.items()
    ]
    return {
        "targets": [
            {
                "target": name,
                "default scheme": targets.load(name).info.default_scheme,
                "baselines": ", ".join(_FLAGS[kind] for kind in targets.load(name).info.baselines),
            }
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
    installed = []
    for name, need in needs.items():
        try:
            version = importlib.metadata.version(name)
            state = "ok" if version in need.specifier else "not tried"
        except importlib.metadata.PackageNotFoundError:
            hint = f"[{_smallest(extras[name])}]" if extras[name] else ""
            version, state = None, f"missing: pip install '{_PACKAGE}{hint}'"
        installed.append(
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
    return {"packages": installed, "runners": runners}


def _smallest(extras: Sequence[str]) -> str:
    return next((extra for extra in ("onnx", "export") if extra in extras), extras[0])


def show(result: Mapping[str, Any]) -> None:
    """Print a result of ``inspect`` or ``list``."""
    if "FLOPs" in result:
        _show_checkpoint(result)
    elif "not compared" in result:
        _show_deviation(result)
    else:
        _show_plain(result)


def _show_plain(result: Mapping[str, Any]) -> None:
    """Print scalars as lines and lists of objects as tables."""
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            head: list[str] = list(value[0])
            titles = [_TITLES.get(name, name) for name in head]
            table(titles, [[f"{entry[name]}" for name in head] for entry in value])
        elif isinstance(value, dict):
            print(plain(f"{key}: " + ", ".join(f"{k} {_number(v)}" for k, v in value.items())))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(plain(f"{key}: {text}"))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _show_checkpoint(result: Mapping[str, Any]) -> None:
    """Print what a checkpoint holds: tasks, parameters, FLOPs, the expert weights of MTU."""
    tables = ("parameters", "image", "FLOPs", "not counted", "expert weights")
    _show_plain({key: value for key, value in result.items() if key not in tables})
    counts = [[kind, _millions(n), f"{n:,}"] for kind, n in result["parameters"].items()]
    table(["parameters", "", "exact"], counts)
    if result["not counted"]:
        print(plain(f"FLOPs not counted: {result['not counted']}"))
    else:
        costs = [
            [
                cost["task"],
                _flops(cost["flops_conv_linear"]),
                _flops(cost["flops_total"]),
                _millions(cost["parameters"]),
            ]
            for cost in result["FLOPs"]
        ]
        folded = "folded UNet" if "expert weights" in result else "UNet"
        head = [f"{folded} of task", "conv + linear", "with attention", "parameters"]
        table(head, costs, f"FLOPs of one pass at {result['image']}")
    _show_weights(result.get("expert weights", ()))


def _show_weights(layers: Sequence[Mapping[str, Any]]) -> None:
    """One line per layer; tasks that do not fit on a line get a table of their own."""
    if not layers:
        return
    tasks = list(layers[0]["tasks"])
    cells = [[_weights(layer["tasks"][task]) for task in tasks] for layer in layers]
    names = [anatomy.short(layer["layer"]) for layer in layers]
    widths = [max(map(len, (task, cells[0][i]))) + 3 for i, task in enumerate(tasks)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    room -= max(map(len, ("layer", *names))) + 4
    title = "expert weights"
    if len(next(iter(layers[0]["tasks"].values()))) > _MOST_SHOWN:
        title += ": smallest to largest, and the effective number of experts (e to the entropy)"
    while tasks:
        taken = max(1, sum(sum(widths[: i + 1]) <= room for i in range(len(tasks))))
        body = [[name, *line[:taken]] for name, line in zip(names, cells, strict=True)]
        table(["layer", *tasks[:taken]], body, title)
        tasks, widths = tasks[taken:], widths[taken:]
        cells = [line[taken:] for line in cells]


def _weights(weights: Sequence[float]) -> str:
    """Weights of one layer and task: all of them, or their span where they are many."""
    if len(weights) <= _MOST_SHOWN:
        return " ".join(f"{value:.2f}" for value in weights)
    entropy = -sum(value * math.log(value) for value in weights if value > 0)
    return f"{min(weights):.2f} to {max(weights):.2f}, {math.exp(entropy):4.1f}"


def _show_deviation(result: Mapping[str, Any]) -> None:
    """Print the deviation by kind, that of the first layers, and what was not compared."""
    _show_plain({key: result[key] for key in ("checkpoint", "against")})
    head = ["kind", "‖θ_f − θ_p‖", "relative", "parameters"]
    table(head, [_measures(kind) for kind in result["kinds"]], "deviation by kind")
    layers = result["layers"]
    lines = [[layer["layer"], *_measures(layer)] for layer in layers[:_MOST_LAYERS]]
    table(["layer", *head], lines, "deviation by layer")
    if len(layers) > _MOST_LAYERS:
        print(f"and {len(layers) - _MOST_LAYERS} more (--json has all)")
    reasons: dict[str, list[str]] = {}
    for entry in result["not compared"]:
        reasons.setdefault(entry["reason"].partition(":")[0], []).append(entry["tensor"])
    for reason, tensors in reasons.items():
        more = f" and {len(tensors) - 2} more" if len(tensors) > 2 else ""
        print(plain(f"not compared, {reason}: {', '.join(tensors[:2])}{more}"))


def _measures(entry: Mapping[str, Any]) -> list[str]:
    relative = "" if entry["relative"] is None else f"{entry['relative']:.2%}"
    return [entry["kind"], f"{entry['deviation']:.4g}", relative, f"{entry['parameters']:,}"]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _flops(count: int) -> str:
    """FLOPs with three significant digits."""
    unit, name = (1e12, "TFLOPs") if count >= 1e11 else (1e9, "GFLOPs")
    return f"{count / unit:#.3g}".rstrip(".") + f" {name}"
