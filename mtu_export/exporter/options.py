"""Export options and a checkpoint to a plan: looks names up and refuses contradictions.

Reads the checkpoint's JSON, never its weights, and imports no toolchain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mtu_export import checkpoint, models, targets
from mtu_export.checkpoint import Folder
from mtu_export.exporter import limits
from mtu_export.models import lora as loras
from mtu_export.models import sources as model_sources
from mtu_export.spec import (
    CheckpointError,
    IntWeights,
    KeepFloat,
    Model,
    PartSpec,
    Plan,
    PlanError,
    Scheme,
    Task,
    UnknownName,
    Unsupported,
)
from mtu_export.spec.catalog import BAKED_FEW_STEPS, BAKED_STEPS, BAKED_STRENGTHS, SCHEMES
from mtu_export.spec.extras import EXPORT, require
from mtu_export.spec.model import BaselineKind
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
    folder = model_sources.open(
        options.model,
        options.revision,
        variant=options.variant,
        vae=options.vae,
        text_encoders=options.text_encoder,
        tokenizers=options.tokenizer,
        prediction_type=options.prediction_type,
    )
    plan = _plan(options, _model(options, folder))
    target = None if options.target == FOLD_ONLY else targets.load(options.target)
    if not options.skip_existing:
        sources = [*checkpoint.sources(folder)]
        refuse_existing(plan.out, plan.force, BUNDLE if target else FOLDED, sources)
    if target:
        limits.require_within_limits(plan)
        target.validate_plan(plan)
    else:
        _require_foldable(plan)
    return plan


def dense(plan: Plan) -> Plan:
    """The plan of a dense UNet of random weights in place of that of ``plan``, else the same.

    Raises ``Unsupported`` where the model is dense already, and ``PlanError`` for several tasks.
    """
    if len(plan.tasks) > 1:
        raise PlanError("a dense model does one task; name one --task")
    task = next(iter(plan.tasks))
    model = plan.model.dense(task)
    if model is None:
        raise Unsupported(f"{plan.checkpoint} has a dense UNet already")
    return replace(plan, model=model, baseline="dense", loras=())


def _model(options: ExportOptions, folder: Folder) -> Model:
    """The model to export; refuses a baseline that its target or the model itself has not."""
    model, kind = models.open(folder), _baseline(options)
    if kind is None:
        return _with_text(options, model)
    able = [name for name in targets.names() if kind in targets.load(name).info.baselines]
    if options.target not in able:
        flag = "--no-fold" if options.no_fold else "--plain"
        raise Unsupported(f"{options.target} takes no {flag}; {', '.join(able)} do")
    if not options.no_fold:
        return _with_text(options, model)
    unfolded = model.unfolded()
    if unfolded is None:
        raise Unsupported(f"--no-fold: {folder} has no router, its UNet is a stock one")
    return _with_text(options, unfolded)


def _with_text(options: ExportOptions, model: Model) -> Model:
    """The model with the embeddings and the clip skip of ``options``."""
    if not options.embedding and options.clip_skip is None:
        return model
    if options.target == FOLD_ONLY:
        raise Unsupported("--embedding and --clip-skip change text encoders; a fold keeps them")
    return model.with_text([str(word) for word in options.embedding], options.clip_skip or 0)


def _baseline(options: ExportOptions) -> BaselineKind | None:
    if options.no_fold:
        return "unfolded"
    return "plain" if options.plain else None


def _require_foldable(plan: Plan) -> None:
    """Refuse several tasks, and a model that is the same for every task. Raises ``Unsupported``."""
    if not any(part.by_task for part in plan.model.parts):
        raise Unsupported(f"{plan.checkpoint} has nothing to fold: its UNet is a stock one")
    if len(plan.tasks) > 1:
        raise Unsupported("a diffusers folder holds one task; name one --task")


def _plan(options: ExportOptions, model: Model) -> Plan:
    """The plan of valid options and a checkpoint, before the output and the target see it."""
    target = None if options.target == FOLD_ONLY else targets.load(options.target)
    tasks = _tasks(options, model)
    scheme = _scheme(options, target.info.default_scheme if target else "fp32")
    parts = _parts(options, tasks, model)
    height, width = model.image_size(options.height, options.width)
    baseline = _baseline(options)
    if baseline == "plain" and len(tasks) > 1:
        raise PlanError("--plain exports one task; name one --task")
    names = ["+".join(task.name for task in tasks), options.target, *([scheme.name] * bool(target))]
    names += [] if baseline is None else [baseline]
    source, revision = checkpoint.source_of(options.model, model.folder)
    gains = target is not None and target.info.float16_gains
    specs = {spec.name: spec for spec in model.parts}
    return Plan(
        model=model,
        source=source,
        revision=revision,
        tasks=tasks,
        target=options.target,
        scheme=scheme,
        height=height,
        width=width,
        batch=options.batch,
        seed=options.seed,
        out=Path(options.out) if options.out is not None else Path("-".join(names)),
        options=targets.options(options.target, options.options, len(tasks)) if target else None,
        floor_db=options.min_psnr,
        memory=None if options.memory is None else options.memory * 1e9,
        force=options.force,
        parts=parts,
        schemes={
            name: specs[name].scheme(_part_scheme(specs[name], scheme), SCHEMES, gains=gains)
            for name in parts
        },
        scheduler=options.scheduler,
        steps=_steps(options, tasks),
        strengths=_counts(
            options.bake_strengths,
            BAKED_STRENGTHS,
            [task.strength for task in tasks if task.strength is not None],
        ),
        steps_named=bool(options.bake_steps or options.bake_strengths),
        loras=tuple(loras.parse(word) for word in options.lora),
        baseline=baseline,
        resume=options.skip_existing,
    )


def _tasks(options: ExportOptions, model: Model) -> tuple[Task, ...]:
    """The named tasks in the checkpoint's order; its default ones where none is named."""
    names = [task.name for task in model.tasks]
    chosen = options.task or (names if options.all_tasks else model.default_tasks)
    if not chosen:
        raise PlanError(f"name a --task; this checkpoint has: {', '.join(names)}")
    for name in chosen:
        if name not in names:
            raise UnknownName("task", name, names)
    return tuple(task for task in model.tasks if task.name in chosen)


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


