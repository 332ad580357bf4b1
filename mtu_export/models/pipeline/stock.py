"""Stock parts of a pipeline, shared by all families: CLIP text encoders and the VAE.

They are loaded only from safetensors and turned into graphs that every toolchain accepts. Modules
and weights are those of transformers and diffusers; the text encoder's forward is defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.graph.capture import Graph
from mtu_export.graph.tensors import is_finite
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.layout import TINY_VAE, vae_scale_factor
from mtu_export.models.pipeline.stock_config import class_of, text_fields, vae_fields
from mtu_export.models.pipeline.unet import TEXT_TOKENS, as_checkpoint_error
from mtu_export.spec import MissingWeights, TensorSpec

TEXT_CLASSES: Mapping[str, type] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
VAE_CLASSES: Mapping[str, type] = {"AutoencoderKL": AutoencoderKL, TINY_VAE: AutoencoderTiny}
VAE = AutoencoderKL | AutoencoderTiny
_TEXT = "text_model."
"""Prefix of a text encoder's tensor names in most files."""
_MASKED = -1e4
"""Added to masked scores: representable in float16 and float32, and its exp is 0 in both."""
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the VAE's attention in old checkpoints -> current names."""


# ------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class _Outline:
    """A part on the meta device, and where each of its tensors is on disk.

    ``stored`` maps the names of the module's tensors to their names in ``headers``.
    """

    folder: Folder
    module: nn.Module
    headers: Mapping[str, checkpoint.Header]
    stored: Mapping[str, str]


def check_part(folder: Folder, name: str) -> None:
    """Refuse a part of a checkpoint that cannot be loaded; reads only its config and headers.

    ``name`` is ``"vae"`` or a text encoder's folder. Raises the errors of
    :func:`load_text_encoder`.
    """
    _outline(folder, name)


def load_text_encoder(folder: Folder, name: str) -> nn.Module:
    """Load a CLIP text encoder in float32, memory-mapped where it is stored as float32.

    ``name`` is ``"text_encoder"`` or ``"text_encoder_2"``. Raises ``CheckpointError`` for
    another class, impossible sizes and pickles, ``MissingWeights`` with the tensor's name.
    """
    module = _load_weights(_outline(folder, name))
    text: Any = getattr(module, "text_model", module)
    text.embeddings.position_ids = torch.arange(TEXT_TOKENS)[None]
    return module.requires_grad_(False).eval()


def load_vae(folder: Folder) -> VAE:
    """Load a checkpoint's VAE in float32, memory-mapped where it is stored as float32.

    Raises the errors of :func:`load_text_encoder`, also for shifted or normalised latents.
    """
    module = _load_weights(_outline(folder, "vae"))
    assert isinstance(module, VAE)
    return module.requires_grad_(False).eval()


def _outline(folder: Folder, name: str) -> _Outline:
    """The part that a config describes, with every tensor located in the headers."""
    part_folder = folder / name
    path = part_folder / "config.json"
    config = unet_config.without_training_keys(checkpoint.read_json(path))
    kind = class_of(folder, name, config)
    if name == "vae":
        headers = checkpoint.headers(part_folder)
        fields = vae_fields(kind, config, path)
        with as_checkpoint_error(path, "VAE"), torch.device("meta"):
            module: nn.Module = VAE_CLASSES[kind](**fields)
        names = {_current_name(stored): stored for stored in headers}
    else:
        ignored = checkpoint.POSITION_IDS
        headers = checkpoint.headers(part_folder, checkpoint.TEXT_WEIGHTS, ignored=ignored)
        fields = text_fields(config, path)
        with as_checkpoint_error(path, "CLIP text encoder"), torch.device("meta"):
            module = TEXT_CLASSES[kind](CLIPTextConfig(**fields))
        plain = kind == "CLIPTextModel" and all(stored.startswith(_TEXT) for stored in headers)
        names = {stored.removeprefix(_TEXT) if plain else stored: stored for stored in headers}
    if len(names) < len(headers):
        raise MissingWeights(f"{part_folder} holds the same weights under old and new names")
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    try:
        checkpoint.compare({name: headers[stored] for name, stored in names.items()}, expected)
    except MissingWeights as error:
        raise MissingWeights(f"{name}: {error}") from None
    return _Outline(part_folder, module, headers, names)


