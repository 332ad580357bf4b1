"""Values that are wrong for a config key, or that change what a UNet computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAN = float("nan")
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -4, 1, 3, 7, 129, 10**9, 2**31, 2**63, 10**30, -(10**30)),
    *(0.5, -0.5, 1e-300, 1e300, _NAN, float("inf"), "x", "", "4", "NaN", "\ud800", "a\nb\x1b[2J"),
    *(
        [],
        [1],
        [0],
        [-1, -1],
        [4, 4],
        ["x", "x"],
        [1, 2, 3],
        [[1], [2]],
        [None, None],
        {},
        {"a": 1},
    ),
    *([4, 10**30], ["DownBlock2D", "DownBlock2D"], [[[[[[1]]]]]], "y" * 5000, 10**4000),
)
"""Values that are wrong for most keys."""
STOCK: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("x", "gelu", "relu", "swish", 4, "mish"),
    "addition_embed_type": ("text", "image", "text_image", "image_hint", "x", "text_time", 1),
    "addition_embed_type_num_heads": (0, 64, -1, "x"),
    "addition_time_embed_dim": (0, -2, 3, 16, 21, 22, 10**6, "x", 16.0),
    "attention_head_dim": (-4, 0, 3, 5, 64, "8", 1.5, [2, -4], [0, 0], [4, 4], [4], [[4], [4]]),
    "attention_type": ("gated", "gated-text-image", "x", None),
    "block_out_channels": ([32], [32, 0], [32, -64], [32, 64.0], [33, 64], [32, 48], [64, 32]),
    "center_input_sample": (True, "x", 2),
    "class_embed_type": ("timestep", "identity", "projection", "simple_projection", "x"),
    "class_embeddings_concat": (True, "x"),
    "conv_in_kernel": (0, 1, 2, 5, -3, 10**5, "3", [3, 3]),
    "conv_out_kernel": (0, 1, 2, 5, -3, 10**5, "3", [3, 3]),
    "cross_attention_dim": (0, 31, 33, [32, 32], "x", 32.0),
    "cross_attention_norm": ("layer_norm", "group_norm", "x"),
    "down_block_types": ("x", ["DownBlock2D"] * 2, ["KDownBlock2D"] * 2, ["x", "x"], [1, 2], [], 4),
    "downsample_padding": (0, 2, 3, 10**6, -1, 0.5, "x", [1, 1]),
    "dropout": (0.5, 1.0, 1.5, -0.1, "x"),
    "dual_cross_attention": (True, "x"),
    "encoder_hid_dim": (32, 0, -1, "x"),
    "encoder_hid_dim_type": ("text_proj", "text_image_proj", "image_proj", "ip_image_proj", "x"),
    "flip_sin_to_cos": (False, "x", 3),
    "freq_shift": (1, 16, 15, 16.0, 1e30, -1e30, "x", [1]),
    "in_channels": (0, 1, 3, 5, -4, 10**6, 4.0, "4", True),
    "layers_per_block": (0, 2, 100, -1, 1.5, "1", [1, 1], [1, 2], [1], [128, 128]),
    "mid_block_only_cross_attention": (True, False, "x"),
    "mid_block_scale_factor": (0, 2.0, 1e-30, 1e30, "x", -1),
    "mid_block_type": (None, "UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn", "x", 4),
    "norm_eps": ("x", 0, -1, 1e30, 1e-30, [1e-5], None),
    "norm_num_groups": (0, 1, 3, 32, 64, -16, None, "x", 16.0),
    "num_attention_heads": (4, 0, "x"),
    "num_class_embeds": (10, 0, -1, "x"),
    "only_cross_attention": (True, [True, False], "ab", [1], 4),
    "out_channels": (0, 1, 3, 5, -4, 10**6, 4.0, "4", True),
    "projection_class_embeddings_input_dim": (0, 96, 97, 127, -1, 10**7, "x", 128.5),
    "resnet_out_scale_factor": (0, 2.0, 1e-30, "x", [1]),
    "resnet_skip_time_act": (True, "x"),
    "resnet_time_scale_shift": ("scale_shift", "ada_group", "spatial", "x", 1),
    "reverse_transformer_layers_per_block": ([1, 1], [[1], [1]], [1], "x", 4),
    "sample_size": (0, -8, 7, 8, 24, 10**9, True, "16", 16.0, [8, 16], [8], [8, 8, 8], [-8, "x"]),
    "time_cond_proj_dim": (16, 0, -1, "x"),
    "time_embedding_act_fn": ("silu", "x", 1),
    "time_embedding_dim": (0, 64, 127, -1, 10**7, "x", 128),
    "time_embedding_type": ("fourier", "x", None, 4),
    "timestep_post_act": ("silu", "x", 1),
    "transformer_layers_per_block": (0, 2, 128, -1, "1", 1.5, [1, 1], [[1], [1]], [1], [128, 128]),
    "up_block_types": ("x", ["UpBlock2D"] * 2, ["KUpBlock2D"] * 2, ["x", "x"], [1, 2], [], 4),
    "upcast_attention": (True, "x"),
    "use_linear_projection": (True, False, "x"),
}
"""Keys of a stock UNet, with values that change its computation, shapes or inputs."""
OURS: Mapping[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel", "XUNet2DConditionModel", "x", None, "../x", ["MTU"]),
    "_diffusers_version": ("0.0.1", 5, None, "x"),
    "mtu_format": (0, 2, 1.0, "1", True, None, 10**9),
    "num_experts": (0, 1, 2, 3, 5, 128, 129, 10**6, -4, 4.0, "4", True),
    "router_hidden_dim": (0, 31, 33, -1, 2**24, "32", None),
    "task_embedding_dim": (0, 31, 33, -1, 2**24, "32", None),
    "task_norm": ("stacked", "x", None, 1, ["replace"]),
    "tasks": ([], None, {}, "edit", [1], [[]], [None], [{}], [{"name": "edit"}]),
}
