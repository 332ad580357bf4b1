"""Samples as the UNet's inputs: latents of targets, conditioning channels, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mtu_export.models import stock
from mtu_export.spec import CheckpointError, PlanError, Task
from mtu_export.training.data import Sample, Samples, fetch

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

    def batch(self, task: Task, rows: Sequence[int]) -> Batch:
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
        found = self.vae.encode(images.to(self.device)).latent_dist  # type: ignore[union-attr]
        return found.mean, found.std


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
    rows = []
    for entry in task.conditioning:
        if entry.kind == "mask":
            assert masks is not None
            factor = masks.shape[-2] // latent[0]
            rows.append(masks[..., ::factor, ::factor])
            continue
        assert images is not None
        if entry.kind == "image":
            cells = images.unflatten(-2, (latent[0], -1)).unflatten(-1, (latent[1], -1))
            rows.append(cells.double().mean((3, 5)).float())
            continue
        seen = images
        if entry.kind == "masked_image_latent":
            assert masks is not None
            seen = images * (masks < 0.5)
        mode = encoder.posterior(seen)[0]
        rows.append(mode * encoder.scaling if entry.scaled else mode)
    return torch.cat(rows, 1)


def without_image(task: Task, channels: Tensor, dropped: Tensor) -> Tensor:
    """The channels with the image taken from the samples ``dropped`` [n]; masks stay."""
    kept = [entry.kind == "mask" for entry in task.conditioning for _ in range(entry.channels)]
    if not kept:
        return channels
    stays = torch.tensor(kept, device=channels.device) | ~dropped.to(channels.device)[:, None]
    return torch.where(stays[:, :, None, None], channels, torch.zeros_like(channels))


def lists(samples: Samples, tasks: Sequence[Task]) -> dict[str, list[int]]:
    """The indices of each task's samples; refuses tasks without any and samples of none."""
    found: dict[str, list[int]] = {task.name: [] for task in tasks}
    for index in range(len(samples)):
        name = samples.task(index)
        if name not in found:
            raise PlanError(
                f"sample {index} is of task {str(name)[:80]!r}; the tasks trained are: "
                f"{', '.join(found)}"
            )
        found[name].append(index)
    for name, rows in found.items():
        if not rows:
            raise PlanError(f"the data has no sample of task {name!r}")
    return found


class Live:
    """Batches of samples that are read and encoded when they are asked for."""

    def __init__(
        self, samples: Samples, tasks: Sequence[Task], encoder: Encoder, size: tuple[int, int]
    ) -> None:
        self.samples, self.encoder, self.size = samples, encoder, size
        self.factor = 2 ** (len(encoder.vae.config["block_out_channels"]) - 1)
        self.indices: Mapping[str, list[int]] = lists(samples, tasks)

    @property
    def latent(self) -> tuple[int, int]:
        """Latent size h, w."""
        return self.size[0] // self.factor, self.size[1] // self.factor

    def batch(self, task: Task, rows: Sequence[int]) -> Batch:
        """The samples at these places of the task's list; raises ``PlanError`` for a bad one."""
        indices = [self.indices[task.name][row] for row in rows]
        found = fetch(self.samples, indices)
        for index, sample in zip(indices, found, strict=True):
            _check(index, sample, task, self.size)
        device, kinds = self.encoder.device, {entry.kind for entry in task.conditioning}
        targets = torch.stack([sample.image for sample in found]).float().to(device)
        images = masks = None
        if kinds - {"mask"}:
            images = torch.stack([_condition(s, self.size) for s in found]).to(device)
        if any("mask" in kind for kind in kinds):
            masks = torch.stack([s.mask for s in found if s.mask is not None]).float().to(device)
        mean, std = self.encoder.posterior(targets)
        channels = torch.zeros(len(found), 0, *self.latent, device=device)
        if kinds:
            channels = conditioning(task, images, masks, self.encoder, self.latent)
        return Batch(
            prompts=[sample.prompt if task.prompt is None else task.prompt for sample in found],
            mean=mean * self.encoder.scaling,
            std=std * self.encoder.scaling,
            channels=channels,
        )


def _condition(sample: Sample, size: tuple[int, int]) -> Tensor:
    """The input image [3, H, W]; that of a masked task without one is the picture itself."""
    given = sample.image if sample.condition is None else sample.condition
    given = given.float()
    if tuple(given.shape[1:]) == size:
        return given
    wide = F.interpolate(given[None], size, mode="bicubic", antialias=True, align_corners=False)
    return wide[0].clamp(-1, 1)


def _check(index: int, sample: Sample, task: Task, size: tuple[int, int]) -> None:
    where = f"sample {index} (task {task.name!r})"
    if not isinstance(sample, Sample) or sample.task != task.name:
        said = sample.task if isinstance(sample, Sample) else type(sample).__name__
        raise PlanError(f"{where}: the data gives {str(said)[:80]!r} for it")
    kinds = {entry.kind for entry in task.conditioning}
    rows: list[tuple[str, Tensor, tuple[int | None, ...], float]]
    rows = [("image", sample.image, (3, *size), -1.0)]
    if sample.condition is not None:
        rows.append(("condition", sample.condition, (3, None, None), -1.0))
    elif kinds & {"image_latent", "image"}:
        raise PlanError(f"{where}: the task needs a condition image")
    if any("mask" in kind for kind in kinds):
        if sample.mask is None:
            raise PlanError(f"{where}: the task needs a mask")
        rows.append(("mask", sample.mask, (1, *size), 0.0))
    for name, value, shape, low in rows:
        fits = isinstance(value, Tensor) and value.ndim == 3
        if not fits or any(w not in (None, s) for s, w in zip(value.shape, shape, strict=True)):
            said = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            wanted = ["any" if side is None else side for side in shape]
            raise PlanError(f"{where}: {name} must be a tensor {wanted}, got {said}")
        least, most = (float(bound) for bound in torch.aminmax(value))
        if not low * _RANGE <= least <= most <= _RANGE:  # false for NaN
            raise PlanError(
                f"{where}: {name} must be from {low:g} to 1, got {least:.3g} to {most:.3g}"
            )
