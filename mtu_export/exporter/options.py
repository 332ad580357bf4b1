"""Export options and a checkpoint to a plan: looks names up and refuses contradictions.

Reads the checkpoint's JSON, never its weights, and imports no toolchain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtu_export import checkpoint, targets
from mtu_export.checkpoint import pipeline_files
from mtu_export.checkpoint.layout import PipelineLayout, source_folder, tokenizer_folder
from mtu_export.exporter import limits, stock_configs
from mtu_export.models import lora as loras
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
)
from mtu_export.spec.catalog import BAKED_STEPS, SCHEMES, scheme_of
from mtu_export.spec.extras import EXPORT, require
from mtu_export.spec.options import FOLD_ONLY, ExportOptions
from mtu_export.storage.draft import BUNDLE, FOLDED, refuse_existing


def resolve(options: ExportOptions | None = None, /, **values: Any) -> Plan:
    """The plan of one export, from ``ExportOptions`` or the values of its fields.

    >>> resolve(target="onnx", task="edit").scheme.name
    'fp32'

    Raises ``UnknownName``, ``PlanError``, ``Unsupported``, ``CheckpointError`` and
    ``ToolchainMissing``.
    """
    options = ExportOptions(**values) if options is None else options
    if options.target != FOLD_ONLY and options.target not in targets.names():
        raise UnknownName("target", options.target, targets.names())
    require(*EXPORT)
    folder = checkpoint.locate(options.model, options.revision)
    plan = _plan(options, folder, checkpoint.read_config(folder))
    target = None if options.target == FOLD_ONLY else targets.load(options.target)
    if target:
        limits.require_within_limits(plan)
    if not options.skip_existing:
        refuse_existing(plan.out, plan.force, BUNDLE if target else FOLDED, [folder])
    if target:
        target.validate_plan(plan)
    elif len(plan.tasks) > 1:
        raise Unsupported("a diffusers folder holds one task; name one --task")
    return plan


def _plan(options: ExportOptions, folder: Path, config: Mapping[str, Any]) -> Plan:
    """The plan of valid options and a checkpoint, before the output and the target see it."""
    target = None if options.target == FOLD_ONLY else targets.load(options.target)
    layout = PipelineLayout.read(folder, config)
    tasks = _tasks(options, checkpoint.tasks(config))
    scheme = _scheme(options, target.info.default_scheme if target else "fp32")
    components = _components(options, tasks, layout, folder)
    height, width = layout.image_size(options.height, options.width)
    names = ["+".join(task.name for task in tasks), options.target, *([scheme.name] * bool(target))]
    source, revision = checkpoint.source_of(options.model, folder)
    float16_vae = target is not None and target.info.float16_vae
    return Plan(
        checkpoint=folder,
        source=source,
        revision=revision,
        family=checkpoint.family(config),
        config=config,
        tasks=tasks,
        target=options.target,
        scheme=scheme,
        height=height,
        width=width,
        factor=layout.vae_scale_factor,
        batch=options.batch,
        seed=options.seed,
        out=Path(options.out) if options.out is not None else Path("-".join(names)),
        options=targets.options(options.target, options.options, len(tasks)) if target else None,
        floor_db=options.min_psnr,
        memory=None if options.memory is None else options.memory * 1e9,
        force=options.force,
        components=components,
        schemes={
            part: scheme_of(part, scheme, layout.vae or {}, float16_vae=float16_vae)
            for part in components
        },
        scheduler=options.scheduler,
        steps=_steps(options.bake_steps, tasks),
        steps_named=bool(options.bake_steps),
        loras=tuple(loras.parse(word) for word in options.lora),
        resume=options.skip_existing,
        is_sdxl=layout.is_sdxl,
        stock_configs=stock_configs.read(folder, config, tasks) if target else {},
    )


def _tasks(options: ExportOptions, legal: tuple[Task, ...]) -> tuple[Task, ...]:
    """The named tasks in the checkpoint's order; its only task where none is named."""
    names = [task.name for task in legal]
    if options.all_tasks or (not options.task and len(legal) == 1):
        return legal
    if not options.task:
        raise PlanError(f"name a --task; this checkpoint has: {', '.join(names)}")
    for name in options.task:
        if name not in names:
            raise UnknownName("task", name, names)
    return tuple(task for task in legal if task.name in options.task)


def _scheme(options: ExportOptions, default: str) -> Scheme:
    """The scheme; layers that the user keeps in float precede its overrides."""
    scheme = SCHEMES[options.scheme or default]
    if options.keep_float and not isinstance(scheme.weights, IntWeights):
        raise PlanError(
            f"--keep-float: scheme {scheme.name!r} keeps every layer in float; choose int8"
        )
    kept = tuple(
        KeepFloat(pattern=pattern, why="asked for", required=True) for pattern in options.keep_float
    )
    return replace(scheme, overrides=(*kept, *scheme.overrides))


def _components(
    options: ExportOptions, tasks: Sequence[Task], layout: PipelineLayout, folder: Path
) -> tuple[str, ...]:
    """The components to export: those named, or all that the tasks need and the checkpoint has."""
    needed = {name for task in tasks for name in layout.components(task)}
    names = [name for name in COMPONENTS if name in needed]
    present = [name for name in names if (folder / source_folder(name)).is_dir()]
    for name in options.components:
        if name not in COMPONENTS:
            raise UnknownName("component", name, names)
        if name not in names:
            users = ", ".join(repr(task.name) for task in tasks)
            raise PlanError(f"task {users} needs no {name}; it needs: {', '.join(names)}")
        if name not in present:
            raise CheckpointError(f"{folder} has no {source_folder(name)}/: no {name} to export")
    if not options.components:
        _require_named_parts(layout, folder)
    chosen = tuple(name for name in present if not options.components or name in options.components)
    for task in tasks:
        if not {*layout.components(task)} & {*chosen}:
            raise PlanError(f"task {task.name!r} needs none of --components {', '.join(chosen)}")
    if options.keep_float and "unet" not in chosen:
        raise PlanError("--keep-float names layers of the UNet, which is not among --components")
    return chosen


def _require_named_parts(layout: PipelineLayout, folder: Path) -> None:
    """Refuse a checkpoint without a part that its ``model_index.json`` names.

    A checkpoint may lack any part but the UNet; one that names it has been copied incompletely.
    """
    path = folder / "model_index.json"
    index = checkpoint.read_json(path) if path.is_file() else {}
    encoders = layout.text_encoders
    parts = {"vae", "scheduler", *encoders, *map(tokenizer_folder, encoders)}
    for name in pipeline_files.absent(folder, index):
        if name in parts:
            raise CheckpointError(
                f"{folder} has no {name}/, which its model_index.json names; complete the copy or "
                "download, or name the parts to export with --components"
            )


def _steps(counts: Sequence[int], tasks: Sequence[Task]) -> tuple[int, ...]:
    """Step counts of the loop's tables: those asked for, or the usual ones and the tasks' own."""
    return tuple(sorted({*(counts or (*BAKED_STEPS, *(task.steps for task in tasks)))}))
