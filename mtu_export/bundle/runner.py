"""The loop of a bundle: text, conditioning, guided passes, decoding (``runtime/README.md``).

The parts run in the target's runtime, so no checkpoint is needed, and torch only where that runtime
uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, Part, sampler, tokenizer
from mtu_export.bundle.denoising import Request, conditioning, decode, denoiser, named
from mtu_export.bundle.structure import structure_of
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

Progress = Callable[[int, int, np.ndarray], None]
"""Called after each pass with its number, their count and the latent [1, C, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One task of a bundle, checked to have all that its loop needs."""

    bundle: Bundle
    task: Task
    schedules: Mapping[int, Schedule]
    constants: Mapping[str, np.ndarray]
    runtime: Runtime

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        image = self.bundle.manifest.image
        return image.height, image.width

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent."""
        latent = self.bundle.manifest.latent
        height, width = (side // latent.factor for side in self.size)
        return latent.channels, height, width

    @property
    def filter(self) -> str:
        """The filter that fits a picture: a name of ``images.FILTERS``."""
        return self.bundle.manifest.image.filter

    @property
    def runner(self) -> str:
        """Name and version of the runtime that runs the parts here."""
        runner, reason = self.runtime.runner()
        return runner or str(reason)

    @property
    def slow(self) -> str | None:
        """A warning that this runtime is slow, or None."""
        return self.runtime.slow


def open_loop(source: Bundle, name: str | None = None, runtime: Runtime | None = None) -> Loop:
    """The loop of a task (the only one where none is named) in a runtime, else the default one.

    Raises ``PlanError`` for an unknown task, ``BundleError`` where parts or constants are missing
    or do not fit together, or an unknown target.
    """
    tasks = {task.name: task for task in source.tasks}
    if name is None and len(tasks) > 1:
        raise PlanError(f"name a --task; this bundle has: {', '.join(tasks)}")
    if name is not None and name not in tasks:
        raise UnknownName("task", name, list(tasks))
    task = tasks[name] if name is not None else next(iter(tasks.values()))
    components = {part.component for part in source.parts}
    missing = [part for part in source.needs(task.name) if part not in components]
    if missing:
        raise BundleError(
            f"{source.folder} has no {', '.join(missing)}: task {task.name!r} needs it"
        )
    if not source.schedules or source.manifest.text is None:
        raise BundleError(f"{source.folder}: its manifest has no loop")
    if source.manifest.target not in targets.names():
        raise BundleError(f"{bundle.MANIFEST}: unknown target {shown(source.manifest.target)}")
    constants = bundle.read_constants(source)
    bundle.validate_wiring(source, task, constants)
    return Loop(
        bundle=source,
        task=task,
        schedules=source.schedules,
        constants=constants,
        runtime=runtime or targets.runtime(targets.load(source.manifest.target)),
    )


class Generation(NamedTuple):
    """``latents`` [1, C, h, w] after each pass; ``image`` [1, 3, H, W] in −1..1, not clipped."""

    latents: list[np.ndarray]
    image: np.ndarray


def generate(loop: Loop, request: Request, progress: Progress = lambda *_: None) -> Generation:
    """Run a task's loop for one request.

    Parts are loaded, used and released in turn. Raises ``PlanError`` for a request that
    the task cannot serve, ``BundleError`` for a part that is not what the manifest says of it, and
    ``ParityError`` for one that gives NaN or Inf.
    """
    schedule = schedule_of(loop, request.steps)
    denoise = open_denoiser(loop, request)
    latents: list[np.ndarray] = []
    for x in sampler.latents(schedule, request.noise, denoise):
        latents.append(x)
        progress(len(latents), len(schedule.passes), x)
    del denoise
    return Generation(latents, open_decoder(loop)(latents[-1]))


def schedule_of(loop: Loop, steps: int) -> Schedule:
    """The table of a step count; raises ``PlanError`` with those that the bundle has."""
    if steps not in loop.schedules:
        legal = ", ".join(map(str, sorted(loop.schedules)))
        raise PlanError(f"the bundle has no table for {steps} steps; it has: {legal}")
    return loop.schedules[steps]


def open_denoiser(loop: Loop, request: Request) -> sampler.Denoise:
    """The guided denoiser of a request: its text and image are encoded, then the UNet is loaded."""
    _check_shape("noise", request.noise, (1, *loop.latent))
    _check_shape("image", request.image, (1, 3, *loop.size))
    _check_shape("mask", request.mask, (1, 1, *loop.size))
    scaling = loop.bundle.manifest.latent.scaling_factor
    text_inputs = _text_inputs(loop, request.prompt)
    channels = conditioning(loop.task, request, _Encoder(loop), scaling, loop.latent[1:])
    unet = loop.bundle.part("unet")
    guidance = request.guidance or loop.task.guidance
    inputs = unet.inputs_of(loop.task.name)
    return denoiser(_open(loop, unet), inputs, guidance, text_inputs, channels)


def open_decoder(loop: Loop) -> Callable[[np.ndarray], np.ndarray]:
    """The VAE decoder: a latent [1, C, h, w] to its picture [1, 3, H, W]."""
    part = loop.bundle.part("vae_decoder")
    session, scaling = _open(loop, part), loop.bundle.manifest.latent.scaling_factor
    return lambda latent: decode(session, part.inputs[0], latent, scaling)


def preview(loop: Loop, latent: np.ndarray) -> np.ndarray:
    """The picture of an intermediate latent."""
    return open_decoder(loop)(latent)


def truncated_text(loop: Loop, prompt: str) -> str:
    """The text of a prompt beyond what its text encoders read (77 tokens); empty where it fits."""
    if loop.task.prompt is not None:
        return ""
    truncated = [encoder.encode(prompt)[1] for encoder in _tokenizers(loop).values()]
    return max(truncated, key=len, default="")


def _check_shape(name: str, value: np.ndarray | None, expected: tuple[int, ...]) -> None:
    if value is not None and (value.shape != expected or value.dtype != np.float32):
        raise PlanError(
            f"{name} must be float32 {list(expected)}, got {value.dtype} {list(value.shape)}"
        )


def _open(loop: Loop, part: Part) -> Session:
    """A part in its runtime; refuses a file whose inputs and outputs are not the manifest's."""
    entry = part.entry_of(loop.task.name)
    runner, reason = loop.runtime.runner()
    if runner is None:
        raise ToolchainError(f"this bundle cannot run here: {reason}")
    structure_of(loop.bundle.manifest.target, part, loop.task.name)
    session = loop.runtime.open(part.path, entry)
    expected = {spec.name: spec.shape for spec in part.outputs}

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = session(inputs)
        if {name: value.shape for name, value in outputs.items()} != expected:
            raise BundleError(f"{part.path.name}: its outputs are not those of the manifest")
        return outputs

    return run


class _Encoder:
    """The VAE encoder of a bundle, loaded when it is first asked for."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.session: Session | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        part = self.loop.bundle.part("vae_encoder")
        self.session = self.session or _open(self.loop, part)
        return self.session({part.inputs[0].name: image})[part.outputs[0].name]


def _tokenizers(loop: Loop) -> dict[str, tokenizer.Tokenizer]:
    """The tokenizer of each text encoder; its ids are those that the manifest says of it."""
    manifest, tokenizers = loop.bundle.manifest, {}
    assert manifest.text is not None  # an open loop has one
    for name, path in manifest.text.tokenizers.items():
        length = loop.bundle.part(name).inputs[0].shape[-1]
        loaded = tokenizer.load(bundle.inside(loop.bundle.folder, path), length, BundleError)
        ids = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad, "length": length}
        for record in manifest.tokenizers:
            if record.path == path and record.model_dump(exclude={"path"}) != ids:
                raise BundleError(f"{bundle.MANIFEST}: tokenizers: {path!r} has {ids}")
        tokenizers[name] = loaded
    return tokenizers


def _text_inputs(loop: Loop, prompt: str) -> tuple[Arrays, Arrays]:
    """The UNet's text inputs [1, ...] for the prompt and for the empty prompt."""
    constants, task = loop.constants, loop.task
    sizes = named(constants, "sizes/")
    empty = {**named(constants, "empty/"), **sizes}
    if task.prompt is not None:
        return {**named(constants, f"prompt/{task.name}/"), **sizes}, empty
    outputs: dict[tuple[str, str], np.ndarray] = {}
    for component, encoder in _tokenizers(loop).items():
        part = loop.bundle.part(component)
        ids, _ = encoder.encode(prompt)
        for name, value in _open(loop, part)({part.inputs[0].name: ids}).items():
            outputs[component, name] = value
    assert loop.bundle.manifest.text is not None  # an open loop has one
    text_inputs = {
        name: np.concatenate([outputs[each.component, each.output] for each in sources], -1)
        for name, sources in loop.bundle.manifest.text.inputs.items()
    }
    return {**text_inputs, **sizes}, empty
