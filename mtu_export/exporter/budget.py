"""Whether memory and disk hold an export, estimated before any work.

A target says what it needs for each scheme in multiples of the float32 weights; the figures are
those of ``benchmarks/results/sizes.json`` (anonymous memory: the mapped checkpoint can be dropped
by the kernel and does not count).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export import checkpoint, targets
from mtu_export.checkpoint.layout import source_folder
from mtu_export.spec import IntWeights, Plan, ResourceError, Scheme
from mtu_export.spec.catalog import SCHEMES
from mtu_export.storage import draft

_START = 0.4e9
"""Bytes of PyTorch and a toolchain before any weight is read."""
_COPIES = 3
"""Copies of the largest attention scores that are alive at a time."""
_HALVES: Mapping[str, str | tuple[str, ...]] = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
}
"""Beginnings of the names of a VAE's tensors."""
_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def check(plan: Plan) -> None:
    """Refuse an export that memory or disk will not hold; raises ``ResourceError`` with figures.

    Parts are made one after the other: memory is that of the largest, disk that of all.
    """
    parts = {name: _headers(plan, name) for name in plan.components}
    sizes = {name: sum(4 * math.prod(row.shape) for row in rows) for name, rows in parts.items()}
    main = max(sizes, key=sizes.__getitem__)
    weights = sizes[main]
    wide = sum(4 * math.prod(row.shape) for row in parts[main] if row.dtype != "F32")
    fixed = _START + wide + (_COPIES * _scores(plan) if main == "unet" else 0)

    def needed(target: str, scheme: str) -> float:
        support = targets.load(target).info.supports.get(scheme)
        return math.inf if support is None else fixed + support.memory * weights

    have = available() if plan.memory is None else plan.memory
    need = needed(plan.target, plan.scheme.name)
    if need > have:
        fits = [
            f"{target} {scheme} (about {_size(needed(target, scheme))})"
            for target in (plan.target, *(n for n in targets.names() if n != plan.target))
            for scheme in SCHEMES
            if needed(target, scheme) <= have
        ]
        raise ResourceError(
            f"{plan.target} {plan.scheme.name} of {_size(weights)} of float32 weights at "
            f"{plan.height} x {plan.width} needs about {_size(need)} of memory, "
            f"{_size(have)} are available; "
            + (f"what fits: {', '.join(fits)}" if fits else "no scheme of any target fits")
            + "; --memory GB overrides what is available"
        )
    rows = {name: _stored(plan, name, parts[name]) for name in parts}
    staged = targets.load(plan.target).info.temporary_copies if len(plan.tasks) > 1 else 0
    size, free = 1.05 * (sum(rows.values()) + staged * rows.get("unet", 0)), _free(plan.out)
    if size > free:
        raise ResourceError(f"{plan.out} needs about {_size(size)} of disk, {_size(free)} are free")


def _headers(plan: Plan, component: str) -> list[checkpoint.Header]:
    home = plan.checkpoint / source_folder(component)
    if component.startswith("text_encoder"):
        rows = checkpoint.headers(home, checkpoint.TEXT_WEIGHTS, checkpoint.POSITION_IDS)
        return list(rows.values())
    half = _HALVES.get(component, "")
    return [row for name, row in checkpoint.headers(home).items() if name.startswith(half)]


def _stored(plan: Plan, component: str, rows: Sequence[checkpoint.Header]) -> float:
    """Bytes of a part's artefact; float32 where more may stay in float than is known here."""
    scheme = plan.schemes[component]
    kept = any(row.required for row in scheme.overrides)
    whole = sum(4 * math.prod(row.shape) for row in rows)
    return whole if kept else _share(scheme) * whole


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _share(scheme: Scheme) -> float:
    """Bytes of an artefact over those of float32 weights."""
    weights = scheme.weights
    bits = weights.bits if isinstance(weights, IntWeights) else int(weights.dtype[-2:])
    return bits / 32


def _scores(plan: Plan) -> float:
    """Bytes of the largest attention scores, batch x heads x tokens² in float32."""
    config, (height, width) = plan.config, plan.latent_size
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    most = 0.0
    for level, kind in enumerate(config.get("down_block_types", ("CrossAttnDownBlock2D",))):
        if "CrossAttn" in str(kind):
            tokens = height * width / 4**level
            most = max(most, plan.batch * _at(heads, level) * tokens**2 * 4)
    return most


def _at(heads: Any, level: int) -> float:
    """Heads of one level; diffusers' ``attention_head_dim`` is their number."""
    row = heads[min(level, len(heads) - 1)] if isinstance(heads, (list, tuple)) and heads else heads
    return row if isinstance(row, int) and row > 0 else 1


def available() -> float:
    """Bytes of memory that a process may still take: the system's, or its control group's."""
    import psutil

    return min(float(psutil.virtual_memory().available), _group_limit())


def _group_limit() -> float:
    """What the control groups (version 1 or 2) of this process leave; infinite where none limit."""
    try:
        rows = [line.split(":", 2) for line in (_PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return math.inf
    least = math.inf
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if controllers == "memory":
            home, names = _CGROUP / "memory", ("limit_in_bytes", "usage_in_bytes")
        elif not controllers:
            home, names = _CGROUP, ("max", "current")
        else:
            continue
        place = home / path.lstrip("/")
        for group in (place, *place.parents):  # a container may show its own group at the root
            if group == home.parent:
                break
            try:
                limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
                lines = (group / "memory.stat").read_text().splitlines()
                kept = dict(line.split() for line in lines)
                droppable = kept.get("total_inactive_file", kept.get("inactive_file", 0))
                if limit.isdecimal():
                    least = min(least, int(limit) - int(used) + int(droppable))
            except (OSError, ValueError):
                continue
    return least


def _free(out: Path) -> float:
    """Free bytes where ``out`` will be, with those that an export before has left there."""
    home = next(parent for parent in out.absolute().parents if parent.exists())
    return float(shutil.disk_usage(home).free + draft.leftover_bytes(out))
