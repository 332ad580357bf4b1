"""What a bundle is compared with: exports of its checkpoint, made once and kept by their content.

A bundle holds no checkpoint, so the checkpoint is named, and its hash must be the bundle's source.
Each baseline is a bundle of the same target, scheme and size. They lie below
``$XDG_CACHE_HOME/mtu-export/bench/baselines``, under the fingerprint of their export: another
checkpoint, option, version or code is another folder.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtu_export import bundle
from mtu_export.bench.baseline_export import plan_of, reason_of
from mtu_export.bench.peak import cache
from mtu_export.bundle import Bundle, PartRecord, verification
from mtu_export.spec import BundleError, MtuExportError, PlanError, ResourceError, UnknownName
from mtu_export.spec.catalog import SCHEMES
from mtu_export.storage import atomic_file, locks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mtu_export.spec import Plan

Kind = Literal["dense", "unfolded", "plain", "single"]
KINDS: tuple[Kind, ...] = ("dense", "unfolded", "plain")
Progress = Callable[[str], None]
_SIGNS = (("fold", False), ("plain", True), ("dense", True))
"""Options of a manifest, and the values that say that a bundle is a baseline itself."""
_LASTING = (1, 2, 3, 4)
"""Exit codes of failures that come again: parity, options, checkpoint, toolchain."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One baseline of a task: the folder of its bundle, or the reason why there is none."""

    kind: Kind
    task: str
    folder: Path | None
    reason: str | None = None


