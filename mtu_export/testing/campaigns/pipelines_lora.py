"""Compare a LoRA folded into a bundle with the same LoRA in a diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtu_export.bundle import runner
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.metrics import psnr
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import Guidance, Pass, Schedule
from mtu_export.testing import loras
from mtu_export.testing.campaigns import pipelines

PARTS = (UNET, "text_encoder", "text_encoder_2")
SCALE = 0.7
FLOOR_DB = 90.0
"""For one pass; the floor of the loop is ``pipelines.FLOOR_DB``."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """PSNR in dB: of diffusers without the LoRA, and of our pass and loop, all against with it."""

    without_db: float
    pass_db: float
    loop: pipelines.Similarity


def write_lora(pipe: Any, path: Path) -> Path:
    """Write a random LoRA with PEFT's names for the UNet and each text encoder of a pipeline.

    It covers all Linear and Conv2d layers except the UNet's feed-forwards: there a LoRA of the
    dense model differs from one of the folded model, whose value rows the router weights.
    """
    tensors: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(PARTS):
        part = getattr(pipe, name, None)
        if part is None:
            continue
        paths = [p for p in loras.layers(part) if name != UNET or ".ff." not in p]
        matrices = loras.pairs(part, [p for p in paths if "text_projection" not in p], seed=seed)
        small = {p: (down * 0.5, up * 0.5) for p, (down, up) in matrices.items()}
        tensors |= loras.peft(small, component=name)
    return loras.write(path, tensors)


def set_lora(pipe: Any, path: Path, scale: float) -> None:
    """Make diffusers apply the LoRA next to the weights, without fusing it."""
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="a")
    pipe.set_adapters(["a"], [scale])


def pass_by_diffusers(pipe: Any) -> np.ndarray:
    """The pipeline's UNet output for ``noise()`` and ``PROMPT`` at timestep 500."""
    with torch.no_grad():
        embeddings = pipe.encode_prompt(
            pipelines.PROMPT,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        arguments: dict[str, Any] = {"encoder_hidden_states": embeddings[0]}
        if hasattr(pipe, "text_encoder_2"):
            height, width = pipe.stored_image_size
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            arguments["added_cond_kwargs"] = {"text_embeds": embeddings[2], "time_ids": sizes}
        sample = torch.from_numpy(pipelines.noise())
        return pipe.unet(sample, 500.0, **arguments).sample.numpy()


def pass_by_us(loop: runner.Loop) -> np.ndarray:
    """The same output of a bundle: its first latent under a schedule of one pass."""
    only = Pass(timestep=500.0, input_scale=1.0, x=(0.0,) * 4, m=(1.0, 0.0, 0.0, 0.0))
    schedule = Schedule(start_noise=1.0, passes=(only,))
    request = Request(
        prompt=pipelines.PROMPT,
        noise=pipelines.noise(),
        steps=1,
        guidance=Guidance(kind="text", text=1.0),
    )
    return runner.generate(replace(loop, schedules={(1, None): schedule}), request)[0][0]


def measure(pairs: pipelines.Pairs, pipeline: str) -> Similarity:
    """Compare text-to-image by DDIM with a random LoRA for UNet and text encoders."""
    case = pipelines.Case(task="t2i", pipeline=pipeline, scheduler="ddim")
    folder, root = pairs.folder(case), pairs.root / f"lora-{pipeline}"
    pipe = pipelines.stock(folder, case.task, pipeline, root / "pipeline")
    without_lora = pass_by_diffusers(pipe)
    file = write_lora(pipe, root / "random.safetensors")
    set_lora(pipe, file, SCALE)
    with_lora = pass_by_diffusers(pipe)
    loop = pipelines.export(folder, case.task, root / "bundle", lora=[f"{file}:{SCALE}"])
    theirs = pipelines.by_diffusers(pipe, case, loop.task.scales)
    ours = pipelines.by_us(pipelines.with_table(loop, case, folder, root / "scheduler"))
    return Similarity(
        without_db=psnr(with_lora, without_lora),
        pass_db=psnr(with_lora, pass_by_us(loop)),
        loop=pipelines.compare(theirs, ours),
    )
