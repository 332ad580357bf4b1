"""The graph of a Stable Diffusion UNet, with positional inputs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.graph.capture import Graph
from mtu_export.spec import CheckpointError, MtuExportError, TensorSpec, first_line

TEXT_TOKENS = 77
_LOGGERS = threading.RLock()
"""Held while the levels of other libraries' loggers, which all threads share, are changed."""


class UNetGraph(nn.Module):
    """A UNet with positional tensors in and one tensor out."""

    def __init__(self, unet: nn.Module, **fixed: str) -> None:
        super().__init__()
        self.unet = unet
        self.fixed = fixed

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Map sample [B, c_τ, h, w], timestep [1] and encoder_hidden_states [B, 77, d] to noise."""
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **self.fixed)[
            0
        ]


class XLUNetGraph(UNetGraph):
    """A UNet that also takes the pooled text embedding and the size ids of SDXL."""

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """As :class:`UNetGraph`, with text_embeds [B, p] and time_ids [B, 6] in addition."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            added_cond_kwargs=added,
            return_dict=False,
            **self.fixed,
        )[0]


def unet_graph(
    unet: nn.Module,
    config: Mapping[str, Any],
    *,
    channels: int,
    batch: int,
    latent: tuple[int, int],
    **fixed: str,
) -> Graph:
    """The graph of an SD or SDXL UNet with ``channels`` inputs; ``fixed`` goes to its forward."""
    inputs = [
        TensorSpec(name="sample", shape=(batch, channels, *latent)),
        TensorSpec(name="timestep", shape=(1,)),
        TensorSpec(
            name="encoder_hidden_states",
            shape=(batch, TEXT_TOKENS, config["cross_attention_dim"]),
        ),
    ]
    xl = PipelineLayout(config).is_sdxl
    if xl:
        ids = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - ids
        inputs += [
            TensorSpec(name="text_embeds", shape=(batch, pooled)),
            TensorSpec(name="time_ids", shape=(batch, 6)),
        ]
    outputs = (TensorSpec(name="out_sample", shape=(batch, config["out_channels"], *latent)),)
    module = (XLUNetGraph if xl else UNetGraph)(unet, **fixed).eval()
    return Graph(module=module, inputs=tuple(inputs), outputs=outputs)


@contextmanager
def as_checkpoint_error(
    where: str | Path = "unet/config.json", what: str = "UNet"
) -> Iterator[None]:
    """Turn what a library raises for an impossible config into a ``CheckpointError``.

    ``where`` names the config, ``what`` the model it should describe. Log messages of diffusers and
    transformers are suppressed.
    """
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    try:
        with _LOGGERS:
            levels = [logger.level for logger in loggers]
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            try:
                yield
            finally:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
    except (MtuExportError, MemoryError):
        raise
    except Exception as error:  # whatever a config of odd types and sizes triggers
        raise CheckpointError(f"{where} does not describe a {what}: {first_line(error)}") from None


def dry_run(graph: Graph) -> None:
    """Run a graph on the meta device, without data; refuses an output of unexpected shape.

    Errors that an impossible config triggers inside the model are not converted.
    """
    with torch.no_grad(), torch.device("meta"):
        output = graph.module(*(torch.empty(spec.shape) for spec in graph.inputs))
    expected = graph.outputs[0].shape
    if tuple(output.shape) != expected:
        raise CheckpointError(
            f"unet/config.json does not describe a UNet: its output is {list(output.shape)}, "
            f"not {list(expected)}"
        )
