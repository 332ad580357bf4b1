"""The command line: words -> Plan -> one table. Imports neither torch nor a toolchain at start."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mtu_export import __version__, targets
from mtu_export.catalog import ARCHITECTURES, SCHEMES, TASKS
from mtu_export.console import Console, table, verdict_cells
from mtu_export.spec import MtuExportError, PlanError, ResourceError, UnknownName, Verdict


class _Commands(TyperGroup):
    """Refuses an unknown command with the list of commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UnknownName("command", args[0], list(self.commands))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Take a Multi-Task Upcycling checkpoint to the phone: Core ML, ONNX, ExecuTorch.",
)

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Checkpoint folder or hub id; default: the embedded one."),
]
TaskName = Annotated[
    list[str] | None, typer.Option("--task", help="Task of the checkpoint (see: inspect).")
]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to make.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show what the toolchains print.")]
MinPsnr = Annotated[
    float | None, typer.Option("--min-psnr", metavar="DB", help="Replace the scheme's floor.")
]
SchemeName = Annotated[str | None, typer.Option("--scheme", help=f"One of: {', '.join(SCHEMES)}.")]


def _print_json(found: Any) -> None:
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


# -------------------------------------------------------------------------------------- exports


def _export(
    target: str,
    model: Model = None,
    task: TaskName = None,
    scheme: SchemeName = None,
    int8: Annotated[bool, typer.Option("--int8", help="Short for --scheme int8.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Short for --scheme fp16.")] = False,
    output: Out = None,
    height: Annotated[int | None, typer.Option("--height", help="Image height, pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Image width, pixels.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Batch of the denoiser.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of goldens and calibration.")] = 0,
    min_psnr: MinPsnr = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    **options: Any,
) -> None:
    from mtu_export import exporter, plan

    words = {scheme, *(n for n, flag in (("int8", int8), ("fp16", fp16)) if flag)} - {None}
    if len(words) > 1:
        raise PlanError(f"name one scheme, got {', '.join(sorted(map(str, words)))}")
    resolved = plan.resolve(
        target=target,
        model=model,
        task=task,
        scheme=next(iter(words), None),
        out=output,
        height=height,
        width=width,
        batch=batch,
        seed=seed,
        min_psnr=min_psnr,
        force=force,
        options={name: value for name, value in options.items() if value is not None},
    )
    console = Console(verbose=verbose)
    with console.quiet():
        found = exporter.export(resolved, console.stage)
    if as_json:
        _print_json({"bundle": str(found.folder), "bytes": found.bytes, **found.manifest})
        return
    rows = [[*verdict_cells(v), f"{found.bytes / 1e6:.2f} MB"] for v in found.proof]
    table([*_PROOF_HEAD, "size"], rows, title=str(found.folder))
    if found.manifest["scheme"]["calibration"] == "seeded":
        sys.stderr.write(
            "warning: activation ranges come from seeded inputs, not from images; "
            "check the quality on your own pictures\n"
        )


_INTERRUPTED = 130
_PROOF_HEAD = ["part", "task", "rung", "PSNR", "floor", "verdict", "runner"]


def _target_command(name: str) -> Callable[..., None]:
    """The command of one target: the common words, and flags from its ``Options``."""
    target = targets.load(name)

    def command(**words: Any) -> None:
        _export(name, **words)

    common = list(inspect.signature(_export, eval_str=True).parameters.values())[1:-1]
    own = []
    for row in fields(target.Options):
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
    command.__doc__ = f"Export a task to {(target.__doc__ or name).partition(':')[0]}, with proof."
    return command


def _option_help(row: Any) -> str:
    choices = row.metadata.get("choices")
    text = row.metadata.get("help", "")
    legal = f" One of: {', '.join(map(str, choices))}." if choices else ""
    return f"{text}{legal} Default: {row.default}."


for _name in targets.names():
    app.command(_name)(_target_command(_name))


