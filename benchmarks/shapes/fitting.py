"""Fits a part beside the UNet (VAE, text encoder): AdamW, cosine, resumed after any stop.

A step's loss depends on its number alone, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_EVERY_S = 60.0


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    state: Path,
    *,
    steps: int,
    rate: float,
    warmup: int = 100,
    clip: float = 1.0,
) -> float:
    """Train ``module`` in place, on ``DEVICE``; seconds that its steps took, over all runs.

    ``state`` is a safetensors file that is taken up where it is there and replaced each minute.
    """
    module.to(DEVICE)
    named = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(named.values(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-4)
    done, seconds = _take_up(module, optimiser, named, state, steps)
    saved = begun = time.monotonic()
    while done < steps:
        share = done / steps
        for group in optimiser.param_groups:
            group["lr"] = (
                rate * min(1, (done + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * share))
            )
        optimiser.zero_grad()
        value = loss(done)
        value.backward()
        nn.utils.clip_grad_norm_(named.values(), clip)
        optimiser.step()
        done += 1
        now = time.monotonic()
        if done == steps or now - saved > _EVERY_S:
            if not math.isfinite(value.item()):
                raise SystemExit(f"{state.stem}: the loss of step {done} is {value.item()}")
            saved = now
            _save(module, optimiser, named, state, done, steps, seconds + now - begun)
            print(f"{state.stem}: step {done} of {steps}, loss {value.item():.5f}", flush=True)
    module.to("cpu")
    return seconds + time.monotonic() - begun


def _save(
    module: nn.Module,
    optimiser: torch.optim.AdamW,
    named: dict[str, nn.Parameter],
    state: Path,
    done: int,
    steps: int,
    seconds: float,
) -> None:
    tensors = {f"module.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for name, parameter in named.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment].contiguous()
    said = json.dumps({"done": done, "steps": steps, "seconds": seconds})
    state.parent.mkdir(parents=True, exist_ok=True)
    private = state.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, private, {"fit": said})
    private.replace(state)


def _take_up(
    module: nn.Module,
    optimiser: torch.optim.AdamW,
    named: dict[str, nn.Parameter],
    state: Path,
    steps: int,
) -> tuple[int, float]:
    if not state.is_file():
        return 0, 0.0
    with safe_open(state, "pt") as found:
        said = json.loads(found.metadata()["fit"])
        if said["steps"] != steps:
            raise SystemExit(
                f"{state} is of a run of {said['steps']} steps, not {steps}: remove it"
            )
        rows = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    module.load_state_dict(
        {name.removeprefix("module."): value for name, value in rows.items() if "module." in name}
    )
    for name, parameter in named.items():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(said["done"])),
            **{moment: rows[f"{moment}.{name}"].to(DEVICE) for moment in ("exp_avg", "exp_avg_sq")},
        }
    return said["done"], said["seconds"]
