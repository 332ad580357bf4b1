"""`run`: a bundle makes a picture on this host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.cli.words import Force, Json, Verbose, print_json
from mtu_export.console import Console
from mtu_export.spec import Guidance, OutputExists, PlanError

if TYPE_CHECKING:
    import numpy as np

    from mtu_export.generate import Loop, Request


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
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 0,
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
    """Make a picture with a bundle: its own runtime, no PyTorch, no checkpoint."""
    import time

    from mtu_export import bundle, generate, pictures

    pictures.check_suffix(output)
    if output.exists() and not force:
        raise OutputExists(output)
    if save_every is not None and save_every < 1:
        raise PlanError(f"--save-every must be 1 or more, got {save_every}")
    console = Console(verbose=verbose)
    with console.quiet():
        with console.stage(f"read {folder}"):
            found = generate.loop(bundle.read(folder), task)
        request = _request(found, prompt, image, mask, steps, _noise(found, seed, noise))
        request = replace(
            request, guidance=_guidance(found.task.guidance, guidance, image_guidance)
        )
        if found.slow is not None:
            console.warn(found.slow)
        lost = generate.cut(found, request.prompt)
        if lost:
            console.warn(f"the prompt is longer than 77 tokens; cut: {lost!r}")
        start = time.monotonic()
        with console.progress("passes") as advance:
            previews = _previews(found, output, save_every)

            def progress(number: int, count: int, latent: np.ndarray) -> None:
                advance(number, count)
                previews(number, count, latent)

            latents, made = generate.picture(found, request, progress)
        seconds = time.monotonic() - start
        pictures.save(made, output)
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
) -> Request:
    """The request of the words; refuses what the task needs and lacks, or does not take."""
    from mtu_export import generate, pictures

    task = found.task
    kinds = {entry.kind for entry in task.conditioning}
    wants = {"image": bool(kinds - {"mask"}), "mask": any("mask" in kind for kind in kinds)}
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
    return generate.Request(
        prompt=prompt if prompt is not None else "",
        noise=noise,
        steps=task.steps if steps is None else steps,
        image=None if image is None else pictures.fit(pictures.read(image), width, height),
        mask=None if mask is None else pictures.fit_mask(pictures.read(mask), width, height),
    )


def _noise(found: Loop, seed: int, path: Path | None) -> np.ndarray:
    """Normal noise [1, C, h, w] of a seed or of a ``.npy`` file."""
    import numpy as np

    from mtu_export import generate

    if not 0 <= seed < 2**32:
        raise PlanError(f"--seed must be from 0 to 2^32 − 1, got {seed}")
    if path is None:
        return generate.noise((1, *found.latent), seed)
    try:
        value = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "no .npy file of numbers"
        raise PlanError(f"--noise {path}: {reason}") from None
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        raise PlanError(f"--noise {path} must hold one float32 array")
    if not np.isfinite(value).all():
        raise PlanError(f"--noise {path} holds NaN or Inf")
    return value


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


def _previews(
    found: Loop, output: Path, every: int | None
) -> Callable[[int, int, np.ndarray], None]:
    """Writes the decoded latent as ``<output>-<pass>.png`` after every so many passes."""
    from mtu_export import generate, pictures

    def preview(number: int, count: int, latent: np.ndarray) -> None:
        if every is not None and number % every == 0 and number < count:
            path = output.with_name(f"{output.stem}-{number:03d}{output.suffix}")
            pictures.save(generate.preview(found, latent), path)

    return preview
