"""The graph of a Stable Diffusion UNet, with positional inputs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.graph.capture import Graph
from mtu_export.graph.tensors import is_finite
from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.spec import (
    CheckpointError,
    MissingWeights,
    MtuExportError,
    TensorSpec,
    first_line,
)

_Module = TypeVar("_Module", bound=nn.Module)
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


class GuidedUNetGraph(UNetGraph):
    """A UNet distilled with guidance, which takes the scale w [1] as an input.

    Its embedding is that of Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023,
    as diffusers' LCM pipelines form it: sines and cosines of 1000 (w − 1).
    """

    frequencies: Tensor

    def __init__(self, unet: nn.Module, **fixed: str) -> None:
        super().__init__(unet, **fixed)
        config: Any = unet.config
        half = int(config["time_cond_proj_dim"]) // 2
        device = next(unet.parameters()).device
        numbers = torch.arange(half, dtype=torch.float32, device=device)
        exponents = numbers * -(math.log(10_000.0) / (half - 1))
        self.register_buffer("frequencies", exponents.exp()[None], persistent=False)
        self.padding = int(config["time_cond_proj_dim"]) % 2

    def _embedding(self, guidance_scale: Tensor, batch: int) -> Tensor:
        """The scale w [1] as [B, time_cond_proj_dim]; an odd width ends in a zero."""
        angles = ((guidance_scale - 1.0) * 1000.0)[:, None] * self.frequencies
        embedding = torch.cat([angles.sin(), angles.cos()], 1)
        if self.padding:
            embedding = torch.nn.functional.pad(embedding, (0, 1))
        return embedding.expand(batch, -1)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        guidance_scale: Tensor,
    ) -> Tensor:
        """As :class:`UNetGraph`, with guidance_scale [1] in addition."""
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=self._embedding(guidance_scale, sample.shape[0]),
            return_dict=False,
            **self.fixed,
        )[0]


class GuidedXLUNetGraph(GuidedUNetGraph):
    """:class:`GuidedUNetGraph` of SDXL."""

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        guidance_scale: Tensor,
    ) -> Tensor:
        """As :class:`XLUNetGraph`, with guidance_scale [1] in addition."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=self._embedding(guidance_scale, sample.shape[0]),
            added_cond_kwargs=added,
            return_dict=False,
            **self.fixed,
        )[0]


def load(folder: Folder, config: Mapping[str, Any]) -> UNet2DConditionModel:
    """Load a stock UNet in float32, memory-mapped where it is stored as float32.

    Raises ``CheckpointError`` for a config that describes no UNet and ``MissingWeights``.
    """
    headers = checkpoint.headers(folder)
    module = outline(config)
    checkpoint.compare(headers, {k: tuple(v.shape) for k, v in module.state_dict().items()})
    return fill(module, headers)


def fill(module: _Module, headers: Mapping[str, checkpoint.Header]) -> _Module:
    """Give a module on the meta device the tensors of ``headers``, in float32, to be run.

    Raises ``MissingWeights`` for NaN and Inf.
    """
    state: dict[str, Tensor] = {}
    for name in headers:
        state[name] = checkpoint.tensor(headers, name).to(torch.float32)
        if not is_finite(state[name]):
            raise MissingWeights(f"tensor {name!r} holds NaN or Inf")
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def outline(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A stock UNet on the meta device; a dry run refuses configs that describe no working one."""
    with as_checkpoint_error(), torch.device("meta"):
        module = UNet2DConditionModel.from_config(dict(config))
    assert isinstance(module, UNet2DConditionModel)
    side = 2 ** len(module.config["block_out_channels"])
    with as_checkpoint_error():
        dry_run(
            unet_graph(
                module,
                module.config,
                channels=module.config["in_channels"],
                batch=1,
                latent=(side, side),
            )
        )
    return module


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
    guided = config.get("time_cond_proj_dim") is not None
    if guided:
        inputs.append(TensorSpec(name="guidance_scale", shape=(1,)))
    outputs = (TensorSpec(name="out_sample", shape=(batch, config["out_channels"], *latent)),)
    plain, with_scale = (XLUNetGraph, GuidedXLUNetGraph) if xl else (UNetGraph, GuidedUNetGraph)
    module = (with_scale if guided else plain)(unet, **fixed).eval()
    return Graph(module=module, inputs=tuple(inputs), outputs=outputs, named=unet)


def random(config: Mapping[str, Any], seed: int) -> UNet2DConditionModel:
    """A stock UNet with the weights that diffusers gives to a new one."""
    outline(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = UNet2DConditionModel.from_config(dict(config))
    assert isinstance(module, UNet2DConditionModel)
    return module.requires_grad_(False).eval()


@contextmanager
def as_checkpoint_error(
    where: str | Folder = "unet/config.json", what: str = "UNet"
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
