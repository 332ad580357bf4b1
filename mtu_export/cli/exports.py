"""Commands that export: one for each target, and the fold alone."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mtu_export import targets
from mtu_export.cli.console import Console, table
from mtu_export.cli.options import (
    PROOF_HEAD,
    Json,
    Verbose,
    parameters,
    part_sizes,
    print_json,
    values,
)
from mtu_export.spec import Interrupted
from mtu_export.spec.options import FOLD_ONLY, ExportOptions
from mtu_export.spec.replacing import hidden

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle

_OF_A_FOLD = ("model", "revision", "task", "out", "force")


def target_command(name: str) -> Callable[..., None]:
    """The command of one target, with flags of ``ExportOptions`` and of the target's own."""
    target = targets.load(name)

    def command(*, as_json: bool, verbose: bool, **arguments: Any) -> None:
        export_options = values(ExportOptions, arguments)
        target_options = values(target.options, arguments)
        options = ExportOptions(target=name, options=target_options, **export_options)
        with hidden(target.info.unused):  # for the command alone: a program may want them
            _export(options, as_json=as_json, verbose=verbose)

    flags = [*parameters(ExportOptions), *parameters(target.options)]
    _describe(command, flags)
    command.__doc__ = f"Export tasks of a checkpoint to {targets.title(name)}, with proof."
    return command


def diffusers_command() -> Callable[..., None]:
    """The command that stops after the fold."""

    def command(*, as_json: bool, verbose: bool, **arguments: Any) -> None:
        from mtu_export import exporter
        from mtu_export.exporter.options import resolve

        plan = resolve(ExportOptions(target=FOLD_ONLY, **values(ExportOptions, arguments)))
        console = Console(verbose=verbose)
        with console.quiet():
            folder = exporter.save_folded(plan, console.stage)
        if as_json:
            print_json({"folder": str(folder)})
        else:
            print(folder)

    _describe(command, parameters(ExportOptions, _OF_A_FOLD))
    command.__doc__ = "Fold one task and save it as a stock diffusers UNet2DConditionModel folder."
    return command


def _describe(command: Callable[..., None], flags: list[inspect.Parameter]) -> None:
    """Give a command the flags that typer reads from its signature."""
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("as_json", Json), ("verbose", Verbose))
    ]
    command.__signature__ = inspect.Signature([*flags, *shared])  # type: ignore[attr-defined]


def _export(options: ExportOptions, *, as_json: bool, verbose: bool) -> None:
    from mtu_export import exporter
    from mtu_export.exporter.options import resolve

    plan = resolve(options)
    console = Console(verbose=verbose)
    try:
        with console.quiet():
            bundle = exporter.export(plan, console.stage)
    except KeyboardInterrupt:
        if not options.skip_existing:
            raise
        raise Interrupted(
            "interrupted; finished parts are kept: the same command with --skip-existing continues"
        ) from None
    if as_json:
        print_json(
            {"bundle": str(bundle.folder), "bytes": bundle.bytes, **bundle.manifest.to_json()}
        )
    else:
        _show(bundle)
    if not options.components:
        _warn_incomplete(bundle, console)


def _show(bundle: Bundle) -> None:
    """Print the proof of a new bundle, what its tasks share, and LoRA layers that were not used."""
    from mtu_export.bundle import sharing

    sizes = part_sizes(bundle)
    rows = [[*verdict.cells.values(), sizes[verdict.part]] for verdict in bundle.proof]
    table([*PROOF_HEAD, "size"], rows, title=str(bundle.folder))
    shared = sharing(bundle.manifest)
    if shared is not None:
        print(shared)
    loop = bundle.manifest.loop
    for steps, reason in (loop.skipped if loop else {}).items():
        sys.stderr.write(f"warning: no table for {steps} steps: {reason}\n")
    for lora in bundle.manifest.source.loras:
        for component, count in lora.unused.items():
            sys.stderr.write(
                f"warning: {lora.name}: {count} layers for {component}, which is not exported, "
                "were not used\n"
            )


def _warn_incomplete(bundle: Bundle, console: Console) -> None:
    """Say which parts a bundle lacks to run by itself: the checkpoint did not have them."""
    present = {part.name for part in bundle.parts}
    for task in bundle.tasks:
        missing = [part for part in task.flow.parts if part not in present]
        if missing:
            console.warn(
                f"the checkpoint has no {', '.join(missing)}: with this bundle alone nobody can "
                f"run task {task.name!r}"
            )
