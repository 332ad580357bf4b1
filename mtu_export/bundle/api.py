"""What scripts, notebooks and the command line do with a bundle: verify it, make pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtu_export import bundle
from mtu_export.bundle import Bundle, denoising, images, runner, verification
from mtu_export.bundle.denoising import Request
from mtu_export.bundle.runner import Generation, Loop, Progress
from mtu_export.spec import Guidance, PlanError, Task, Verdict
from mtu_export.spec.options import RunOptions, VerifyOptions

Warn = Callable[[str], None]
"""Called with one line that the user should read."""


def verify(
    folder: Bundle | str | Path, options: VerifyOptions | None = None, **values: Any
) -> list[Verdict]:
    """Run every artefact of a bundle against its goldens; ``values`` are of ``VerifyOptions``.

    A verdict below its floor is returned, not raised. Raises ``BundleError``, ``PlanError`` and
    ``ToolchainError``.
    """
    options = options or VerifyOptions(**values)
    return verification.verify_bundle(_read(folder), options.min_psnr, options.runner)


def run(
    folder: Bundle | str | Path,
    options: RunOptions | None = None,
    *,
    progress: Progress = lambda *_: None,
    **values: Any,
) -> Generation:
    """Make a picture with a bundle, in its own runtime; ``values`` are of ``RunOptions``.

    >>> picture = run("edit-onnx-int8", prompt="make it red", image="in.png")  # doctest: +SKIP
    >>> save_image(picture.image, "out.png")  # doctest: +SKIP

    Raises ``BundleError``, ``PlanError``, ``ParityError`` and ``ToolchainError``.
    """
    options = options or RunOptions(**values)
    loop = runner.open_loop(_read(folder), options.task)
    return runner.generate(loop, make_request(loop, options), progress)


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Write a picture [1, 3, H, W] in −1..1 as PNG, JPEG or WebP, by the suffix of ``path``."""
    images.check_suffix(Path(path))
    images.save(image, Path(path))


def _read(folder: Bundle | str | Path) -> Bundle:
    return folder if isinstance(folder, Bundle) else bundle.read(Path(folder))


# --------------------------------------------------------------------------------- a request


def make_request(loop: Loop, options: RunOptions, warn: Warn = lambda _: None) -> Request:
    """The request of a task's loop; refuses missing inputs and those that the task does not take.

    ``warn`` is told of what is legal but probably unintended. Raises ``PlanError``.
    """
    task = loop.task
    _check_inputs(task, options)
    noise = _noise(loop, options)
    height, width = loop.size
    image = None if options.image is None else images.read(Path(options.image))
    mask = None if options.mask is None else images.read(Path(options.mask))
    if image is not None and mask is not None:
        sizes = [images.upright_size(picture) for picture in (image, mask)]
        if not images.same_shape(*sizes):
            warn(
                f"the image has {sizes[0][0]} x {sizes[0][1]} pixels, the mask {sizes[1][0]} x "
                f"{sizes[1][1]}: each is cropped to fit by itself, so they do not match"
            )
    return Request(
        prompt=options.prompt or "",
        noise=noise,
        steps=task.steps if options.steps is None else options.steps,
        image=None if image is None else images.fit(image, width, height, loop.filter),
        mask=None if mask is None else images.fit_mask(mask, width, height),
        guidance=_guidance(task.guidance, options),
    )


def _check_inputs(task: Task, options: RunOptions) -> None:
    """Refuse an image, mask or prompt that is missing, or that the task does not take."""
    needs = {"image": task.needs_image, "mask": task.needs_mask}
    for name, is_needed in needs.items():
        value = getattr(options, name)
        if is_needed and value is None:
            raise PlanError(f"task {task.name!r} needs --{name} FILE")
        if value is not None and not is_needed:
            raise PlanError(f"task {task.name!r} takes no --{name}")
    if task.prompt is None and options.prompt is None:
        raise PlanError(f"task {task.name!r} needs --prompt TEXT")
    if task.prompt is not None and options.prompt is not None:
        raise PlanError(f"task {task.name!r} has a prompt of its own, {task.prompt!r}")


def _noise(loop: Loop, options: RunOptions) -> np.ndarray:
    """Normal noise [1, C, h, w] of a seed or of a ``.npy`` file."""
    shape = (1, *loop.latent)
    if options.noise is None:
        return denoising.noise(shape, options.seed or 0)
    path = Path(options.noise)
    name = f"--noise {str(path)[:200]}"
    try:
        if path.exists() and not path.is_file():
            raise PlanError(f"{name} is not a file")
        # Mapped: a header with a wrong size allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not a .npy file of numbers"
        raise PlanError(f"{name}: {reason}") from None
    if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (shape, np.float32):
        raise PlanError(f"{name} must hold one float32 array of shape {list(shape)}")
    if not np.isfinite(array).all():
        raise PlanError(f"{name} holds NaN or Inf")
    return np.ascontiguousarray(array)


def _guidance(default: Guidance, options: RunOptions) -> Guidance:
    """The task's guidance with the user's scales; refuses a scale that its kind does not have."""
    scales = {
        "text": ("--guidance", options.guidance),
        "image": ("--image-guidance", options.image_guidance),
    }
    for name, (flag, value) in scales.items():
        if value is not None and getattr(default, name) is None:
            raise PlanError(f"{flag}: guidance of kind {default.kind!r} has no such scale")
    chosen = {name: value for name, (_, value) in scales.items() if value is not None}
    return replace(default, **chosen)