def _load_weights(outline: _Outline) -> nn.Module:
    """Load the outline's weights in float32; refuses values that are not finite."""
    state: dict[str, Tensor] = {}
    for name, stored in outline.stored.items():
        state[name] = checkpoint.tensor(outline.headers, stored).to(torch.float32)
        if not is_finite(state[name]):
            raise MissingWeights(f"{outline.folder.name}: tensor {stored!r} holds NaN or Inf")
    outline.module.load_state_dict(state, strict=True, assign=True)
    return outline.module


def _current_name(name: str) -> str:
    """The current name of a VAE tensor, which old checkpoints may call otherwise."""
    head, _, rest = name.partition(".mid_block.attentions.0.")
    old, _, leaf = rest.partition(".")
    return f"{head}.mid_block.attentions.0.{_RENAMED[old]}.{leaf}" if old in _RENAMED else name


# --------------------------------------------------------------------------------- text encoder


class TextEncoderGraph(nn.Module):
    """CLIP's text transformer, with a forward that every toolchain accepts.

    Modules and weights are the stock ones; attention is scale, bmm, adding a constant causal mask,
    softmax and bmm on [heads, 77, width]. Hidden states are those after ``tapped`` layers; layers
    that no output needs are left out.
    """

    causal: Tensor
    before: Tensor
    first: Tensor

    def __init__(self, module: nn.Module, *, penultimate: bool, pooled: bool, skip: int) -> None:
        super().__init__()
        text: Any = getattr(module, "text_model", module)
        config = text.config
        depth = config.num_hidden_layers
        self.penultimate, self.pooled = penultimate, pooled
        self.heads, self.eos = config.num_attention_heads, config.eos_token_id
        self.embeddings = text.embeddings
        self.tapped = depth - skip - penultimate
        self.layers = nn.ModuleList(list(text.encoder.layers)[: depth if pooled else self.tapped])
        if pooled or not penultimate:
            self.final_layer_norm = text.final_layer_norm
        self.text_projection = getattr(module, "text_projection", None) if pooled else None
        ones = torch.ones(TEXT_TOKENS, TEXT_TOKENS)
        self.register_buffer("causal", ones.triu(1) * _MASKED, persistent=False)
        if pooled:
            self.register_buffer("before", ones.triu(1), persistent=False)
            self.register_buffer("first", ones[:1].tril(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map input_ids [1, 77] to hidden states [1, 77, d] and, if requested, pooled [1, p]."""
        positions = self.embeddings.position_embedding.weight
        x = self.embeddings.token_embedding(input_ids) + positions
        hidden = x
        for number, layer in enumerate(self.layers, 1):
            x = x + self._attend(layer.self_attn, layer.layer_norm1(x))  # type: ignore[operator]
            x = x + layer.mlp(layer.layer_norm2(x))  # type: ignore[operator]
            hidden = x if number == self.tapped else hidden
        if not self.penultimate:
            hidden = self.final_layer_norm(hidden)
        if not self.pooled:
            return hidden
        pooled = self._end_selector(input_ids).bmm(self.final_layer_norm(x))[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return hidden, pooled

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        """Causal self-attention on x [1, 77, d]."""
        tokens, width = x.shape[1:]

        def split(y: Tensor) -> Tensor:
            return y.reshape(tokens, self.heads, width // self.heads).permute(1, 0, 2)

        query = split(attention.q_proj(x) * attention.scale)
        scores = query.bmm(split(attention.k_proj(x)).transpose(1, 2)) + self.causal
        mixed = scores.softmax(-1).bmm(split(attention.v_proj(x)))
        return attention.out_proj(mixed.permute(1, 0, 2).reshape(1, tokens, width))

    def _end_selector(self, input_ids: Tensor) -> Tensor:
        """1 at the first end-of-text token, else 0: float32 [1, 1, 77].

        As in transformers, the largest id marks the end if the config's ``eos_token_id`` is 2 (an
        old mistake), and a text without an end is read at its first token.
        """
        end = input_ids.amax(-1, keepdim=True) if self.eos == 2 else self.eos
        ends = (input_ids == end).to(torch.float32)
        first = F.relu(ends - ends @ self.before)  # 0 or less for an end that follows another
        return (first + self.first * (1 - first.sum(-1, keepdim=True)))[:, None]


def text_encoder_graph(
    module: nn.Module, config: Any, *, penultimate: bool, pooled: bool = False, skip: int = 0
) -> Graph:
    """The graph of a text encoder from :func:`load_text_encoder`, whose config is ``config``.

    With ``penultimate`` (SDXL) it returns the hidden states before the last layer, without the
    final norm, else the last ones after it; with ``skip`` those of as many layers before
    (diffusers' ``clip_skip``). With ``pooled`` it also returns the state at the end of the text
    after all layers, projected if the encoder has a projection. Shares the weights of ``module``.
    """
    width = config.hidden_size
    outputs = [TensorSpec(name="hidden_states", shape=(1, TEXT_TOKENS, width))]
    graph = TextEncoderGraph(module, penultimate=penultimate, pooled=pooled, skip=skip).eval()
    if pooled:
        size = width if graph.text_projection is None else graph.text_projection.out_features
        outputs.append(TensorSpec(name="pooled", shape=(1, size)))
    ids = TensorSpec(name="input_ids", shape=(1, TEXT_TOKENS), dtype="int32")
    return Graph(module=graph, inputs=(ids,), outputs=tuple(outputs))


# ------------------------------------------------------------------------------------------ VAE


class VAEEncoderGraph(nn.Module):
    """The encoder half of a VAE, up to the mean of the posterior; a tiny one has no posterior."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.channels = vae.config["latent_channels"]
        self.encoder = vae.encoder
        self.is_tiny = isinstance(vae, AutoencoderTiny)
        self.quant_conv = None
        if isinstance(vae, AutoencoderKL) and vae.quant_conv is not None:
            self.quant_conv = _first_channels(vae.quant_conv, self.channels)

    def forward(self, sample: Tensor) -> Tensor:
        """Map sample [1, 3, H, W] in −1..1 to the unscaled latent [1, C, h, w]."""
        moments = self.encoder(sample)
        if self.quant_conv is not None:
            return self.quant_conv(moments)
        return moments if self.is_tiny else moments[:, : self.channels]


def _first_channels(conv: nn.Conv2d, count: int) -> nn.Conv2d:
    """The first ``count`` output channels of a 1 x 1 convolution (a view), the posterior's mean."""
    means = nn.Conv2d(conv.in_channels, count, 1, device="meta")
    means.weight = nn.Parameter(conv.weight.data[:count], requires_grad=False)
    assert conv.bias is not None
    means.bias = nn.Parameter(conv.bias.data[:count], requires_grad=False)
    return means


class VAEDecoderGraph(nn.Module):
    """The decoder half of a VAE."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv if isinstance(vae, AutoencoderKL) else None
        self.decoder = vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Map a latent [1, C, h, w], divided by the scaling factor, to sample [1, 3, H, W]."""
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent)


def vae_encoder_graph(vae: VAE, height: int, width: int) -> Graph:
    """The graph from an image of this size in pixels to its latent, the posterior's mode."""
    image, latent = _image_and_latent(vae, height, width)
    return Graph(module=VAEEncoderGraph(vae).eval(), inputs=(image,), outputs=(latent,))


def vae_decoder_graph(vae: VAE, height: int, width: int) -> Graph:
    """The graph from a latent to an image of this size in pixels."""
    image, latent = _image_and_latent(vae, height, width)
    return Graph(module=VAEDecoderGraph(vae).eval(), inputs=(latent,), outputs=(image,))


def _image_and_latent(vae: VAE, height: int, width: int) -> tuple[TensorSpec, TensorSpec]:
    factor = vae_scale_factor(vae.config)
    cells = (height // factor, width // factor)
    image = TensorSpec(name="sample", shape=(1, 3, height, width))
    return image, TensorSpec(name="latent", shape=(1, vae.config["latent_channels"], *cells))
