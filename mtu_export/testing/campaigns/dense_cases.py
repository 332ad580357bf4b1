"""Dense pipelines of every kind: what ``campaigns.dense`` compares with diffusers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtu_export.testing.architectures import STOCK_PARTS

NEGATIVE = "a blurred picture of a green square"
_SD, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_IMG2IMG, _XL_IMG2IMG = "StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"
_EDIT, _FILL = "StableDiffusionInstructPix2PixPipeline", "StableDiffusionInpaintPipeline"
_LCM = "LatentConsistencyModelPipeline"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    ``index`` is the class in ``model_index.json``, that of ``pipeline`` where it is None;
    ``unet``, ``scheduler``, ``flags`` and ``vae`` change the checkpoint as ``write_dense`` does.
    ``table`` changes the scheduler's config on both sides after the export; ``arguments`` go to
    their call. ``vectors`` is their number in an embedding of the prompt's token ``<cat>``.
    """

    name: str
    architecture: str = "tiny"
    pipeline: str = _SD
    index: str | None = None
    unet: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] | None = None
    table: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    steps: int = 20
    strength: float | None = None
    negative: str | None = None
    lora: bool = False
    vectors: int = 0
    clip_skip: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def source(self) -> str:
        """What tells its checkpoint from those of other cases."""
        parts = (self.architecture, self.index or self.pipeline, self.unet, self.scheduler)
        return repr((*parts, self.flags, self.vae))


def scheduler_of(case: Case) -> str:
    """The scheduler's class, and what its config says beside the published one."""
    stock = STOCK_PARTS[case.architecture]["scheduler"]
    config = {**case.scheduler, **case.table}
    name = str(config.pop("_class_name", stock["_class_name"])).removesuffix("Scheduler")
    settings = [str(value) if isinstance(value, str) else key for key, value in config.items()]
    return ", ".join([name, *settings])


TINY_VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "encoder_block_out_channels": [16, 16, 16, 16],
    "decoder_block_out_channels": [16, 16, 16, 16],
    "num_encoder_blocks": [1, 2, 2, 2],
    "num_decoder_blocks": [2, 2, 2, 1],
    "force_upcast": False,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
"""As TAESD's, narrower."""
_DPM = "DPMSolverMultistepScheduler"
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler"},
    "ddpm": {"_class_name": "DDPMScheduler"},
    "deis": {"_class_name": "DEISMultistepScheduler"},
    "dpm++2m": {"_class_name": _DPM},
    "dpm++2m-karras": {"_class_name": _DPM, "use_karras_sigmas": True},
    "dpm++2m-sde": {"_class_name": _DPM, "algorithm_type": "sde-dpmsolver++"},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler-ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "kdpm2": {"_class_name": "KDPM2DiscreteScheduler"},
    "lms": {"_class_name": "LMSDiscreteScheduler"},
    "pndm": {},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
    "ddim-v": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "euler-v": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"},
}
_ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
_LCM_TABLE = {"_class_name": "LCMScheduler", "original_inference_steps": 50}
_TCD_TABLE = {"_class_name": "TCDScheduler", "original_inference_steps": 50}
_TURBO = {"timestep_spacing": "trailing"}
_UNGUIDED = {"guidance_scale": 0.0}
_EULER, _ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"


def _turbo(name: str, scheduler: str, steps: int, **more: Any) -> Case:
    settings = {"_class_name": scheduler, **_TURBO}
    return Case(
        name=f"{name}-{steps}", scheduler=settings, steps=steps, **more, arguments=_UNGUIDED
    )


