"""Whether the parts of a bundle fit together in the loop of a task.

Decided from the manifest and the constants, before any part is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtu_export.bundle.paths import MANIFEST
from mtu_export.spec import BundleError, Task, TensorSpec

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle, Part
    from mtu_export.bundle.manifest import Text

_LARGEST_BATCH = 64
_LONGEST = 1024
"""Tokens of a prompt."""

Shape = tuple[int, ...]


def validate_wiring(bundle: Bundle, task: Task, constants: Mapping[str, np.ndarray]) -> None:
    """Refuse sizes, parts, text and constants with which this task's loop cannot run.

    Raises ``BundleError``, which names the part.
    """
    image, latent_record = bundle.manifest.image, bundle.manifest.latent
    size, factor = (image.height, image.width), latent_record.factor
    if size[0] % factor or size[1] % factor:
        raise BundleError(f"{MANIFEST}: image and latent: {size} is not a multiple of {factor}")
    pixels = (3, *size)
    latent = (latent_record.channels, size[0] // factor, size[1] // factor)
    if task.encodes_image:
        _validate_vae(_part(bundle, "vae_encoder", task), pixels, latent)
        for entry in task.conditioning:
            if entry.encodes_image and entry.channels != latent[0]:
                raise BundleError(
                    f"{MANIFEST}: task {task.name!r}: conditioning {entry.kind!r} has "
                    f"{entry.channels} channels, the latent {latent[0]}"
                )
    _validate_vae(_part(bundle, "vae_decoder", task), latent, pixels)
    _validate_text(bundle, task, _text_inputs(bundle, task, latent), constants)


def _part(bundle: Bundle, component: str, task: Task) -> Part:
    """A part that the task's loop runs; refuses one without an entry for the task."""
    part = bundle.part(component)
    part.entry_of(task.name)
    return part


def _validate_vae(part: Part, inputs: Shape, outputs: Shape) -> None:
    actual = [[(s.shape, s.dtype) for s in side] for side in (part.inputs, part.outputs)]
    expected = [[((1, *shape), "float32")] for shape in (inputs, outputs)]
    if actual != expected:
        raise BundleError(
            f"{MANIFEST}: {part.component} must make float32 {[1, *outputs]} of {[1, *inputs]}"
        )


def _text_inputs(bundle: Bundle, task: Task, latent: Shape) -> Sequence[TensorSpec]:
    """The text inputs of the UNet, after its other inputs and its output are checked."""
    part = _part(bundle, "unet", task)
    where = f"{MANIFEST}: unet"
    inputs = part.inputs_of(task.name)
    if len(inputs) < 3 or len({spec.name for spec in inputs}) < len(inputs):
        raise BundleError(f"{where} must have sample, timestep and text inputs")
    sample, timestep, *text = inputs
    batch, wide = sum(sample.shape[:1]), (latent[0] + task.channels, *latent[1:])
    if sample.shape != (batch, *wide) or not 1 <= batch <= _LARGEST_BATCH:
        raise BundleError(f"{where}: the first input must be [batch, {_list(wide)}]")
    if timestep.shape != (1,):
        raise BundleError(f"{where}: the second input must be a timestep, [1]")
    if [spec.shape for spec in part.outputs] != [(batch, *latent)]:
        raise BundleError(f"{where}: the output must be [{batch}, {_list(latent)}]")
    if any(spec.shape[:1] != (batch,) or len(spec.shape) < 2 for spec in text):
        raise BundleError(f"{where}: the batch of a text input must be {batch}")
    if any(spec.dtype != "float32" for spec in (*inputs, *part.outputs)):
        raise BundleError(f"{where}: inputs and output must be float32")
    return text


def _list(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def _validate_text(
    bundle: Bundle, task: Task, inputs: Sequence[TensorSpec], constants: Mapping[str, np.ndarray]
) -> None:
    """Each text input comes from a constant or from outputs of text encoders, in its shape."""
    text = bundle.manifest.text
    if text is None:
        raise BundleError(f"{MANIFEST}: no text: nothing gives the UNet's text inputs")
    for spec in inputs:
        shape = (1, *spec.shape[1:])
        if f"sizes/{spec.name}" in constants:
            _validate_constant(constants, f"sizes/{spec.name}", shape)
            continue
        if task.guidance.kind != "none":
            _validate_constant(constants, f"empty/{spec.name}", shape)
        if task.prompt is not None:
            _validate_constant(constants, f"prompt/{task.name}/{spec.name}", shape)
        elif _joined(bundle, task, text, spec.name) != shape:
            raise BundleError(
                f"{MANIFEST}: text: no outputs make the UNet's input {spec.name[:80]!r}, "
                f"[{_list(shape)}]"
            )


def _validate_constant(constants: Mapping[str, np.ndarray], name: str, shape: Shape) -> None:
    value = constants.get(name)
    if value is None or value.shape != shape or value.dtype != np.float32:
        actual = "missing" if value is None else f"{value.dtype} [{_list(value.shape)}]"
        raise BundleError(
            f"constants.safetensors: {name[:80]!r} must be float32 [{_list(shape)}], it is {actual}"
        )


def _joined(bundle: Bundle, task: Task, text: Text, name: str) -> Shape | None:
    """Shape of the outputs that are joined to an input; None where they do not fit together."""
    shapes = []
    for source in text.inputs.get(name, ()):
        component = source.component
        if component not in text.tokenizers or not component.startswith("text_encoder"):
            return None
        part = _part(bundle, component, task)
        outputs = {spec.name: spec.shape for spec in part.outputs}
        inputs = [spec.shape for spec in part.inputs]
        if len(inputs) != 1 or len(inputs[0]) != 2 or not 3 <= inputs[0][-1] <= _LONGEST:
            raise BundleError(
                f"{MANIFEST}: {component} must take ids [1, length] alone, length 3 to {_LONGEST}"
            )
        if len(outputs.get(source.output, ())) < 2:
            return None
        shapes.append(outputs[source.output])
    if not shapes or len({shape[:-1] for shape in shapes}) != 1:
        return None
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
