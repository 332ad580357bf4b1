"""Samples as the UNet's inputs: latents of targets, conditioning channels, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mtu_export.models.pipeline import stock
from mtu_export.models.pipeline.layout import is_tiny, vae_scale_factor
from mtu_export.spec import CheckpointError, PlanError, Task, shown
from mtu_export.training.data import Sample, Samples, fetch, first_line

_RANGE = 1 + 1e-3


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n samples of a task: the posterior of their scaled latents, and what follows the latent.

    ``mean``, ``std`` [n, C, h, w]; ``channels`` [n, Σc, h, w].
    """

    prompts: list[str]
    mean: Tensor
    std: Tensor
    channels: Tensor


class Source(Protocol):
    """Where a step's batches come from."""

    def batch(self, task: Task, places: Sequence[int]) -> Batch:
        """The samples at these places of the task's list."""
        ...


class Encoder:
    """The VAE's encoder in float32, frozen. Raises ``CheckpointError`` where there is none."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        if not (folder / "vae").is_dir():
            raise CheckpointError(f"{folder} has no vae/: training needs it")
        vae = stock.load_vae(folder)
        del vae.decoder
        torch.nn.Module.to(vae, device)
        self.vae, self.device = vae, device
        self.scaling = float(vae.config["scaling_factor"])
        self.channels = int(vae.config["latent_channels"])

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [n, C, h, w], unscaled, of images [n, 3, H, W] in −1..1."""
        encoded: Any = self.vae.encode(images.to(self.device))
        if is_tiny(self.vae.config):  # it has no posterior
            return encoded.latents, torch.zeros_like(encoded.latents)
        return encoded.latent_dist.mean, encoded.latent_dist.std


def widest(device: torch.device) -> torch.dtype:
    """The most exact type that sums can have there: Metal has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def conditioning(
    task: Task,
    images: Tensor | None,
    masks: Tensor | None,
    encoder: Encoder,
    latent: tuple[int, int],
) -> Tensor:
    """The channels after the noisy latent [n, Σc, h, w], as the exported loop makes them.

    ``images`` [n, 3, H, W] in −1..1, ``masks`` [n, 1, H, W] of 0 and 1.
    """
    channels = []
    for entry in task.conditioning:
        if entry.kind == "mask":
            assert masks is not None
            factor = masks.shape[-2] // latent[0]
            channels.append(masks[..., ::factor, ::factor])
            continue
        assert images is not None
        if entry.kind == "image":
            cells = images.unflatten(-2, (latent[0], -1)).unflatten(-1, (latent[1], -1))
            channels.append(cells.to(widest(cells.device)).mean((3, 5)).float())
            continue
        seen = images
        if entry.kind == "masked_image_latent":
            assert masks is not None
            seen = images * (masks < 0.5)
        mode = encoder.posterior(seen)[0]
        channels.append(mode * encoder.scaling if entry.scaled else mode)
    return torch.cat(channels, 1)


def without_image(task: Task, channels: Tensor, dropped: Tensor) -> Tensor:
    """The channels with the image taken from the samples ``dropped`` [n]; masks stay."""
    kept = [entry.kind == "mask" for entry in task.conditioning for _ in range(entry.channels)]
    if not kept:
        return channels
    stays = torch.tensor(kept, device=channels.device) | ~dropped.to(channels.device)[:, None]
    return torch.where(stays[:, :, None, None], channels, torch.zeros_like(channels))


def index_by_task(
    samples: Samples, tasks: Sequence[Task]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The indices of each task's samples, and how many there are of tasks that are not trained.

    Raises ``PlanError`` for a task without samples and for what is no task's name.
    """
    indices: dict[str, list[int]] = {task.name: [] for task in tasks}
    others: dict[str, int] = {}
    try:
        count = len(samples)
    except Exception as error:  # whatever the user's set sets off
        raise PlanError(f"data: its length: {first_line(error)}") from error
    for index in range(count):
        try:
            name = samples.task(index)
        except Exception as error:  # whatever the user's set sets off
            raise PlanError(f"data: task of sample {index}: {first_line(error)}") from error
        if not isinstance(name, str):
            raise PlanError(f"data: task of sample {index} must be a string, got {shown(name)}")
        if name in indices:
            indices[name].append(index)
        else:
            others[name] = others.get(name, 0) + 1
    for name, places in indices.items():
        if not places:
            names = ", ".join([*(n for n, r in indices.items() if r), *others]) or "none"
            raise PlanError(f"the data has no sample of task {name!r}; it has: {names[:300]}")
    return indices, others


