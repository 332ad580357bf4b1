"""Stock configs of random checkpoints: published sizes, and small ones with the same blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SD = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


_SDXL = {
    **_SD,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


_TINY = {
    **_SD,
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}


_TINY_HALF = {
    **_TINY,
    "block_out_channels": [16, 32],
    "cross_attention_dim": 16,
    "norm_num_groups": 8,
}


_TINY_SD2 = {
    **_TINY,
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
}
"""As Stable Diffusion 2.x: heads by level, linear projections."""


_TINY_SDXL = {
    **_TINY,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 128,
}


_ATOM = {
    **_SD,
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [16],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
"""One block of each kind; the only transformer block is the middle one's."""


ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "atom": _ATOM,
    "tiny": _TINY,
    "tiny-half": _TINY_HALF,
    "tiny-sd2": _TINY_SD2,
    "tiny-sdxl": _TINY_SDXL,
    "sd15": _SD,
    "sdxl": _SDXL,
}
"""Stock UNet configs: published sizes, and small ones with the same block types."""


PUBLISHED = ("sd15", "sdxl")
"""Architectures of published size; the others also have narrow routers."""


_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


_CLIP_BIG_G = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}


_CLIP_TINY = {
    **_CLIP_L,
    "vocab_size": 864,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "bos_token_id": 862,
    "eos_token_id": 863,
    "pad_token_id": 863,
}


_CLIP_TINY_HALF = {
    **_CLIP_TINY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
}


_CLIP_ATOM = {**_CLIP_TINY_HALF, "num_hidden_layers": 1, "num_attention_heads": 2}


_CLIP_TINY_XL = {**_CLIP_TINY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}


_CLIP_TINY_SD2 = {**_CLIP_TINY, "hidden_act": "gelu", "pad_token_id": 0}
"""OpenCLIP's activation; its pad is ``!``. Of a published one the last layer was left out."""


_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "sample_size": 512,
    "scaling_factor": 0.18215,
}


_XL_LATENTS = {"scaling_factor": 0.13025, "force_upcast": True}


_VAE_TINY = {
    **_VAE,
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 128,
}


_VAE_TINY_HALF = {**_VAE_TINY, "block_out_channels": [8, 8, 8, 8]}


_VAE_ATOM = {
    **_VAE_TINY,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "sample_size": 16,
}
"""A latent cell is 2 x 2 pixels."""


_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}
"""As published, plus the settings that the other schedulers of ``--scheduler`` need."""


_PNDM = {
    **_NOISE,
    "_class_name": "PNDMScheduler",
}


_EULER = {
    **_NOISE,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


_DDIM_V = {**_NOISE, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
"""Of Stable Diffusion 2.1."""


STOCK_PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "atom": {"text_encoder": _CLIP_ATOM, "vae": _VAE_ATOM, "scheduler": _PNDM},
    "tiny": {"text_encoder": _CLIP_TINY, "vae": _VAE_TINY, "scheduler": _PNDM},
    "tiny-half": {"text_encoder": _CLIP_TINY_HALF, "vae": _VAE_TINY_HALF, "scheduler": _PNDM},
    "tiny-sd2": {"text_encoder": _CLIP_TINY_SD2, "vae": _VAE_TINY, "scheduler": _DDIM_V},
    "tiny-sdxl": {
        "text_encoder": _CLIP_TINY_XL,
        "text_encoder_2": {**_CLIP_TINY_XL, "hidden_act": "gelu", "pad_token_id": 0},
        "vae": {**_VAE_TINY, **_XL_LATENTS},
        "scheduler": _EULER,
    },
    "sd15": {"text_encoder": _CLIP_L, "vae": _VAE, "scheduler": _PNDM},
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
        "vae": {**_VAE, **_XL_LATENTS, "sample_size": 1024},
        "scheduler": _EULER,
    },
}
"""Architecture -> part other than the UNet -> stock config, without class for encoders and VAE."""
