"""What scripts, notebooks and the command line do with a bundle: verify it, make pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from mtu_export import bundle
from mtu_export.bundle import Bundle, TaskRecord, images, runner, sampler, verification
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.runner import Generation, Loop, Progress
from mtu_export.spec import Guidance, PlanError, Verdict, shown
from mtu_export.spec.flow import PictureRequest
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
    task, inputs = loop.task, _inputs(loop.task, options)
    _check_prompt(task, options)
    _check_loop(task, options)
    pictures = {name: images.read(Path(inputs[name])) for name in task.inputs.pictures}
    _warn_of_shapes(pictures, warn)
    height, width = loop.size
    request = Request(
        prompt=options.prompt or "",
        negative_prompt=options.negative_prompt,
        noise=None,
        steps=task.steps if options.steps is None else options.steps,
        strength=task.strength if options.strength is None else options.strength,
        pictures={
            name: _fitted(picture, task.inputs.pictures[name], width, height)
            for name, picture in pictures.items()
        },
        tensors={name: _array(name, inputs[name]) for name in task.inputs.tensors},
        numbers={n: _number(n, inputs[n]) for n in task.inputs.numbers if n in inputs},
        guidance=_guidance(task.scales, options),
    )
    return replace(request, noise=_noise(loop, request, options))


def _inputs(task: TaskRecord, options: RunOptions) -> dict[str, str]:
    """What the user gives by name; refuses an input that is missing or that the task has not."""
    named = {name: getattr(options, name) for name in ("image", "mask")}
    given = {name: str(value) for name, value in named.items() if value is not None}
    given |= dict(text.split("=", 1) for text in options.input)
    inputs = task.inputs
    for name in given:
        if name not in {*inputs.pictures, *inputs.tensors, *inputs.numbers}:
            raise PlanError(f"task {task.name!r} takes no {_flag(name)}")
    for name in (*inputs.pictures, *inputs.tensors):
        if name not in given:
            value = " FILE" if name in named else "FILE"
            raise PlanError(f"task {task.name!r} needs {_flag(name)}{value}")
    if options.strength is not None and task.strength is None:
        raise PlanError(f"task {task.name!r} takes no --strength: it does not start from a picture")
    return given


def _flag(name: str) -> str:
    return f"--{name}" if name in ("image", "mask") else f"--input {name}="


def _check_prompt(task: TaskRecord, options: RunOptions) -> None:
    """Refuse a prompt that is missing, or that the task does not take."""
    if task.takes_prompt and options.prompt is None:
        raise PlanError(f"task {task.name!r} needs --prompt TEXT")
    if not task.takes_prompt and options.prompt is not None:
        reason = "takes no prompt" if task.prompt is None else f"has its own, {task.prompt!r}"
        raise PlanError(f"task {task.name!r} {reason}")
    if options.negative_prompt is not None and not task.takes_negative_prompt:
        raise PlanError(
            f"task {task.name!r} takes no --negative-prompt: it has no guidance by text"
        )


def _check_loop(task: TaskRecord, options: RunOptions) -> None:
    """Refuse what only a loop takes where the task has none."""
    for name in ("steps", "seed", "noise"):
        if getattr(options, name) is not None and not task.flow.has_loop:
            raise PlanError(f"task {task.name!r} takes no --{name}: it has no loop")


def _warn_of_shapes(pictures: Mapping[str, Image], warn: Warn) -> None:
    """Pictures of other shapes than the first are cropped otherwise, so they do not match it."""
    sizes = {name: images.upright_size(picture) for name, picture in pictures.items()}
    first, size = next(iter(sizes.items()), ("", (1, 1)))
    for name, other in sizes.items():
        if not images.same_shape(size, other):
            warn(
                f"the {first} has {size[0]} x {size[1]} pixels, the {name} {other[0]} x "
                f"{other[1]}: each is cropped to fit by itself, so they do not match"
            )


def _fitted(picture: Image, record: PictureRequest, width: int, height: int) -> np.ndarray:
    if record.kind == "mask":
        return images.fit_mask(picture, width, height)
    grey = record.kind == "grey"
    return images.fit(picture, width, height, record.filter, record.range, grey=grey)


def _array(name: str, path: str) -> np.ndarray:
    """A float32 array of a ``.npy`` file, C-contiguous."""
    return _read_array(f"--input {name}={path[:200]}", Path(path))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise PlanError(f"--input {name}: {shown(text)} is no number") from None
    return value


def _noise(loop: Loop, request: Request, options: RunOptions) -> np.ndarray | None:
    """Normal noise [1 + P, C, h, w] or [1, C, h, w], of a seed or of a ``.npy`` file."""
    if loop.latent is None:
        return None
    shape = (1 + runner.schedule_of(loop, request).draws, *loop.latent)
    if options.noise is None:
        return sampler.noise(shape, options.seed or 0)
    name = f"--noise {str(options.noise)[:200]}"
    array = _read_array(name, Path(options.noise))
    if array.shape[1:] == shape[1:] and len(array) > shape[0] == 1:
        array = array[:1]  # the rows of passes that this table does not draw
    if array.shape != shape:
        raise PlanError(f"{name} must hold one float32 array of shape {list(shape)}")
    return array


def _read_array(name: str, path: Path) -> np.ndarray:
    """A finite float32 array of a ``.npy`` file; ``name`` begins the message."""
    try:
        if path.exists() and not path.is_file():
            raise PlanError(f"{name} is not a file")
        # Mapped: a header with a wrong size allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not a .npy file of numbers"
        raise PlanError(f"{name}: {reason}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise PlanError(f"{name} must hold one float32 array")
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
