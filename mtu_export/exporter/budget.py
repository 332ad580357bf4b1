"""Memory and disk that an export needs, estimated before any work.

A target says what it needs for each scheme in multiples of the float32 weights; the figures are
those of ``benchmarks/results/sizes.json`` (anonymous memory: the mapped checkpoint can be dropped
by the kernel and does not count).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtu_export import checkpoint, targets
from mtu_export.spec import IntWeights, Plan, ResourceError, Scheme, Unsupported
from mtu_export.spec.catalog import SCHEMES
from mtu_export.storage import draft

_BASE_BYTES = 0.4e9
"""Memory of PyTorch and a toolchain before any weight is read."""
_DISK_MARGIN = 1.05
_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def require_resources(plan: Plan) -> None:
    """Refuse an export that exceeds memory or disk, with figures.

    Parts are exported one at a time: the largest counts for memory, all for disk.
    Raises ``ResourceError``, and ``Unsupported`` for a scheme that the target has no figure for.
    """
    headers = {name: _headers(plan, name) for name in plan.parts}
    _require_memory(plan, headers)
    disk = {name: _artefact_bytes(plan, name, headers[name]) for name in headers}
    copies = targets.load(plan.target).info.temporary_copies if len(plan.tasks) > 1 else 0
    shared = sum(size for name, size in disk.items() if plan.spec(name).by_task)
    needed = _DISK_MARGIN * (sum(disk.values()) + copies * shared)
    free = _free_disk(plan.out)
    if needed > free:
        raise ResourceError(
            f"{plan.out} needs about {_size(needed)} of disk, {_size(free)} are free"
        )


def _require_memory(plan: Plan, headers: Mapping[str, Sequence[checkpoint.Header]]) -> None:
    """Refuse an export that exceeds memory, naming schemes and targets that would fit."""
    sizes = {name: _float32_bytes(tensors) for name, tensors in headers.items()}
    largest = max(sizes, key=sizes.__getitem__)
    converted = [tensor for tensor in headers[largest] if tensor.dtype != "F32"]
    working = plan.model.working_bytes(largest, plan.size, plan.batch)
    fixed = _BASE_BYTES + _float32_bytes(converted) + working

    def needed(target: str, scheme: str) -> float | None:
        """Bytes of an export; None where the target does not support the scheme."""
        support = targets.load(target).info.supports.get(scheme)
        if support is None:
            return None
        copies = support.plain if plan.is_plain else support.memory
        return fixed + (copies + (plan.baseline == "dense")) * sizes[largest]  # not mapped

    need = needed(plan.target, plan.scheme.name)
    if need is None:
        raise Unsupported(f"{plan.target} does not support scheme {plan.scheme.name!r}")
    available = available_memory() if plan.memory is None else plan.memory
    if need <= available:
        return
    fits = [
        f"{target} {scheme} (about {_size(other)})"
        for target in (plan.target, *(name for name in targets.names() if name != plan.target))
        for scheme in SCHEMES
        if (other := needed(target, scheme)) is not None and other <= available
    ]
    raise ResourceError(
        f"{plan.target} {plan.scheme.name} of {_size(sizes[largest])} of float32 weights at "
        f"{plan.height} x {plan.width} needs about {_size(need)} of memory, "
        f"{_size(available)} are available; "
        + (f"what fits: {', '.join(fits)}" if fits else "no scheme of any target fits")
        + "; --memory GB overrides what is available"
    )


def _headers(plan: Plan, name: str) -> list[checkpoint.Header]:
    """Headers of the tensors that belong to a part."""
    part = plan.spec(name)
    tensors = checkpoint.headers(plan.checkpoint / part.folder, part.stem, part.optional)
    prefixes = part.prefixes or ("",)
    return [header for tensor, header in tensors.items() if tensor.startswith(prefixes)]


def _float32_bytes(tensors: Sequence[checkpoint.Header]) -> int:
    return sum(4 * math.prod(tensor.shape) for tensor in tensors)


def _artefact_bytes(plan: Plan, name: str, tensors: Sequence[checkpoint.Header]) -> float:
    """Bytes of a part's artefact; those of float32 where any layer may stay float."""
    scheme = plan.schemes[name]
    keeps_more = plan.is_plain or any(override.required for override in scheme.overrides)
    return (1 if keeps_more else _bits(scheme) / 32) * _float32_bytes(tensors)


def _bits(scheme: Scheme) -> int:
    """Bits of a weight."""
    weights = scheme.weights
    return weights.bits if isinstance(weights, IntWeights) else int(weights.dtype[-2:])


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def available_memory() -> float:
    """Bytes of memory that a process may still take: the system's, or its control group's."""
    import psutil

    return min(float(psutil.virtual_memory().available), _group_limit())


def _group_limit() -> float:
    """Bytes that the control groups of this process leave; infinite where none sets a limit."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "memory":  # version 1
            root, names = _CGROUP / "memory", ("limit_in_bytes", "usage_in_bytes")
        elif not controllers and path:  # version 2
            root, names = _CGROUP, ("max", "current")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # a container may show its own group at the root
            if folder == root.parent:
                break
            least = min(least, _left_in(folder, names))
    return least


def _left_in(group: Path, names: tuple[str, str]) -> float:
    """Limit less use of one control group, where what the kernel can drop is not in use."""
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
        lines = (group / "memory.stat").read_text().splitlines()
        statistics = dict(line.split() for line in lines)
        cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
        return int(limit) - int(used) + int(cached) if limit.isdecimal() else math.inf
    except (OSError, ValueError):
        return math.inf


def _free_disk(out: Path) -> float:
    """Free bytes where ``out`` will be, with those that an earlier export left there."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    return float(shutil.disk_usage(folder).free + draft.leftover_bytes(out))
