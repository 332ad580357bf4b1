"""`run`: a bundle makes a picture on this host."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.console import Console
from mtu_export.cli.options import (
    Force,
    Json,
    Verbose,
    parameter,
    parameters,
    print_json,
    require_writable,
    values,
)
from mtu_export.spec import Interrupted, PlanError
from mtu_export.spec.options import RunOptions

if TYPE_CHECKING:
    import numpy as np

    from mtu_export.bundle.evaluation import Request
    from mtu_export.bundle.runner import Generation, Loop

_MAX_QUOTED = 80
"""Characters of the prompt quoted in the warning."""
_Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
_Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Picture to write: PNG, JPEG, WebP.")
]
_SaveEvery = Annotated[
    int | None,
    typer.Option("--save-every", metavar="N", help="Also write a preview after every N passes."),
]


def run_command() -> Callable[..., None]:
    """The command ``run``, with the flags of ``RunOptions``."""

    def command(**arguments: Any) -> None:
        """Make a picture with a bundle, in its own runtime; no checkpoint is needed.

        The input image and the mask are rotated upright and cropped to the bundle's size.
        """
        _run(options=RunOptions(**values(RunOptions, arguments)), **arguments)

    required = inspect.Parameter.empty
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter("folder", _Folder, required),
            parameter("output", _Output, required),
            *parameters(RunOptions),
            parameter("save_every", _SaveEvery, None),
            parameter("force", Force, False),
            parameter("as_json", Json, False),
            parameter("verbose", Verbose, False),
        ]
    )
    return command


def _run(
    folder: Path,
    output: Path,
    options: RunOptions,
    save_every: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    from mtu_export import bundle
    from mtu_export.bundle import api, images, runner

    images.check_suffix(output)
    require_writable(output, force)
    if save_every is not None and save_every < 1:
        raise PlanError(f"--save-every must be 1 or more, got {save_every}")
    console = Console(verbose=verbose)
    with console.quiet():
        with console.stage(f"read {folder}"):
            loop = runner.open_loop(bundle.read(folder), options.task)
        request = api.make_request(loop, options, console.warn)
        _warn(loop, request, console)
        previews = _previews(loop, request, output, save_every)
        for path in previews.values():
            require_writable(path, force)
        start = time.monotonic()
        picture = _generate(loop, request, output, previews, console)
        seconds = time.monotonic() - start
    steps = {"steps": request.steps} if loop.task.flow.has_loop else {}
    if as_json:
        print_json(
            {
                "picture": str(output),
                "bundle": str(folder),
                "task": loop.task.name,
                **steps,
                "passes": len(picture.latents),
                "seconds": round(seconds, 2),
                "runner": loop.runner,
            }
        )
    else:
        count = f"{request.steps} steps, " if steps else ""
        print(f"{output}: {loop.task.name}, {count}{seconds:.1f} s, {loop.runner}")


def _warn(loop: Loop, request: Request, console: Console) -> None:
    """Say that the runtime is slow, or that the text encoder does not read the whole prompt."""
    from mtu_export.bundle import runner

    if loop.slow is not None:
        console.warn(loop.slow)
    unread = runner.truncated_text(loop, request.prompt)
    if unread:
        quoted = repr(unread[:_MAX_QUOTED]) + (" ..." if len(unread) > _MAX_QUOTED else "")
        console.warn(f"the prompt is longer than the text encoder reads; left out: {quoted}")


def _generate(
    loop: Loop, request: Request, output: Path, previews: dict[int, Path], console: Console
) -> Generation:
    """Make the picture and write it, and each preview on the way."""
    from mtu_export.bundle import images, runner

    written: list[Path] = []
    try:
        with console.progress("passes") as advance:

            def progress(number: int, count: int, latent: np.ndarray) -> None:
                advance(number, count)
                if number in previews:
                    images.save(runner.preview(loop, request, latent), previews[number])
                    written.append(previews[number])

            picture = runner.generate(loop, request, progress)
        images.save(picture.image, output)
    except KeyboardInterrupt:
        if not written:
            raise
        raise Interrupted(
            f"interrupted; no {output.name}, the previews up to {written[-1].name} stay"
        ) from None
    return picture


def _previews(loop: Loop, request: Request, output: Path, every: int | None) -> dict[int, Path]:
    """Where the decoded latent goes, ``<output>-<pass>.png``, by the number of the pass."""
    schedule = loop.schedules.get((request.steps, request.strength))
    if every is None or schedule is None:
        return {}
    return {
        number: output.with_name(f"{output.stem}-{number:03d}{output.suffix}")
        for number in range(every, len(schedule.passes), every)
    }