class Live:
    """Batches of samples that are read and encoded when they are asked for."""

    def __init__(
        self,
        samples: Samples,
        indices: Mapping[str, list[int]],
        encoder: Encoder,
        size: tuple[int, int],
    ) -> None:
        self.samples, self.indices, self.encoder, self.size = samples, indices, encoder, size
        self.factor = vae_scale_factor(encoder.vae.config)

    @property
    def latent(self) -> tuple[int, int]:
        """Latent size h, w."""
        return self.size[0] // self.factor, self.size[1] // self.factor

    def batch(self, task: Task, places: Sequence[int]) -> Batch:
        """The samples at these places of the task's list; raises ``PlanError`` for a bad one."""
        indices = [self.indices[task.name][place] for place in places]
        samples = fetch(self.samples, indices)
        if len(samples) != len(indices):
            raise PlanError(f"the data gives {len(samples)} samples for {len(indices)} indices")
        for index, sample in zip(indices, samples, strict=True):
            _check(index, sample, task, self.size)
        device, kinds = self.encoder.device, {entry.kind for entry in task.conditioning}
        where = [f"sample {index} (task {task.name!r})" for index in indices]
        targets = _stacked("image", [sample.image for sample in samples], -1, where).to(device)
        images = masks = None
        if task.needs_image:
            images = _conditions(samples, self.size, where, device)
        if task.needs_mask:
            given_masks = [sample.mask for sample in samples if sample.mask is not None]
            masks = _stacked("mask", given_masks, 0, where).to(device)
        mean, std = self.encoder.posterior(targets)
        channels = torch.zeros(len(samples), 0, *self.latent, device=device)
        if kinds:
            channels = conditioning(task, images, masks, self.encoder, self.latent)
        return Batch(
            prompts=[sample.prompt if task.prompt is None else task.prompt for sample in samples],
            mean=mean * self.encoder.scaling,
            std=std * self.encoder.scaling,
            channels=channels,
        )


def _conditions(
    samples: Sequence[Sample], size: tuple[int, int], where: Sequence[str], device: torch.device
) -> Tensor:
    """Input images [n, 3, H, W]; that of a masked task without one is the picture itself."""
    conditions = [s.image if s.condition is None else s.condition for s in samples]
    if len({value.shape for value in conditions}) > 1:
        conditions = [_sized(value.float()[None], size)[0] for value in conditions]
    return _sized(_stacked("condition", conditions, -1, where).to(device), size)


def _sized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [n, 3, h, w] at ``size``, as a user's small picture is made larger."""
    if tuple(images.shape[2:]) == size:
        return images
    wide = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return wide.clamp(-1, 1)


def _stacked(name: str, tensors: Sequence[Tensor], low: int, where: Sequence[str]) -> Tensor:
    """The rows as one float32 tensor; refuses values beyond ``low`` to 1, and NaN."""
    whole = torch.stack(list(tensors)).float()
    least, most = (float(bound) for bound in torch.aminmax(whole))
    if low * _RANGE <= least <= most <= _RANGE:  # false for NaN
        return whole
    for tensor, place in zip(whole, where, strict=True):
        least, most = (float(bound) for bound in torch.aminmax(tensor))
        if not low * _RANGE <= least <= most <= _RANGE:
            raise PlanError(
                f"{place}: {name} must be from {low} to 1, got {least:.3g} to {most:.3g}"
            )
    raise AssertionError(name)


def _check(index: int, sample: Sample, task: Task, size: tuple[int, int]) -> None:
    """Refuse a sample of another task, without what the task needs, or of a wrong shape."""
    where = f"sample {index} (task {task.name!r})"
    if not isinstance(sample, Sample) or sample.task != task.name:
        actual = sample.task if isinstance(sample, Sample) else type(sample).__name__
        raise PlanError(f"{where}: the data gives {str(actual)[:80]!r} for it")
    if not isinstance(sample.prompt, str):
        raise PlanError(f"{where}: the prompt is not a string")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in sample.prompt):
        raise PlanError(f"{where}: the prompt has half a character (a lone surrogate)")
    kinds = {entry.kind for entry in task.conditioning}
    tensors: list[tuple[str, Tensor, tuple[int | None, ...]]] = [
        ("image", sample.image, (3, *size))
    ]
    if sample.condition is not None:
        tensors.append(("condition", sample.condition, (3, None, None)))
    elif kinds & {"image_latent", "image"}:
        raise PlanError(f"{where}: the task needs a condition image")
    if task.needs_mask:
        if sample.mask is None:
            raise PlanError(f"{where}: the task needs a mask")
        tensors.append(("mask", sample.mask, (1, *size)))
    for name, value, shape in tensors:
        fits = isinstance(value, Tensor) and value.ndim == 3 and value.numel() > 0
        if not fits or any(w not in (None, s) for s, w in zip(value.shape, shape, strict=True)):
            actual = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = ["any" if side is None else side for side in shape]
            raise PlanError(f"{where}: {name} must be a tensor {expected}, got {actual}")
        if value.layout != torch.strided or value.is_meta:
            raise PlanError(f"{where}: {name} must be a dense tensor with values")
        if value.is_complex() or not (name == "mask" or value.is_floating_point()):
            raise PlanError(f"{where}: {name} must be floating point, got {value.dtype}")
