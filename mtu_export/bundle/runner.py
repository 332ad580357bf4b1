"""A task's loop: text, conditioning, guided passes, picture. Shapes and order are bundle.md's.

The mathematics are numpy's; a session (``spec.Session``) runs a part. An export drives them with
PyTorch to make the goldens, :func:`generate` with the parts of a bundle and their own runtime: no
checkpoint is needed then, and torch only where that runtime is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, Part, images, sampler, tokenizer
from mtu_export.bundle.denoising import Request, conditioning, decode, denoiser, named
from mtu_export.spec import (
    Arrays,
    BundleError,
    PlanError,
    Runtime,
    Schedule,
    Session,
    Task,
    ToolchainError,
    UnknownName,
    shown,
)

_FIT, _RANGE, _FILTER = "cover", [-1, 1], "lanczos"
_MASK = {"threshold": 0.5, "resize": "nearest", "masked_image": "image * (mask < 0.5)"}
"""What a manifest may say of pictures and masks."""

Progress = Callable[[int, int, np.ndarray], None]
"""Called after each pass with its number, their count and the latent [1, C, h, w]."""


# --------------------------------------------------------------------------------------- a bundle


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a bundle says of one task's loop, checked to be whole."""

    found: Bundle
    task: Task
    schedules: Mapping[int, Schedule]
    constants: Mapping[str, np.ndarray]
    runtime: Runtime

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        image = self.found.manifest["image"]
        return image["height"], image["width"]

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent."""
        row = self.found.manifest["latent"]
        height, width = (side // row["factor"] for side in self.size)
        return row["channels"], height, width

    @property
    def filter(self) -> str:
        """By which a picture is fitted: a name of ``pictures.FILTERS``."""
        return self.found.manifest["image"].get("filter", _FILTER)

    @property
    def runner(self) -> str:
        """Name and version of the runtime that runs the parts here."""
        runner, reason = self.runtime.runner()
        return runner or str(reason)

    @property
    def slow(self) -> str | None:
        """What to know before waiting for that runtime, if anything."""
        return self.runtime.slow


def open_loop(found: Bundle, name: str | None = None, runtime: Runtime | None = None) -> Loop:
    """The loop of a task (the only one where none is named) in a runtime, else the default one.

    Raises ``PlanError`` for an unknown task, ``BundleError`` where parts or constants are missing
    or do not fit together, or where the manifest asks for what :mod:`pictures` does not do.
    """
    tasks = {task.name: task for task in found.tasks}
    if name is None and len(tasks) > 1:
        raise PlanError(f"name a --task; this bundle has: {', '.join(tasks)}")
    if name is not None and name not in tasks:
        raise UnknownName("task", name, list(tasks))
    task = tasks[name] if name is not None else next(iter(tasks.values()))
    there = {part.component for part in found.parts}
    missing = [part for part in found.needs(task.name) if part not in there]
    if missing:
        raise BundleError(
            f"{found.folder} has no {', '.join(missing)}: task {task.name!r} needs it"
        )
    tables = found.schedules
    if not tables or not found.manifest.get("text"):
        raise BundleError(f"{found.folder}: its manifest has no loop")
    _check_words_of(found.manifest, task)
    constants = bundle.read_constants(found)
    bundle.validate_wiring(found, task, constants)
    return Loop(
        found=found,
        task=task,
        schedules=tables,
        constants=constants,
        runtime=runtime or targets.runtime(targets.load(found.manifest["target"])),
    )


def _check_words_of(manifest: Any, task: Task) -> None:
    """Refuse a target, or a way to fit pictures and masks, that is not known here."""
    image, target = manifest["image"], manifest["target"]
    if target not in targets.names():
        raise BundleError(f"{bundle.MANIFEST}: unknown target {shown(target)}")
    wanted = [("image", "fit", _FIT), ("image", "range", _RANGE)]
    if task.needs_mask:
        wanted += [("mask", key, value) for key, value in _MASK.items()]
    for key, name, value in wanted:
        said = manifest[key].get(name, value)
        if said != value:
            raise BundleError(f"{bundle.MANIFEST}: {key}: {name} {shown(said)}; legal: {value}")
    said = image.get("filter", _FILTER)
    if not isinstance(said, str) or said not in images.FILTERS:
        legal = ", ".join(images.FILTERS)
        raise BundleError(f"{bundle.MANIFEST}: image: filter {shown(said)}; legal: {legal}")


class Generation(NamedTuple):
    """``latents`` [1, C, h, w] after each pass; ``image`` [1, 3, H, W] in −1..1, not clipped."""

    latents: list[np.ndarray]
    image: np.ndarray


def generate(found: Loop, request: Request, progress: Progress = lambda *_: None) -> Generation:
    """Run a task's loop for one request.

    Parts are loaded one after the other, used and let go. Raises ``PlanError`` for a request that
    the task cannot serve, ``BundleError`` for a part that is not what the manifest says of it, and
    ``ParityError`` for one that gives NaN or Inf.
    """
    task, manifest = found.task, found.found.manifest
    schedule = _schedule(found, request.steps)
    _check_shape("noise", request.noise, (1, *found.latent))
    _check_shape("image", request.image, (1, 3, *found.size))
    _check_shape("mask", request.mask, (1, 1, *found.size))
    scaling = manifest["latent"]["scaling_factor"]
    words = _words(found, request.prompt)
    channels = conditioning(task, request, _Encoder(found), scaling, found.latent[1:])
    unet, decoder = found.found.part("unet"), found.found.part("vae_decoder")
    guidance = request.guidance or task.guidance
    inputs = unet.inputs_of(task.name)
    denoise = denoiser(_open(found, unet), inputs, guidance, words, channels)
    latents: list[np.ndarray] = []
    for x in sampler.latents(schedule, request.noise, denoise):
        latents.append(x)
        progress(len(latents), len(schedule.passes), x)
    del denoise
    image = decode(_open(found, decoder), decoder.inputs[0], latents[-1], scaling)
    return Generation(latents, image)


def preview(found: Loop, latent: np.ndarray) -> np.ndarray:
    """The picture of a latent in the middle of a loop."""
    decoder = found.found.part("vae_decoder")
    scaling = found.found.manifest["latent"]["scaling_factor"]
    return decode(_open(found, decoder), decoder.inputs[0], latent, scaling)


def truncated_text(found: Loop, prompt: str) -> str:
    """What of a prompt no text encoder sees, as it has room for 77 tokens; usually nothing."""
    if found.task.prompt is not None:
        return ""
    lost = [words.encode(prompt)[1] for words in _tokenizers(found).values()]
    return max(lost, key=len, default="")


def _schedule(found: Loop, steps: int) -> Schedule:
    if steps not in found.schedules:
        legal = ", ".join(map(str, sorted(found.schedules)))
        raise PlanError(f"the bundle has no table for {steps} steps; it has: {legal}")
    return found.schedules[steps]


def _check_shape(name: str, value: np.ndarray | None, wanted: tuple[int, ...]) -> None:
    if value is not None and (value.shape != wanted or value.dtype != np.float32):
        raise PlanError(
            f"{name} must be float32 {list(wanted)}, got {value.dtype} {list(value.shape)}"
        )


def _open(found: Loop, part: Part) -> Session:
    """A part in its runtime; refuses a file whose inputs and outputs are not the manifest's."""
    target, entry = targets.load(found.found.manifest["target"]), part.entry_of(found.task.name)
    runner, reason = found.runtime.runner()
    if runner is None:
        raise ToolchainError(f"this bundle cannot run here: {reason}")
    structure = target.structure(part.path, entry)
    if (structure.inputs, structure.outputs) != (part.inputs_of(found.task.name), part.outputs):
        raise BundleError(f"{part.path.name}: inputs and outputs are not those of the manifest")
    session = found.runtime.open(part.path, entry)
    wanted = {spec.name: spec.shape for spec in part.outputs}

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = session(inputs)
        if {name: value.shape for name, value in outputs.items()} != wanted:
            raise BundleError(f"{part.path.name}: it gave other outputs than the manifest says")
        return outputs

    return run


