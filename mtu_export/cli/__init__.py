"""The command line: words -> Plan -> one table. Imports neither torch nor a toolchain at start."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mtu_export import __version__, targets
from mtu_export.cli import bench, checkpoints, exports, measuring, reading, running, training
from mtu_export.cli.console import plain
from mtu_export.spec import (
    Interrupted,
    MtuExportError,
    PlanError,
    ResourceError,
    UnknownName,
    telemetry,
)
from mtu_export.spec.extras import missing_package

INTERNAL_ERROR = 70
"""A mistake of mtu-export itself; EX_SOFTWARE of sysexits.h."""
_INTERRUPTED = 130
_PIPE_CLOSED = 141
"""What a shell reports of a Unix tool whose reader went away, as in ``mtu-export list | head``."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


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
    help="Take a diffusion model to the phone, with proof: Core ML, ONNX, ExecuTorch.",
)

for _name in targets.names():
    app.command(_name)(exports.target_command(_name))
app.command("diffusers")(exports.diffusers_command())
app.command()(checkpoints.upcycle)
app.command()(checkpoints.adopt)
app.command()(training.train)
app.command("verify")(reading.verify_command())
app.command("run")(running.run_command())
app.command(name="inspect")(reading.inspect_)
app.command("bench")(measuring.bench_command())
app.command()(bench.compare)
app.command()(bench.report)
app.command(name="list")(reading.list_)
app.command()(reading.doctor)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _describe(error: BaseException) -> tuple[str, int]:
    """The one line and the exit code of an error."""
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if _was_interrupted(error):
        return "interrupted; nothing was written", _INTERRUPTED
    error = missing_package(error) or error
    if isinstance(error, MtuExportError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory", ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or "the output or the temporary folder"
        return f"cannot write {where}: {os.strerror(error.errno)}", ResourceError.exit_code
    if hasattr(error, "format_message"):  # a usage error of typer
        return str(error.format_message()), PlanError.exit_code  # type: ignore[attr-defined]
    line = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {line[0] if line else ''}"
    return f"internal error, please report it: {reason}", INTERNAL_ERROR


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it began with Ctrl-C; extension modules make an ``ImportError`` of it."""
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, typer.Abort)):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Run the command line: one line on standard error and the exit code of the error's kind."""
    _open_closed_streams()
    telemetry.turn_off()
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer has caught Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _PIPE_CLOSED  # rich and typer have caught it
        _drop_output()
    except BrokenPipeError:
        code = _PIPE_CLOSED
        _drop_output()
    except (Exception, KeyboardInterrupt) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            import traceback

            traceback.print_exc()
        line, code = _describe(error)
        with suppress(OSError):
            sys.stderr.write(f"error: {plain(line)}\n")
            sys.stderr.flush()
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
    raise SystemExit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """Lead standard streams that the caller has closed (``>&-``) into nothing."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _drop_output() -> None:
    """Lead both outputs into nothing: what is still in a buffer can go nowhere else."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
