"""The schemes and schedulers that a user can name, and the defaults of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtu_export.spec import (
    FloatWeights,
    IntWeights,
    KeepFloat,
    PerChannel,
    Scheme,
)

_FIRST_AND_LAST = (
    KeepFloat(pattern=r"conv_in", why="first layer"),
    KeepFloat(pattern=r"conv_out", why="last layer"),
    KeepFloat(pattern=r"(time|add)_embedding\..*", why="time embedding"),
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
            overrides=_FIRST_AND_LAST,
        ),
    )
}
"""``pass_floor_db`` is some 15 dB below what passes reach, as guidance multiplies the error of a
part: measured on random checkpoints with guidance 7.5 are 120 dB (fp32), 77 to 80 (fp16), 47 to 57
(int8 weights) and 35 (int8 activations too, whose part is at 41 over a floor of 30)."""


def scheme_of(
    component: str, scheme: Scheme, vae: Mapping[str, Any], *, float16_vae: bool
) -> Scheme:
    """The scheme of one part of an export by ``scheme``; ``vae`` is the VAE's config.

    ``float16_vae`` says whether the target gains from a float16 VAE (``TargetInfo``).
    A VAE is never integer, and float32 where its config says ``force_upcast`` (SDXL's overflows
    float16). The layers that a scheme keeps in float are the UNet's, not a text encoder's.
    """
    integer = isinstance(scheme.weights, IntWeights)
    if component.startswith("vae_"):
        if not integer and scheme.weights == SCHEMES["fp32"].weights:
            return scheme
        narrow = float16_vae and vae.get("force_upcast") is not True
        return SCHEMES["fp16" if narrow else "fp32"]
    if component.startswith("text_encoder") and integer:
        return replace(scheme, overrides=())
    return scheme


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