class _Encoder:
    """The VAE encoder of a bundle, loaded when it is first asked for."""

    def __init__(self, found: Loop) -> None:
        self.found = found
        self.session: Session | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        part = self.found.found.part("vae_encoder")
        self.session = self.session or _open(self.found, part)
        return self.session({part.inputs[0].name: image})[part.outputs[0].name]


def _tokenizers(found: Loop) -> dict[str, tokenizer.Tokenizer]:
    """The tokenizer of each text encoder; its ids are those that the manifest says of it."""
    manifest, made = found.found.manifest, {}
    for name, path in manifest["text"]["tokenizers"].items():
        length = found.found.part(name).inputs[0].shape[-1]
        words = tokenizer.load(bundle.inside(found.found.folder, path), length, BundleError)
        own = {"bos": words.bos, "eos": words.eos, "pad": words.pad, "length": length}
        for row in manifest["tokenizers"]:
            if row["path"] == path and any(row[key] != value for key, value in own.items()):
                raise BundleError(f"{bundle.MANIFEST}: tokenizers: {path!r} has {own}")
        made[name] = words
    return made


def _words(found: Loop, prompt: str) -> tuple[Arrays, Arrays]:
    """The UNet's text inputs [1, ...] for the prompt and for the empty prompt."""
    constants, task = found.constants, found.task
    sizes = named(constants, "sizes/")
    empty = {**named(constants, "empty/"), **sizes}
    if task.prompt is not None:
        return {**named(constants, f"prompt/{task.name}/"), **sizes}, empty
    outputs: dict[tuple[str, str], np.ndarray] = {}
    for component, words in _tokenizers(found).items():
        part = found.found.part(component)
        ids, _ = words.encode(prompt)
        for name, value in _open(found, part)({part.inputs[0].name: ids}).items():
            outputs[component, name] = value
    text = found.found.manifest["text"]
    given = {
        name: np.concatenate([outputs[row["component"], row["output"]] for row in rows], -1)
        for name, rows in text["inputs"].items()
    }
    return {**given, **sizes}, empty
