"""The schemes and schedulers that a user can name, and the defaults of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtu_export.spec import (
    FloatWeights,
    IntWeights,
    PerChannel,
    Scheme,
)

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="fp32", weights=FloatWeights(dtype="float32"), floor_db=90.0, pass_floor_db=80.0
        ),
        Scheme(
            name="fp16", weights=FloatWeights(dtype="float16"), floor_db=50.0, pass_floor_db=40.0
        ),
        Scheme(
            name="int8",
            weights=IntWeights(bits=8, granularity=PerChannel(axis=0)),
            floor_db=35.0,
            pass_floor_db=20.0,
            int8_floor_db=30.0,
        ),
    )
}
"""``pass_floor_db`` is some 15 dB below what passes reach, as guidance multiplies the error of a
part: measured on random checkpoints with guidance 7.5 are 120 dB (fp32), 77 to 80 (fp16), 47 to 57
(int8 weights) and 35 (int8 activations too, whose part is at 41 over a floor of 30)."""


_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DDIMScheduler": ("DDIMScheduler", {}),
    "EulerDiscreteScheduler": ("EulerDiscreteScheduler", {}),
    "DPMSolverMultistepScheduler": ("DPMSolverMultistepScheduler", {}),
    "PNDMScheduler": ("PNDMScheduler", {}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {**_DPM, "use_karras_sigmas": False}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {**_DPM, "use_karras_sigmas": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "thresholding": False}),
    "lcm": ("LCMScheduler", {"clip_sample": False, "thresholding": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False, "thresholding": False}),
}
"""Names of `--scheduler`: the diffusers class, and what is set over the checkpoint's config."""
SD_DEFAULT: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
"""``scheduler_config.json`` of Stable Diffusion 1.x, for a checkpoint that brings none."""
BAKED_STEPS = (4, 8, 12, 20, 25, 30, 50)
"""Step counts for which a bundle has a schedule unless `--bake-steps` says otherwise."""
BAKED_FEW_STEPS = (1, 2, 4, 8)
"""The same where the tasks' own counts are of a distilled model, at most 8."""
BAKED_STRENGTHS = (0.3, 0.5, 0.6, 0.75, 0.8)
"""Strengths for which a bundle has schedules where a task starts from a picture, as above."""
