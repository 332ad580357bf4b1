"""A LoRA folded into a bundle beside the same LoRA in a pipeline of diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtu_export.bundle import denoising, runner
from mtu_export.bundle.metrics import psnr
from mtu_export.spec import Guidance, Pass, Schedule
from mtu_export.testing import loras
from mtu_export.testing.campaigns import pipelines

PARTS = ("unet", "text_encoder", "text_encoder_2")
SCALE = 0.7
FLOOR_DB = 90.0
"""Of one pass; that of the loop is ``pipelines.FLOOR_DB``."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """PSNR in dB: of theirs with against without, of one pass, of the loop."""

    without_db: float
    pass_db: float
    loop: pipelines.Likeness


def write_lora(pipe: Any, path: Path) -> Path:
    """A random LoRA in PEFT's names for the UNet and each text encoder of a pipeline.

    Every Linear and convolution but the feed-forwards of the UNet: there a LoRA of the dense
    model is another one of the folded model, whose value rows the router has weighted.
    """
    found: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(PARTS):
        part = getattr(pipe, name, None)
        if part is None:
            continue
        paths = [p for p in loras.layers(part) if name != "unet" or ".ff." not in p]
        rows = loras.pairs(part, [p for p in paths if "text_projection" not in p], seed=seed)
        small = {p: (down * 0.5, up * 0.5) for p, (down, up) in rows.items()}
        found |= loras.peft(small, component=name)
    return loras.write(path, found)


def set_lora(pipe: Any, path: Path, scale: float) -> None:
    """Let diffusers run the LoRA beside the weights."""
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="a")
    pipe.set_adapters(["a"], [scale])


def pass_by_diffusers(pipe: Any) -> np.ndarray:
    """What the UNet says of ``noise()`` and ``PROMPT`` at timestep 500."""
    with torch.no_grad():
        found = pipe.encode_prompt(
            pipelines.PROMPT,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        words: dict[str, Any] = {"encoder_hidden_states": found[0]}
        if hasattr(pipe, "text_encoder_2"):
            height, width = pipe.stored_image_size
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            words["added_cond_kwargs"] = {"text_embeds": found[2], "time_ids": sizes}
        return pipe.unet(torch.from_numpy(pipelines.noise()), 500.0, **words).sample.numpy()


def pass_by_us(loop: runner.Loop) -> np.ndarray:
    """The same by a bundle: its first output for a table of one pass."""
    only = Pass(timestep=500.0, input_scale=1.0, x=(0.0,) * 4, m=(1.0, 0.0, 0.0, 0.0))
    table = Schedule(init_noise_sigma=1.0, passes=(only,))
    request = denoising.Request(
        prompt=pipelines.PROMPT,
        noise=pipelines.noise(),
        steps=1,
        guidance=Guidance(kind="text", text=1.0),
    )
    return runner.generate(replace(loop, schedules={1: table}), request)[0][0]


def measure(pairs: pipelines.Pairs, pipeline: str) -> Likeness:
    """Both sides of text to picture by DDIM with a random LoRA of UNet and text encoders."""
    case = pipelines.Case(task="t2i", pipeline=pipeline, scheduler="ddim")
    folder, home = pairs.folder(case), pairs.home / f"lora-{pipeline}"
    pipe = pipelines.stock(folder, case.task, pipeline, home / "pipeline")
    plain = pass_by_diffusers(pipe)
    file = write_lora(pipe, home / "random.safetensors")
    set_lora(pipe, file, SCALE)
    wanted = pass_by_diffusers(pipe)
    loop = pipelines.export(folder, case.task, home / "bundle", lora=[f"{file}:{SCALE}"])
    theirs = pipelines.by_diffusers(pipe, case, loop.task.guidance)
    ours = pipelines.by_us(pipelines.with_table(loop, case, folder, home / "scheduler"))
    return Likeness(
        without_db=psnr(wanted, plain),
        pass_db=psnr(wanted, pass_by_us(loop)),
        loop=pipelines.compare(theirs, ours),
    )
