"""Fits a part beside the UNet (VAE, text encoder): AdamW, cosine, resumed after any stop.

A step's loss depends on its number alone, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mtu_export.training import state
from mtu_export.training.state import Progress

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_EVERY_S = 60.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    root: Path,
    *,
    steps: int,
    rate: float,
    warmup: int = 100,
    clip: float = 1.0,
) -> float:
    """Train ``module`` in place, on ``DEVICE``; seconds that its steps took, over all runs.

    ``home`` is a folder of states (``training.state``); one is taken up where it is there and
    replaced each minute. Raises ``PlanError`` for the state of another run.
    """
    module.to(DEVICE)
    named = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(named.values(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-4)
    identity, progress = {"steps": steps, "rate": rate}, Progress()
    last = state.newest(root)
    if last is not None:
        progress, tensors = state.read(last, identity)
        _restore(optimiser, named, progress, tensors)
    begin, saved = time.monotonic() - progress.seconds, time.monotonic()
    while progress.step < steps:
        share = progress.step / steps
        for group in optimiser.param_groups:
            warm = min(1, (progress.step + 1) / warmup)
            group["lr"] = rate * warm * (0.5 + 0.5 * math.cos(math.pi * share))
        optimiser.zero_grad()
        value = loss(progress.step)
        value.backward()
        nn.utils.clip_grad_norm_(named.values(), clip)
        optimiser.step()
        progress.step += 1
        progress.seconds = time.monotonic() - begin
        if progress.step == steps or time.monotonic() - saved > _EVERY_S:
            if not math.isfinite(value.item()):
                raise SystemExit(f"{root.name}: the loss of step {progress.step} is {value.item()}")
            state.save(root, progress, identity, _tensors(optimiser, named))
            saved = time.monotonic()
            print(
                f"{root.name}: step {progress.step} of {steps}, loss {value.item():.5f}", flush=True
            )
    module.to("cpu")
    return progress.seconds


def _tensors(optimiser: torch.optim.AdamW, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in named.items()}
    for name, parameter in named.items():
        tensors |= {f"{key}/{name}": optimiser.state[parameter][key] for key in _MOMENTS}
    return tensors


@torch.no_grad()
def _restore(
    optimiser: torch.optim.AdamW,
    named: Mapping[str, nn.Parameter],
    progress: Progress,
    tensors: Mapping[str, Tensor],
) -> None:
    for name, parameter in named.items():
        parameter.copy_(tensors[f"weight/{name}"])
        moments = {key: tensors[f"{key}/{name}"].to(DEVICE) for key in _MOMENTS}
        optimiser.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
