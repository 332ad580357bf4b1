"""Commands that export: one a target, and the fold alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from mtu_export import targets
from mtu_export.cli.console import Console, table, verdict_cells
from mtu_export.cli.options import (
    PROOF_HEAD,
    Force,
    Json,
    MinPsnr,
    Model,
    Out,
    SchemeName,
    TaskName,
    Verbose,
    part_sizes,
    print_json,
)
from mtu_export.spec import Interrupted, PlanError
from mtu_export.spec.catalog import BAKED_STEPS, SCHEDULERS

_SCHEDULERS = [name for name in SCHEDULERS if name.islower()]
_STEPS = ",".join(map(str, BAKED_STEPS))


def _export(
    target: str,
    model: Model = None,
    task: TaskName = None,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Every task, on one set of weights.")
    ] = False,
    scheme: SchemeName = None,
    int8: Annotated[bool, typer.Option("--int8", help="Short for --scheme int8.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Short for --scheme fp16.")] = False,
    output: Out = None,
    height: Annotated[int | None, typer.Option("--height", help="Image height, pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Image width, pixels.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Batch of the denoiser.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the goldens.")] = 0,
    min_psnr: MinPsnr = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-float", metavar="NAME", help="Layer (or pattern) to leave in float; repeat."
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", metavar="GB", help="Plan for this much; default: what is free."),
    ] = None,
    components: Annotated[
        list[str] | None,
        typer.Option("--components", metavar="NAME", help="Part to export; repeat. Default: all."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help=f"One of: {', '.join(_SCHEDULERS)}; default: its own."),
    ] = None,
    bake_steps: Annotated[
        str | None,
        typer.Option(
            "--bake-steps",
            metavar="N,N",
            help=f"Step counts; default: {_STEPS} and the tasks' own.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE[:scale]", help="LoRA to fold in; repeat."),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on with a stopped export, part by part.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    **options: Any,
) -> None:
    from mtu_export import bundle, exporter
    from mtu_export.exporter.options import resolve

    words = {scheme, *(n for n, flag in (("int8", int8), ("fp16", fp16)) if flag)} - {None}
    if len(words) > 1:
        raise PlanError(f"name one scheme, got {', '.join(sorted(map(str, words)))}")
    resolved = resolve(
        target=target,
        model=model,
        task=task,
        all_tasks=all_tasks,
        scheme=next(iter(words), None),
        out=output,
        height=height,
        width=width,
        batch=batch,
        seed=seed,
        min_psnr=min_psnr,
        keep_float=keep_float or (),
        memory=memory,
        components=components or (),
        scheduler=scheduler,
        bake_steps=_counts(bake_steps),
        lora=lora or (),
        skip_existing=skip_existing,
        force=force,
        options={name: value for name, value in options.items() if value is not None},
    )
    console = Console(verbose=verbose)
    try:
        with console.quiet():
            found = exporter.export(resolved, console.stage)
    except KeyboardInterrupt:
        if not skip_existing:
            raise
        raise Interrupted(
            "interrupted; finished parts are kept, the same command with --skip-existing goes on"
        ) from None
    if as_json:
        print_json({"bundle": str(found.folder), "bytes": found.bytes, **found.manifest.to_json()})
        return
    sizes = part_sizes(found)
    rows = [[*verdict_cells(v), sizes[v.component]] for v in found.proof]
    table([*PROOF_HEAD, "size"], rows, title=str(found.folder))
    shared = bundle.sharing(found.manifest)
    if shared is not None:
        print(shared)
    for steps, reason in (found.manifest.loop.skipped if found.manifest.loop else {}).items():
        sys.stderr.write(f"warning: no table for {steps} steps: {reason}\n")
    for folded in found.manifest.source.loras:
        for name, count in folded.unused.items():
            sys.stderr.write(
                f"warning: {folded.name}: {count} layers of {name} had nowhere to go\n"
            )


def _counts(text: str | None) -> list[int]:
    """Numbers with commas between them."""
    try:
        return [int(word) for word in text.split(",")] if text is not None else []
    except ValueError:
        raise PlanError(f"--bake-steps takes numbers, such as 8,20; got {text!r}") from None


def target_command(name: str) -> Callable[..., None]:
    """The command of one target: the common words, and flags from its ``Options``."""
    options = targets.load(name).options

    def command(**words: Any) -> None:
        _export(name, **words)

    common = list(inspect.signature(_export, eval_str=True).parameters.values())[1:-1]
    own = []
    for row in fields(options):
        flag = row.metadata.get("flag", "--" + row.name.replace("_", "-"))
        option = typer.Option(flag, help=_option_help(row))
        kind = type(row.default)
        own.append(
            inspect.Parameter(
                row.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    rows = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in common]
    command.__signature__ = inspect.Signature([*rows, *own])  # type: ignore[attr-defined]
    command.__doc__ = f"Export a task to {targets.title(name)}, with proof."
    return command


def _option_help(row: Any) -> str:
    choices = row.metadata.get("choices")
    text = row.metadata.get("help", "")
    legal = f". One of: {', '.join(map(str, choices))}" if choices else ""
    several = row.metadata.get("several")
    more = f", {several} for several tasks" if several is not None else ""
    return f"{text}{legal}. Default: {row.default}{more}."


def diffusers(
    model: Model = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task of the checkpoint (see: inspect).")
    ] = None,
    output: Out = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fold one task and save it as a stock diffusers UNet2DConditionModel folder."""
    from mtu_export import exporter
    from mtu_export.exporter.options import FOLD_ONLY, resolve

    resolved = resolve(target=FOLD_ONLY, model=model, task=task, out=output, force=force)
    console = Console(verbose=verbose)
    with console.quiet():
        found = exporter.save_folded(resolved, console.stage)
    print_json({"folder": str(found)}) if as_json else print(found)