@app.command()
def diffusers(
    model: Model = None,
    task: TaskName = None,
    output: Out = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fold one task and save it as a stock diffusers UNet2DConditionModel folder."""
    from mtu_export import exporter, plan

    resolved = plan.resolve(target=plan.FOLD_ONLY, model=model, task=task, out=output, force=force)
    console = Console(verbose=verbose)
    with console.quiet():
        found = exporter.save_folded(resolved, console.stage)
    _print_json({"folder": str(found)}) if as_json else print(found)


# ----------------------------------------------------------------------------------- checkpoints


@app.command()
def upcycle(
    source: Annotated[
        str | None, typer.Argument(help="Dense UNet or pipeline: folder or hub id.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="Checkpoint folder to make.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help=f"Preset ({', '.join(TASKS)}) or FILE.json; repeat."),
    ] = None,
    experts: Annotated[int, typer.Option("--experts", help="N, experts a feed-forward.")] = 4,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale/--no-rescale",
            help="Multiply value rows by N: start equal to the dense model. Default: the "
            "shards as they are, as in the paper (a feed-forward starts at 1/N).",
        ),
    ] = False,
    task_norm: Annotated[
        str, typer.Option("--task-norm", help="replace (default) or stacked.")
    ] = "replace",
    arch: Annotated[
        str | None,
        typer.Option("--arch", help=f"With --random: {', '.join(ARCHITECTURES)}."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Seeded random weights.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="With --random: fp32 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Make an MTU checkpoint of a dense UNet: upcycle SOURCE OUT --task ...

    Without a source: upcycle --arch tiny --random OUT
    """
    from mtu_export import plan
    from mtu_export.draft import CHECKPOINT, refuse_existing

    if random and arch is None:
        raise PlanError(f"--random needs --arch: {', '.join(ARCHITECTURES)}")
    if arch is not None and not random:
        raise PlanError("--arch needs --random; a source has its own architecture")
    if random and source is not None and out is None:
        source, out = None, Path(source)
    if out is None or (source is None) != random:
        raise PlanError("usage: upcycle SOURCE OUT --task ... or upcycle --arch NAME --random OUT")
    if experts < 1:
        raise PlanError(f"--experts must be at least 1, got {experts}")
    if task_norm not in ("replace", "stacked"):
        raise UnknownName("task norm", task_norm, ["replace", "stacked"])
    if arch is not None and arch not in ARCHITECTURES:
        raise UnknownName("architecture", arch, list(ARCHITECTURES))
    words = task or (list(TASKS)[:4] if random else [])
    plan.task_rows(words, ARCHITECTURES.get(arch or "", {}))
    refuse_existing(out, force, CHECKPOINT)
    console = Console(verbose=verbose)
    with console.quiet(), console.stage("upcycle"):
        from mtu_export import checkpoint
        from mtu_export import upcycle as room

        if source is None:
            assert arch is not None
            room.write_random(
                arch,
                out,
                tasks=words,
                experts=experts,
                seed=seed,
                dtype=dtype,
                task_norm=task_norm,
                force=force,
            )
        else:
            room.upcycle(
                checkpoint.locate(source),
                out,
                tasks=words,
                experts=experts,
                rescale=rescale,
                seed=seed,
                task_norm=task_norm,
                force=force,
            )
    print(out)


# -------------------------------------------------------------------------------------- reading


@app.command()
def verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle folders.")],
    min_psnr: MinPsnr = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run bundles against their goldens, each in its own runtime; exit 1 below a floor."""
    from mtu_export import bundle, exporter, plan
    from mtu_export import verify as room

    plan.check_floor(min_psnr)
    console = Console(verbose=verbose)
    found: list[tuple[Any, list[Verdict]]] = []
    for folder in bundles:
        with console.quiet(), console.stage(f"verify {folder}"):
            read = bundle.read(folder)
            found.append((read, exporter.check(read, min_psnr)))
    if as_json:
        rows = [
            {"bundle": str(b.folder), "bytes": b.bytes, "proof": [asdict(v) for v in verdicts]}
            for b, verdicts in found
        ]
        _print_json(rows)
    else:
        cells = [
            [b.manifest["name"], *verdict_cells(v), f"{b.bytes / 1e6:.2f} MB"]
            for b, verdicts in found
            for v in verdicts
        ]
        table(["bundle", *_PROOF_HEAD, "size"], cells)
    failed = room.failure([v for _, verdicts in found for v in verdicts])
    if failed is not None:
        from mtu_export.spec import ParityError

        raise ParityError(f"parity below the floor: {failed}")


@app.command(name="inspect")
def inspect_(
    path: Annotated[
        str | None, typer.Argument(metavar="[CHECKPOINT|BUNDLE]", help="Folder or hub id.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint or a bundle holds; without argument, the embedded checkpoint."""
    from mtu_export import bundle, checkpoint, report

    folder = Path(path).expanduser() if path is not None else None
    if folder is not None and (folder / bundle.MANIFEST).is_file():
        found = report.of_bundle(bundle.read(folder))
    else:
        found = report.of_checkpoint(checkpoint.locate(path))
    _print_json(found) if as_json else report.show(found)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List targets, schemes, model families and task presets."""
    from mtu_export import report

    found = report.names()
    _print_json(found) if as_json else report.show(found)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Compare the packages found with the versions that were tried together."""
    from mtu_export import report

    found = report.packages()
    if as_json:
        _print_json(found)
        return
    head = ["package", "found", "tried", "state", "extra"]
    table(head, [[str(row[key] or "") for key in head] for row in found["packages"]])
    for row in found["runners"]:
        print(f"{row['target']}: {row['runner'] or row['reason']}")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _describe(error: BaseException) -> tuple[str, int]:
    """The one line and the exit code of an error."""
    if isinstance(error, MtuExportError):
        return str(error), error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted; nothing was written", _INTERRUPTED
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory", ResourceError.exit_code
    if hasattr(error, "format_message"):  # a usage error of typer
        return str(error.format_message()), PlanError.exit_code  # type: ignore[attr-defined]
    line = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {line[0] if line else ''}"
    return f"internal error, please report it: {reason}", 4


def main() -> None:
    """Run the command line: one line on standard error and the exit code of the error's kind."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer has caught Ctrl-C
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            import traceback

            traceback.print_exc()
        line, code = _describe(error)
        sys.stderr.write(f"error: {line}\n")
    raise SystemExit(code if isinstance(code, int) else 0)