def baselines(
    source: Bundle,
    model: str | Path | None = None,
    *,
    kinds: Sequence[Kind] = KINDS,
    tasks: Sequence[str] = (),
    parts: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> list[Baseline]:
    """The baselines of each task of a bundle, exported where they are not kept.

    ``dense`` is the stock UNet of the task's size with random weights, ``unfolded`` the task with
    its router in the graph, ``plain`` the folded task as the toolchain exports it by itself,
    ``single`` the task alone. ``parts`` are those to export, by default the denoiser. An export
    that fails is a baseline with its reason. Raises ``PlanError`` where the bundle is not of this
    checkpoint, ``UnknownName``, ``CheckpointError`` and ``ToolchainMissing``.
    """
    for kind in kinds:
        if kind not in (*KINDS, "single"):
            raise UnknownName("baseline", kind, (*KINDS, "single"))
    names = [task.name for task in source.tasks]
    for name in tasks:
        if name not in names:
            raise UnknownName("task", name, names)
    _require_source(source, model)
    chosen = parts or [_denoiser(source).name]
    return [
        _baseline(kind, task, _options(source, model, task, chosen, kind), progress)
        for task in tasks or names
        for kind in kinds
    ]


def fleet(
    source: Bundle,
    model: str | Path | None = None,
    *,
    parts: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> list[Baseline]:
    """A bundle for each task alone; see :func:`baselines`."""
    return baselines(source, model, kinds=("single",), parts=parts, progress=progress)


def _denoiser(source: Bundle) -> PartRecord:
    for part in source.manifest.parts:
        if part.kind == "denoiser":
            return part
    raise PlanError(f"{source.folder.name} has no denoiser, which baselines are of")


# ------------------------------------------------------------------------------- the checkpoint


def _require_source(source: Bundle, model: str | Path | None) -> None:
    """Refuse another checkpoint, a LoRA, and a bundle that is a baseline itself."""
    from mtu_export.exporter import manifest
    from mtu_export.exporter.options import resolve

    record, name = source.manifest.source, source.folder.name
    for option, value in _SIGNS:
        if source.manifest.options.get(option) is value:
            sign = f"{option}: {json.dumps(value)}"
            raise PlanError(f"{name} is a baseline itself ({sign}); name the usual export")
    if record.loras:
        raise PlanError(f"{name} has a LoRA folded in, its baselines would not: export it without")
    plan = resolve(
        target=source.manifest.target,
        model=model,
        task=[task.name for task in source.tasks],
        components=[part.name for part in source.parts],
        height=source.manifest.image.height,
        width=source.manifest.image.width,
        out=_folder() / "none",
    )
    actual = bundle.sha256_of(manifest.weights(plan))
    if actual != record.sha256:
        raise PlanError(
            f"{name} was exported from {record.name} (sha256 {record.sha256[:12]}), not from "
            f"{plan.checkpoint} ({actual[:12]}): name its checkpoint with -m"
        )


def _options(
    source: Bundle, model: str | Path | None, task: str, parts: Sequence[str], kind: Kind
) -> dict[str, Any]:
    """``ExportOptions`` of a baseline, JSON values alone."""
    manifest = source.manifest
    options: dict[str, Any] = {
        "target": manifest.target,
        "scheme": manifest.scheme.name,
        "options": dict(manifest.options),
        "model": None if model is None else str(model),
        "task": task,
        "components": list(parts),
        "height": manifest.image.height,
        "width": manifest.image.width,
        "batch": _denoiser(source).outputs[0].shape[0],
        "skip_existing": True,
    }
    floor = _own_floor(source)
    if floor is not None:
        options["min_psnr"] = floor
    kept = [layer.layer for layer in manifest.scheme.kept_float if layer.why == "asked for"]
    if kept and kind in ("dense", "single"):
        options["keep_float"] = [re.escape(layer) for layer in kept]
    return options


def _own_floor(source: Bundle) -> float | None:
    """The floor that a bundle was exported with, where it is not its scheme's."""
    part = _denoiser(source)
    assert part.scheme is not None
    scheme = SCHEMES[part.scheme.name]
    usual, stage = scheme.floor(part.scheme.activations), verification.stage_of(scheme)
    floors = [v.floor_db for v in source.proof if (v.part, v.stage) == (part.name, stage)]
    return floors[0] if floors and floors[0] != usual else None


# ---------------------------------------------------------------------------------- one baseline


def _folder() -> Path:
    return cache() / "baselines"


def _baseline(kind: Kind, task: str, options: Mapping[str, Any], progress: Progress) -> Baseline:
    """A baseline from the cache, or exported into it."""
    label = f"baseline {kind} of {task}"
    try:
        plan = plan_of(kind, options)
        name = f"{kind}-{task[:64]}-{plan.target}-{plan.scheme.name}"
        out = _folder() / f"{name}-{_fingerprint(plan)[:16]}"
        with _alone(out, lambda: progress(f"{label}: another process is making it")):
            if not _is_whole(out):
                _make(kind, {**options, "out": str(out)}, out, label, progress)
    except MtuExportError as error:
        progress(f"{label}: none: {error}")
        return Baseline(kind=kind, task=task, folder=None, reason=str(error))
    return Baseline(kind=kind, task=task, folder=out)


def _fingerprint(plan: Plan) -> str:
    from mtu_export.exporter import manifest, resume

    return resume.fingerprint(plan, manifest.identity(plan), manifest.versions(plan))


def _is_whole(folder: Path) -> bool:
    """Whether a bundle is there; one that was damaged meanwhile is removed."""
    if not folder.is_dir():
        return False
    try:
        bundle.read(folder)
    except BundleError:
        shutil.rmtree(folder)
        return False
    return True


class _Failed(MtuExportError):
    """An export that failed, now or before."""


def _make(
    kind: Kind, options: Mapping[str, Any], out: Path, label: str, progress: Progress
) -> None:
    """Export in a process of its own; raises what it said, also what it said last time."""
    failure, log = _beside(out, ".failed.json"), _beside(out, ".log")
    if failure.is_file():
        raise _Failed(json.loads(failure.read_text("utf-8"))["reason"])
    progress(f"{label}: exporting")
    start, job = time.monotonic(), json.dumps({"kind": kind, "options": options})
    command = [sys.executable, "-m", "mtu_export.bench.baseline_export", job]
    with log.open("wb") as stream:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    if done.returncode == 0:
        progress(f"{label}: exported in {time.monotonic() - start:.0f} s")
        return
    reason = reason_of(log)
    if done.returncode < 0:
        reason = f"its export was ended by signal {-done.returncode}"
    if done.returncode in _LASTING:
        with atomic_file(failure) as path:
            path.write_text(json.dumps({"reason": reason}), "utf-8")
    raise _Failed(reason)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


@contextmanager
def _alone(out: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder of the cache; ``wait`` is called once where another has it."""
    path, waited = _beside(out, ".lock"), False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while (lock := locks.acquire(path)) is None:
            if not waited:
                wait()
            waited = True
            time.sleep(0.5)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        locks.remove(lock)