CASES: tuple[Case, ...] = (
    *(Case(name=f"sd1-{name}", table=table) for name, table in _TABLES.items()),
    Case(name="sd1-negative", negative=NEGATIVE),
    Case(name="sd1-lora", lora=True),
    *(
        Case(
            name=f"sd1-img2img-{strength}",
            pipeline=_IMG2IMG,
            index=_SD,
            task="img2img",
            strength=strength,
        )
        for strength in (0.3, 0.6, 1.0)
    ),
    *(
        Case(
            name=f"sd1-img2img-{name}",
            pipeline=_IMG2IMG,
            index=_SD,
            task="img2img",
            strength=0.6,
            table=_TABLES[name],
        )
        for name in ("ddim", "euler", "dpm++2m", "euler-ancestral", "unipc")
    ),
    Case(name="sd2-v", architecture="tiny-sd2"),
    Case(name="sd2-v-negative", architecture="tiny-sd2", negative=NEGATIVE),
    Case(name="sd2-v-zero-snr", architecture="tiny-sd2", table=_ZERO_SNR),
    Case(
        name="sd2-v-zero-snr-euler",
        architecture="tiny-sd2",
        table={**_ZERO_SNR, "_class_name": _EULER},
    ),
    Case(name="sdxl", architecture="tiny-sdxl", pipeline=_XL),
    Case(name="sdxl-negative", architecture="tiny-sdxl", pipeline=_XL, negative=NEGATIVE),
    Case(
        name="sdxl-encoded",
        architecture="tiny-sdxl",
        pipeline=_XL,
        flags={"force_zeros_for_empty_prompt": False},
    ),
    Case(
        name="sdxl-encoded-negative",
        architecture="tiny-sdxl",
        pipeline=_XL,
        flags={"force_zeros_for_empty_prompt": False},
        negative=NEGATIVE,
    ),
    Case(name="sdxl-lora", architecture="tiny-sdxl", pipeline=_XL, lora=True),
    *(
        Case(
            name=f"sdxl-img2img-{strength}",
            architecture="tiny-sdxl",
            pipeline=_XL_IMG2IMG,
            index=_XL,
            task="img2img",
            strength=strength,
        )
        for strength in (0.3, 0.6)
    ),
    Case(name="sd1-embedding", vectors=1),
    Case(name="sd1-embedding-3", vectors=3),
    Case(name="sdxl-embedding-2", architecture="tiny-sdxl", pipeline=_XL, vectors=2),
    Case(name="sd1-clip-skip", clip_skip=1),
    Case(name="sd1-clip-skip-negative", clip_skip=1, negative=NEGATIVE),
    Case(name="sdxl-clip-skip", architecture="tiny-sdxl", pipeline=_XL, clip_skip=1),
    Case(
        name="sdxl-clip-skip-negative",
        architecture="tiny-sdxl",
        pipeline=_XL,
        clip_skip=1,
        negative=NEGATIVE,
    ),
    Case(name="taesd", vae=TINY_VAE),
    Case(
        name="taesd-img2img",
        pipeline=_IMG2IMG,
        index=_SD,
        task="img2img",
        strength=0.6,
        vae=TINY_VAE,
    ),
    Case(name="taesd-inpaint", pipeline=_FILL, unet={"in_channels": 9}, vae=TINY_VAE),
    Case(name="taesd-pix2pix", pipeline=_EDIT, unet={"in_channels": 8}, vae=TINY_VAE),
    Case(name="taesdxl", architecture="tiny-sdxl", pipeline=_XL, vae=TINY_VAE),
    Case(
        name="taesdxl-img2img",
        architecture="tiny-sdxl",
        pipeline=_XL_IMG2IMG,
        index=_XL,
        task="img2img",
        strength=0.6,
        vae=TINY_VAE,
    ),
    Case(name="pix2pix", pipeline=_EDIT, unet={"in_channels": 8}),
    Case(name="pix2pix-negative", pipeline=_EDIT, unet={"in_channels": 8}, negative=NEGATIVE),
    Case(
        name="pix2pix-euler-ancestral",
        pipeline=_EDIT,
        unet={"in_channels": 8},
        table=_TABLES["euler-ancestral"],
    ),
    Case(name="inpaint", pipeline=_FILL, unet={"in_channels": 9}),
    Case(name="inpaint-negative", pipeline=_FILL, unet={"in_channels": 9}, negative=NEGATIVE),
    Case(
        name="sdxl-inpaint",
        architecture="tiny-sdxl",
        pipeline="StableDiffusionXLInpaintPipeline",
        unet={"in_channels": 9},
    ),
    Case(
        name="lcm",
        pipeline=_LCM,
        unet={"time_cond_proj_dim": 32},
        scheduler=_LCM_TABLE,
        steps=4,
        arguments={"guidance_scale": 8.5},
    ),
    Case(
        name="lcm-sdxl",
        architecture="tiny-sdxl",
        pipeline=_XL,
        unet={"time_cond_proj_dim": 32},
        scheduler=_LCM_TABLE,
        steps=4,
        arguments={"guidance_scale": 8.5},
    ),
    Case(name="lcm-lora", scheduler=_LCM_TABLE, steps=4, lora=True, arguments=_UNGUIDED),
    Case(name="tcd", scheduler=_TCD_TABLE, steps=4, arguments={**_UNGUIDED, "eta": 0.3}),
    *(_turbo("turbo-euler", _EULER, steps) for steps in (1, 2, 4)),
    *(_turbo("turbo-euler-ancestral", _ANCESTRAL, steps) for steps in (1, 4)),
    *(
        _turbo("sdxl-turbo", _ANCESTRAL, steps, architecture="tiny-sdxl", pipeline=_XL)
        for steps in (1, 4)
    ),
    Case(
        name="turbo-img2img",
        pipeline=_IMG2IMG,
        index=_SD,
        scheduler={"_class_name": _EULER, **_TURBO},
        task="img2img",
        steps=4,
        strength=0.5,
        arguments=_UNGUIDED,
    ),
)
