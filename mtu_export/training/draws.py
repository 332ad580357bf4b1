"""All random numbers of a training step, as a function of (seed, step, task) alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mtu_export.spec import Task


def seed_of(*keys: object) -> int:
    """A seed of 63 bits that depends on ``keys`` alone."""
    text = "/".join(map(str, keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _generator(*keys: object) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*keys))


class Order:
    """Which samples of a task a step takes: each once per epoch, shuffled anew for each epoch."""

    def __init__(self, seed: int, task: str, count: int) -> None:
        self.seed, self.task, self.count = seed, task, count
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, number: int) -> list[int]:
        """Indices into the task's samples of the ``number`` samples of a step (from 0)."""
        places = []
        for place in range(step * number, (step + 1) * number):
            epoch, position = divmod(place, self.count)
            if epoch != self._epoch:
                self._epoch = epoch
                random = _generator(self.seed, "order", self.task, epoch)
                self._order = torch.randperm(self.count, generator=random)
            places.append(int(self._order[position]))
        return places


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of n samples of a task at a step, on the CPU.

    ``posterior`` and ``noise`` [n, C, h, w] normal, ``timesteps`` [n], ``dropout`` [n] in 0..1.
    """

    posterior: Tensor
    noise: Tensor
    timesteps: Tensor
    dropout: Tensor


def draws(
    seed: int, step: int, task: str, number: int, latent: tuple[int, int, int], times: int
) -> Draws:
    """The draws of a step for ``number`` samples; ``times`` is the scheduler's count."""
    random = _generator(seed, "draws", step, task)
    return Draws(
        timesteps=torch.randint(0, times, (number,), generator=random),
        dropout=torch.rand(number, generator=random),
        noise=torch.randn(number, *latent, generator=random),
        posterior=torch.randn(number, *latent, generator=random),
    )


def dropped(task: Task, dropout: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Which samples lose the prompt and which the condition, bool [n] each.

    InstructPix2Pix's rule for two guidances: of the probability p each, one alone, the other
    alone, and both. With text guidance alone the prompt goes in 2p of all cases, as there.
    """
    never = torch.zeros_like(dropout, dtype=torch.bool)
    prompt = dropout < 2 * probability
    if task.guidance.kind == "none":
        return never, never
    if task.guidance.kind == "text":
        return prompt, never
    return prompt, (dropout >= probability) & (dropout < 3 * probability)
