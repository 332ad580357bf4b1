"""Words -> Plan: the one place where names are looked up, defaults merged, contradictions refused.

Reads the checkpoint's JSON, never its weights, and imports no toolchain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtu_export import checkpoint, targets
from mtu_export.checkpoint.layout import PipelineLayout, source_folder
from mtu_export.exporter import stock_configs
from mtu_export.spec import (
    COMPONENTS,
    CheckpointError,
    IntWeights,
    KeepFloat,
    Plan,
    PlanError,
    Scheme,
    Task,
    UnknownName,
    Unsupported,
    shown,
)
from mtu_export.spec.catalog import BAKED_STEPS, SCHEDULERS, SCHEMES, scheme_of
from mtu_export.spec.extras import EXPORT, require
from mtu_export.spec.patterns import compile_pattern
from mtu_export.storage.draft import BUNDLE, FOLDED, refuse_existing

FOLD_ONLY = "diffusers"
_MOST_STEPS = 1000
_LARGEST = 8192
_LARGEST_BATCH = 64


def resolve(
    *,
    target: str,
    model: str | Path | None = None,
    task: str | Sequence[str] | None = None,
    scheme: str | None = None,
    out: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    seed: int = 0,
    min_psnr: float | None = None,
    keep_float: Sequence[str] = (),
    memory: float | None = None,
    components: Sequence[str] = (),
    scheduler: str | None = None,
    bake_steps: Sequence[int] = (),
    lora: Sequence[str] = (),
    skip_existing: bool = False,
    all_tasks: bool = False,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of one export.

    ``target`` is a name of ``targets`` or ``"diffusers"``, which stops after the fold. ``model``
    is a folder, a hub id, or None for the embedded checkpoint; ``height`` and ``width``
    are pixels; ``min_psnr`` is in dB and replaces the scheme's floor; ``keep_float`` are regular
    expressions of layers that an integer scheme leaves in float; ``memory`` is in GB and replaces
    what the machine has available. ``components`` are all that the task needs where none is named;
    ``scheduler`` replaces the checkpoint's; ``bake_steps`` are step counts of the loop's tables;
    ``lora`` are ``FILE[:scale]``; ``skip_existing`` takes up a stopped export; ``all_tasks`` stands
    for the names of all tasks. Raises
    ``UnknownName``, ``PlanError``, ``Unsupported``, ``CheckpointError`` and ``ToolchainMissing``.
    """
    chosen = None if target == FOLD_ONLY else targets.load(target)
    require(*EXPORT)
    folder = checkpoint.locate(model)
    config = checkpoint.read_config(folder)
    if all_tasks and task:
        raise PlanError("--all-tasks are all tasks of the checkpoint; give no --task with it")
    legal = checkpoint.tasks(config)
    rows = legal if all_tasks else _tasks(task, legal)
    row = _scheme(scheme or (chosen.info.default_scheme if chosen else "fp32"), keep_float)
    layout = PipelineLayout.read(folder, config)
    size = layout.image_size(height, width)
    if not 1 <= batch <= _LARGEST_BATCH:
        raise PlanError(f"--batch must be from 1 to {_LARGEST_BATCH}, got {batch}")
    if not 0 <= seed < 2**32:
        raise PlanError(f"--seed must be from 0 to 2^32 − 1, got {seed}")
    check_floor(min_psnr)
    if memory is not None and not 0 < memory < 1e6:
        raise PlanError(f"--memory must be a number of GB above 0, got {memory}")
    if skip_existing and force:
        raise PlanError("--skip-existing keeps what --force replaces; give one of them")
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise UnknownName("scheduler", scheduler, list(SCHEDULERS))
    vae = layout.vae or {}
    float16 = chosen is not None and chosen.info.float16_vae
    chosen_parts = _components(components, rows, layout, folder)
    if keep_float and "unet" not in chosen_parts:
        raise PlanError("--keep-float names layers of the UNet, which is not among --components")
    name = "+".join(t.name for t in rows) + f"-{target}" + (f"-{row.name}" if chosen else "")
    found = Plan(
        checkpoint=folder,
        family=checkpoint.family(config),
        config=config,
        tasks=rows,
        target=target,
        scheme=row,
        height=size[0],
        width=size[1],
        factor=layout.vae_scale_factor,
        batch=batch,
        seed=seed,
        out=Path(out) if out is not None else Path(name),
        options=targets.options(target, options or {}, len(rows)) if chosen else None,
        floor_db=min_psnr,
        memory=None if memory is None else memory * 1e9,
        force=force,
        components=chosen_parts,
        schemes={part: scheme_of(part, row, vae, float16_vae=float16) for part in chosen_parts},
        scheduler=scheduler,
        steps=_steps(bake_steps, rows),
        steps_named=bool(bake_steps),
        loras=tuple(lora),
        resume=skip_existing,
        is_sdxl=layout.is_sdxl,
        stock_configs=stock_configs.read(folder, config, rows) if chosen else {},
    )
    if not skip_existing:
        refuse_existing(found.out, force, BUNDLE if chosen else FOLDED, [folder])
    if chosen:
        chosen.validate_plan(found)
    elif len(rows) > 1:
        raise Unsupported("a diffusers folder holds one task; name one --task")
    return found


