"""Where the tensors of an MTU UNet are, beside those of a stock one."""

from __future__ import annotations

from mtu_export.models.pipeline.places import Place

LAYOUT = (
    Place(
        r"(.+\.ff)\.experts\.\d+\.proj\.(\w+)",
        "experts",
        r"\1.net.0.proj.\2",
        axis=0,
        halves=2,
        rescaled=True,
    ),
    Place(r"(.+\.ff)\.experts\.\d+\.out\.weight", "experts", r"\1.net.2.weight", axis=1),
    Place(r"(.+\.ff)\.experts\.\d+\.out\.bias", "experts", r"\1.net.2.bias"),
    Place(r".+\.ff\.router\..+", "routers"),
    Place(r"(conv_in|.+\.norm3)\.[^.]+\.(\w+)", "task tensors", r"\1.\2"),
    Place(r"task_embedding\..+", "task tensors", by_task=True),
)

EMBEDDING = "task_embedding"
"""The input of an unfolded UNet that takes e_τ [1, d_task], and the prefix of its constants."""
