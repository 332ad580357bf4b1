"""Where the parts of a bundle meet: what one task's loop gives to each and takes from it.

All of it is read off the manifest, before any part is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtu_export.bundle.paths import MANIFEST
from mtu_export.bundle.schema import SOURCE, TEXT, typed
from mtu_export.spec import BundleError, Task, TensorSpec

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle, Part

LARGEST_SIDE = 8192
_MOST_CHANNELS = 1024
_LARGEST_BATCH = 64
_LONGEST = 1024
"""Tokens of a prompt."""


def check_text(manifest: Mapping[str, Any], outputs: Collection[tuple[str, str]]) -> None:
    """Refuse a ``text`` that does not map UNet inputs to outputs, and their encoders to folders.

    ``outputs`` are those of all parts, as component and name; a folder has a hash in ``files``.
    """
    text, where = manifest.get("text"), f"{MANIFEST}: text"
    if text is None:
        return
    typed(text, TEXT, where)
    for name, rows in text["inputs"].items():
        if not isinstance(rows, list) or not rows:
            raise BundleError(f"{where}: inputs: {name[:80]!r} must be a list of outputs")
        for row in rows:
            typed(row, SOURCE, f"{where}: inputs: {name[:80]!r}")
            source = (row["component"], row["output"])
            if source not in outputs or row["component"] not in text["tokenizers"]:
                raise BundleError(f"{where}: inputs: {name[:80]!r} comes from no text encoder")
    listed = [row["path"] for row in manifest.get("files", ())]
    for path in text["tokenizers"].values():
        if not isinstance(path, str) or path not in listed:
            raise BundleError(f"{where}: tokenizers must name folders that files has a hash of")


def check(found: Bundle, task: Task, constants: Mapping[str, np.ndarray]) -> None:
    """Refuse sizes, parts, text and constants that make no loop of this task.

    Raises ``BundleError`` with the part and what is wrong of it.
    """
    image, row = found.manifest["image"], found.manifest["latent"]
    size, factor = (image["height"], image["width"]), row["factor"]
    if max(size) > LARGEST_SIDE or row["channels"] > _MOST_CHANNELS:
        raise BundleError(
            f"{MANIFEST}: {size[0]} x {size[1]} pixels and {row['channels']} latent channels are "
            f"beyond {LARGEST_SIDE} and {_MOST_CHANNELS}"
        )
    if size[0] % factor or size[1] % factor:
        raise BundleError(f"{MANIFEST}: image and latent: {size} is no multiple of {factor}")
    pixels, latent = (3, *size), (row["channels"], size[0] // factor, size[1] // factor)
    if task.encodes_image:
        _check_sides(_part(found, "vae_encoder", task), pixels, latent)
        for entry in task.conditioning:
            if entry.encodes_image and entry.channels != latent[0]:
                raise BundleError(
                    f"{MANIFEST}: task {task.name!r}: conditioning {entry.kind!r} has "
                    f"{entry.channels} channels, the latent {latent[0]}"
                )
    _check_sides(_part(found, "vae_decoder", task), latent, pixels)
    words = _check_unet(found, task, latent)
    _check_words(found, task, words, constants)


def _part(found: Bundle, component: str, task: Task) -> Part:
    """A part that the task's loop runs; refuses one without an entry for the task."""
    part = found.part(component)
    part.entry_of(task.name)
    return part


def _check_sides(part: Part, given: tuple[int, ...], made: tuple[int, ...]) -> None:
    sides = [[(s.shape, s.dtype) for s in side] for side in (part.inputs, part.outputs)]
    wanted = [[((1, *shape), "float32")] for shape in (given, made)]
    if sides != wanted:
        raise BundleError(
            f"{MANIFEST}: {part.component} must make float32 {[1, *made]} of {[1, *given]}"
        )


def _check_unet(found: Bundle, task: Task, latent: tuple[int, ...]) -> Sequence[TensorSpec]:
    """The text inputs of the UNet, after its other inputs and its output are checked."""
    part = _part(found, "unet", task)
    where = f"{MANIFEST}: unet"
    inputs = part.inputs_of(task.name)
    if len(inputs) < 3 or len({spec.name for spec in inputs}) < len(inputs):
        raise BundleError(f"{where} must have sample, timestep and text inputs")
    sample, timestep, *words = inputs
    batch, wide = sum(sample.shape[:1]), (latent[0] + task.channels, *latent[1:])
    if sample.shape != (batch, *wide) or not 1 <= batch <= _LARGEST_BATCH:
        raise BundleError(f"{where}: the first input must be [batch, {_list(wide)}]")
    if timestep.shape != (1,):
        raise BundleError(f"{where}: the second input must be a timestep, [1]")
    if [spec.shape for spec in part.outputs] != [(batch, *latent)]:
        raise BundleError(f"{where}: the output must be [{batch}, {_list(latent)}]")
    if any(spec.shape[:1] != (batch,) or len(spec.shape) < 2 for spec in words):
        raise BundleError(f"{where}: a text input has another batch than {batch}")
    if any(spec.dtype != "float32" for spec in (*inputs, *part.outputs)):
        raise BundleError(f"{where}: inputs and output must be float32")
    return words


def _list(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _check_words(
    found: Bundle, task: Task, words: Sequence[TensorSpec], constants: Mapping[str, np.ndarray]
) -> None:
    """Each text input comes from a constant or from outputs of text encoders, in its shape."""
    text = found.manifest.get("text")
    if text is None:
        raise BundleError(f"{MANIFEST}: no text: nothing gives the UNet's text inputs")
    for spec in words:
        shape = (1, *spec.shape[1:])
        if f"sizes/{spec.name}" in constants:
            _check_constant(constants, f"sizes/{spec.name}", shape)
            continue
        if task.guidance.kind != "none":
            _check_constant(constants, f"empty/{spec.name}", shape)
        if task.prompt is not None:
            _check_constant(constants, f"prompt/{task.name}/{spec.name}", shape)
        elif _joined(found, task, text, spec.name) != shape:
            raise BundleError(
                f"{MANIFEST}: text: no outputs make the UNet's input {spec.name[:80]!r}, "
                f"[{_list(shape)}]"
            )


def _check_constant(constants: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    value = constants.get(name)
    if value is None or value.shape != shape or value.dtype != np.float32:
        there = "missing" if value is None else f"{value.dtype} [{_list(value.shape)}]"
        raise BundleError(
            f"constants.safetensors: {name[:80]!r} must be float32 [{_list(shape)}], it is {there}"
        )


def _joined(
    found: Bundle, task: Task, text: Mapping[str, Any], name: str
) -> tuple[int, ...] | None:
    """Shape of the outputs that are joined to an input; null where they do not fit together."""
    shapes = []
    for row in text["inputs"].get(name, ()):
        component = row["component"]
        if component not in text["tokenizers"] or not component.startswith("text_encoder"):
            return None
        part = _part(found, component, task)
        outputs = {spec.name: spec.shape for spec in part.outputs}
        given = [spec.shape for spec in part.inputs]
        if len(given) != 1 or len(given[0]) != 2 or not 3 <= given[0][-1] <= _LONGEST:
            raise BundleError(
                f"{MANIFEST}: {component} must take ids [1, length] alone, length 3 to {_LONGEST}"
            )
        if len(outputs.get(row["output"], ())) < 2:
            return None
        shapes.append(outputs[row["output"]])
    if not shapes or len({shape[:-1] for shape in shapes}) != 1:
        return None
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