def check_floor(min_psnr: float | None) -> None:
    """Refuse a ``--min-psnr`` that is no PSNR in dB."""
    if min_psnr is not None and not 0 <= min_psnr <= 300:
        raise PlanError(f"--min-psnr must be from 0 to 300 dB, got {min_psnr}")


def _tasks(words: str | Sequence[str] | None, legal: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks named, in the checkpoint's order; the only one where none is named."""
    wanted = [words] if isinstance(words, str) else list(words or ())
    names = [task.name for task in legal]
    if not wanted and len(legal) == 1:
        return (legal[0],)
    if not wanted:
        raise PlanError(f"name a --task; this checkpoint has: {', '.join(names)}")
    for word in wanted:
        if word not in names:
            raise UnknownName("task", word, names)
    return tuple(task for task in legal if task.name in wanted)


def _scheme(name: str, keep_float: Sequence[str]) -> Scheme:
    """The scheme of this name, with the layers that were asked to keep float in front."""
    if name not in SCHEMES:
        raise UnknownName("scheme", name, list(SCHEMES))
    found = SCHEMES[name]
    if keep_float and not isinstance(found.weights, IntWeights):
        raise PlanError(f"--keep-float: scheme {name!r} keeps every layer in float; choose int8")
    for pattern in keep_float:
        try:
            compile_pattern(pattern)
        except ValueError as error:
            raise PlanError(
                f"--keep-float {shown(pattern)} is not a usable pattern: {error}"
            ) from None
    asked = tuple(KeepFloat(pattern=p, why="asked for", required=True) for p in keep_float)
    return replace(found, overrides=(*asked, *found.overrides))


def _components(
    words: Sequence[str], tasks: Sequence[Task], layout: PipelineLayout, folder: Path
) -> tuple[str, ...]:
    """The components to export: those named, or all that the tasks need and the checkpoint has."""
    wanted = {name for task in tasks for name in layout.components(task)}
    names = [name for name in COMPONENTS if name in wanted]
    there = [name for name in names if (folder / source_folder(name)).is_dir()]
    for word in words:
        if word not in COMPONENTS:
            raise UnknownName("component", word, names)
        if word not in names:
            tasks_said = ", ".join(repr(task.name) for task in tasks)
            raise PlanError(f"task {tasks_said} needs no {word}; it needs: {', '.join(names)}")
        if word not in there:
            raise CheckpointError(f"{folder} has no {source_folder(word)}/: no {word} to export")
    chosen = tuple(name for name in there if not words or name in words)
    for task in tasks:
        if not {*layout.components(task)} & {*chosen}:
            raise PlanError(f"task {task.name!r} needs none of --components {', '.join(chosen)}")
    return chosen


def _steps(words: Sequence[int], tasks: Sequence[Task]) -> tuple[int, ...]:
    """Step counts of the loop's tables: those asked for, or the usual ones and the tasks' own."""
    for count in words:
        if not 1 <= count <= _MOST_STEPS:
            raise PlanError(f"--bake-steps must be from 1 to {_MOST_STEPS}, got {count}")
    return tuple(sorted({*(words or BAKED_STEPS), *(task.steps for task in tasks if not words)}))