def _part_scheme(part: PartSpec, scheme: Scheme) -> Scheme:
    """The scheme of a part before its own rules: --keep-float names layers of the denoiser."""
    return scheme if part.kind == "denoiser" else replace(scheme, overrides=())


def _parts(options: ExportOptions, tasks: Sequence[Task], model: Model) -> tuple[str, ...]:
    """The parts to export: those named, or all that the tasks run and the checkpoint has."""
    flows = {task.name: model.flow(task) for task in tasks}
    needed = {name for flow in flows.values() for name in flow.parts}
    specs = {spec.name: spec for spec in model.parts if spec.name in needed}
    present = [n for n, spec in specs.items() if (model.folder / spec.folder).is_dir()]
    for name in options.components:
        if name not in {spec.name for spec in model.parts}:
            raise UnknownName("part", name, list(specs))
        if name not in specs:
            users = ", ".join(repr(task.name) for task in tasks)
            raise PlanError(f"task {users} needs no {name}; it needs: {', '.join(specs)}")
        if name not in present:
            raise CheckpointError(
                f"{model.folder} has no {specs[name].folder}/: no {name} to export"
            )
    if not options.components:
        model.require_complete()
    chosen = tuple(name for name in present if not options.components or name in options.components)
    for task in tasks:
        if not {*flows[task.name].parts} & {*chosen}:
            raise PlanError(f"task {task.name!r} needs none of --components {', '.join(chosen)}")
    if options.keep_float and not any(specs[name].kind == "denoiser" for name in chosen):
        raise PlanError("--keep-float names layers of the denoiser, which is not exported")
    return chosen


def _steps(options: ExportOptions, tasks: Sequence[Task]) -> tuple[int, ...]:
    own = [task.steps for task in tasks]
    usual = BAKED_FEW_STEPS if max(own) <= max(BAKED_FEW_STEPS) else BAKED_STEPS
    return _counts(options.bake_steps, usual, own)


_Number = TypeVar("_Number", int, float)


def _counts(
    named: Sequence[_Number], usual: Sequence[_Number], own: Sequence[_Number]
) -> tuple[_Number, ...]:
    """Those asked for, or the usual ones and the tasks' own, in order."""
    return tuple(sorted({*(named or (*usual, *own))}))
