"""`run`: a bundle makes a picture on this host."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.console import Console
from mtu_export.cli.options import Force, Json, Verbose, print_json
from mtu_export.spec import Guidance, Interrupted, OutputExists, PlanError, ResourceError

if TYPE_CHECKING:
    import numpy as np

    from mtu_export.bundle.denoising import Request
    from mtu_export.bundle.runner import Loop

_SHOWN = 80
"""Letters of a prompt that a warning repeats."""


def run(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the picture shows.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Task, where there are several.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Picture to start from.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="White where to repaint.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Default: the task's own.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the noise; default: 0.")
    ] = None,
    noise: Annotated[
        Path | None, typer.Option("--noise", metavar="FILE", help="Noise of a .npy file instead.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Scale of the text; default: the task's.")
    ] = None,
    image_guidance: Annotated[
        float | None, typer.Option("--image-guidance", help="Scale of the image.")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option("--save-every", metavar="N", help="Write a preview after every N passes."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a picture with a bundle: its own runtime and no checkpoint.

    ONNX Runtime needs no PyTorch. Image and mask are turned upright and cut to fit the bundle's
    size, each on its own.
    """
    import time

    from mtu_export import bundle
    from mtu_export.bundle import images, runner

    images.check_suffix(output)
    _check_place(output, force)
    if save_every is not None and save_every < 1:
        raise PlanError(f"--save-every must be 1 or more, got {save_every}")
    console = Console(verbose=verbose)
    with console.quiet():
        with console.stage(f"read {folder}"):
            found = runner.open_loop(bundle.read(folder), task)
        given = _noise(found, seed, noise)
        request = _request(found, prompt, image, mask, steps, given, console.warn)
        request = replace(
            request, guidance=_guidance(found.task.guidance, guidance, image_guidance)
        )
        if found.slow is not None:
            console.warn(found.slow)
        lost = runner.truncated_text(found, request.prompt)
        if lost:
            said = repr(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
            console.warn(f"the prompt is longer than the text encoder reads; cut: {said}")
        paths = _previews(found, request.steps, output, save_every)
        for path in paths.values():
            _check_place(path, force)
        start = time.monotonic()
        written: list[Path] = []
        try:
            with console.progress("passes") as advance:

                def progress(number: int, count: int, latent: np.ndarray) -> None:
                    advance(number, count)
                    if number in paths:
                        images.save(runner.preview(found, latent), paths[number])
                        written.append(paths[number])

                latents, made = runner.generate(found, request, progress)
            images.save(made, output)
        except KeyboardInterrupt:
            if not written:
                raise
            raise Interrupted(
                f"interrupted; no {output.name}, the previews up to {written[-1].name} stay"
            ) from None
        seconds = time.monotonic() - start
    row: dict[str, Any] = {"picture": str(output), "bundle": str(folder), "task": found.task.name}
    row |= {"steps": request.steps, "passes": len(latents), "seconds": round(seconds, 2)}
    row["runner"] = found.runner
    if as_json:
        print_json(row)
    else:
        print(
            f"{output}: {found.task.name}, {request.steps} steps, {seconds:.1f} s, {found.runner}"
        )


def _request(
    found: Loop,
    prompt: str | None,
    image: Path | None,
    mask: Path | None,
    steps: int | None,
    noise: np.ndarray,
    warn: Callable[[str], None],
) -> Request:
    """The request of the words; refuses what the task needs and lacks, or does not take."""
    from mtu_export.bundle import denoising, images

    task = found.task
    wants = {"image": task.needs_image, "mask": task.needs_mask}
    for name, given in (("image", image), ("mask", mask)):
        if wants[name] and given is None:
            raise PlanError(f"task {task.name!r} needs --{name} FILE")
        if given is not None and not wants[name]:
            raise PlanError(f"task {task.name!r} takes no --{name}")
    if task.prompt is None and prompt is None:
        raise PlanError(f"task {task.name!r} needs --prompt TEXT")
    if task.prompt is not None and prompt is not None:
        raise PlanError(f"task {task.name!r} has a prompt of its own, {task.prompt!r}")
    height, width = found.size
    picture = None if image is None else images.read(image)
    stencil = None if mask is None else images.read(mask)
    if picture is not None and stencil is not None:
        sizes = [images.upright_size(row) for row in (picture, stencil)]
        if not images.same_shape(*sizes):
            warn(
                f"the image has {sizes[0][0]} x {sizes[0][1]} pixels, the mask {sizes[1][0]} x "
                f"{sizes[1][1]}: each is cut to fit on its own, so they do not lie on one another"
            )
    return denoising.Request(
        prompt=prompt if prompt is not None else "",
        noise=noise,
        steps=task.steps if steps is None else steps,
        image=None if picture is None else images.fit(picture, width, height, found.filter),
        mask=None if stencil is None else images.fit_mask(stencil, width, height),
    )


def _noise(found: Loop, seed: int | None, path: Path | None) -> np.ndarray:
    """Normal noise [1, C, h, w] of a seed or of a ``.npy`` file."""
    import numpy as np

    from mtu_export.bundle import denoising

    if seed is not None and path is not None:
        raise PlanError("--noise FILE is the noise itself; give no --seed")
    if not 0 <= (seed or 0) < 2**32:
        raise PlanError(f"--seed must be from 0 to 2^32 − 1, got {seed}")
    shape = (1, *found.latent)
    if path is None:
        return denoising.noise(shape, seed or 0)
    name = f"--noise {str(path)[:200]}"
    try:
        if path.exists() and not path.is_file():
            raise PlanError(f"{name} is no file")
        # Mapped: a header that lies about the size allocates nothing.
        value = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no .npy file of numbers"
        raise PlanError(f"{name}: {reason}") from None
    if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != (shape, np.float32):
        raise PlanError(f"{name} must hold one float32 array of shape {list(shape)}")
    if not np.isfinite(value).all():
        raise PlanError(f"{name} holds NaN or Inf")
    return np.ascontiguousarray(value)


def _guidance(own: Guidance, text: float | None, image: float | None) -> Guidance:
    """The task's guidance with other scales; refuses a scale that its kind has not."""
    words = {"text": text, "image": image}
    flags = {"text": "--guidance", "image": "--image-guidance"}
    for name, value in words.items():
        if value is None:
            continue
        if getattr(own, name) is None:
            raise PlanError(f"{flags[name]}: guidance of kind {own.kind!r} has no such scale")
        if not abs(value) <= 100:
            raise PlanError(f"{flags[name]} must be from −100 to 100, got {value}")
    return replace(own, **{name: value for name, value in words.items() if value is not None})


def _previews(found: Loop, steps: int, output: Path, every: int | None) -> dict[int, Path]:
    """Where the decoded latent goes, ``<output>-<pass>.png``, by the number of the pass."""
    table = found.schedules.get(steps)
    if every is None or table is None:
        return {}
    return {
        number: output.with_name(f"{output.stem}-{number:03d}{output.suffix}")
        for number in range(every, len(table.passes), every)
    }


def _check_place(path: Path, force: bool) -> None:
    """Refuse, before any work, a file that is there, or a place that no file can have."""
    try:
        if path.is_dir():
            raise PlanError(f"{str(path)[:200]!r} is a folder")
        if not force and (path.exists() or path.is_symlink()):
            raise OutputExists(path)
        home = next(row for row in (path.parent, *path.parent.parents) if row.exists())
    except OSError as error:
        raise PlanError(f"cannot write {str(path)[:200]!r}: {error.strerror}") from None
    if not home.is_dir():
        raise PlanError(f"cannot write {str(path)[:200]!r}: {str(home)[:200]!r} is no folder")
    if not os.access(home, os.W_OK):
        raise ResourceError(f"cannot write {str(path)[:200]!r}: no permission")
