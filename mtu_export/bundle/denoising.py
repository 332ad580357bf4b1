"""The mathematics of a task's loop in numpy: conditioning, guided denoiser, decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtu_export.bundle import images, sampler
from mtu_export.spec import (
    Arrays,
    Guidance,
    PlanError,
    Session,
    Task,
    TensorSpec,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a picture is made of.

    ``image`` [1, 3, H, W] in −1..1 and ``mask`` [1, 1, H, W] of 0 and 1 where the task's
    conditioning has them; ``noise`` is normal, of the shape that ``sampler.start`` takes;
    ``guidance`` replaces the task's scales.
    """

    prompt: str
    noise: np.ndarray
    steps: int
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    guidance: Guidance | None = None


def conditioning(
    task: Task,
    request: Request,
    encode: Callable[[np.ndarray], np.ndarray],
    scaling: float,
    latent: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The channels after the noisy latent [1, Σc, h, w], and the same without an image.

    ``encode`` maps an image [1, 3, H, W] to its unscaled latent. Without an image (the first
    branches of ``text_image``) latents and pictures are zero and a mask stays.
    """
    full = without = np.zeros((1, 0, *latent), np.float32)
    for entry in task.conditioning:
        if entry.kind == "mask":
            mask = _required(request.mask, "mask", task)
            channels = images.latent_mask(mask, mask.shape[-2] // latent[0])
        elif entry.kind == "image":
            channels = _shrunk(_required(request.image, "image", task), latent)
        else:
            image = _required(request.image, "image", task)
            if entry.kind == "masked_image_latent":
                image = images.masked_image(image, _required(request.mask, "mask", task))
            channels = encode(image)
            channels = channels * np.float32(scaling) if entry.scaled else channels
        blank = channels if entry.kind == "mask" else np.zeros_like(channels)
        full, without = np.concatenate([full, channels], 1), np.concatenate([without, blank], 1)
    return full, without


def _required(value: np.ndarray | None, name: str, task: Task) -> np.ndarray:
    if value is None:
        raise PlanError(f"task {task.name!r} needs --{name}")
    return value


def _shrunk(image: np.ndarray, latent: tuple[int, int]) -> np.ndarray:
    """An image [1, 3, H, W] at latent size: the mean over each cell's pixels."""
    cells = image.reshape(1, 3, latent[0], -1, latent[1], image.shape[-1] // latent[1])
    return cells.mean((3, 5), dtype=np.float64).astype(np.float32)


def denoiser(
    session: Session,
    specs: Sequence[TensorSpec],
    guidance: Guidance,
    text_inputs: tuple[Arrays, Arrays],
    channels: tuple[np.ndarray, np.ndarray],
) -> sampler.Denoise:
    """The guided denoiser: x [1, C, h, w] and a timestep to m [1, C, h, w].

    ``specs`` are the inputs of the UNet's session; ``text_inputs`` [1, ...] by name are those for
    the prompt and for the empty prompt; ``channels`` those of :func:`conditioning`. Branches go
    through the session in batches of its own size.
    """
    batch = specs[0].shape[0]
    branches = [
        (text_inputs[0 if branch.text else 1], channels[0 if branch.image else 1])
        for branch in sampler.branches(guidance)
    ]
    names = [spec.name for spec in specs[2:]]

    def denoise(x: np.ndarray, timestep: float) -> np.ndarray:
        outputs: list[np.ndarray] = []
        for begin in range(0, len(branches), batch):
            chunk = branches[begin : begin + batch]
            chunk += [chunk[-1]] * (batch - len(chunk))
            inputs = {name: np.concatenate([text[name] for text, _ in chunk]) for name in names}
            inputs[specs[0].name] = np.concatenate(
                [np.concatenate([x, image], 1) for _, image in chunk]
            )
            inputs[specs[1].name] = np.full(specs[1].shape, timestep, np.float32)
            (output,) = session(inputs).values()
            outputs += [output[i : i + 1] for i in range(batch)]
        return sampler.guide(guidance, outputs[: len(branches)])

    return denoise


def decode(session: Session, spec: TensorSpec, latent: np.ndarray, scaling: float) -> np.ndarray:
    """The picture [1, 3, H, W] of a latent [1, C, h, w]; ``spec`` is the decoder's input."""
    (image,) = session({spec.name: (latent / np.float32(scaling)).astype(np.float32)}).values()
    return image


def noise(shape: tuple[int, ...], seed: int, passes: int = 0) -> np.ndarray:
    """Normal float32 noise [1 + passes, C, h, w] of a seed, for a latent's ``shape`` [1, C, h, w].

    numpy's PCG64, the same on every machine, in one stream: that of the start, then pass by pass
    (``Schedule.draws`` says how many take noise).
    """
    return np.random.default_rng(seed).standard_normal((shape[0] + passes, *shape[1:]), np.float32)


def named(constants: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The constants below a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): v for n, v in constants.items() if n.startswith(prefix)}
