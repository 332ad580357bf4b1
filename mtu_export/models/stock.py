"""Stock parts of a pipeline, shared by families: CLIP text encoders and the VAE.

They are loaded from safetensors alone, and leave as graphs that every toolchain takes: the modules
and weights are those of transformers and diffusers, the forward of the text encoder is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mtu_export import checkpoint
from mtu_export.checkpoint.layout import vae_scale_factor
from mtu_export.graph.capture import Graph
from mtu_export.graph.tensors import is_finite
from mtu_export.models.stock_config import check_vae, class_of, text_fields
from mtu_export.models.unet import TEXT_TOKENS, as_checkpoint_error
from mtu_export.spec import MissingWeights, TensorSpec

TEXT_CLASSES: Mapping[str, type] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
_TEXT = "text_model."
"""Begins the names of a text encoder's tensors in most files."""
_MASKED = -1e4
"""Added to scores that must not count: exp of it is 0 in float32 and float16, and both hold it."""
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that the VAE's attention has in old checkpoints -> its names today."""


# ------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class _Outline:
    """A part without memory, and where each of its tensors is on disk.

    ``stored`` maps names of the module's tensors to names in the files that ``headers`` are of.
    """

    folder: Path
    module: nn.Module
    headers: Mapping[str, checkpoint.Header]
    stored: Mapping[str, str]


def check_part(folder: Path, name: str) -> None:
    """Refuse a part of a checkpoint that cannot be loaded, by its config and headers alone.

    ``name`` is ``"vae"`` or a text encoder's folder. Raises as :func:`load_text_encoder`.
    """
    _outline(folder, name)


def load_text_encoder(folder: Path, name: str) -> nn.Module:
    """The CLIP text encoder of a checkpoint in float32; mapped from disk where stored so.

    ``name`` is ``"text_encoder"`` or ``"text_encoder_2"``. Raises ``CheckpointError`` for another
    class, sizes that make no encoder and pickles, ``MissingWeights`` for tensors by name.
    """
    module = _filled(_outline(folder, name))
    text: Any = getattr(module, "text_model", module)
    text.embeddings.position_ids = torch.arange(TEXT_TOKENS)[None]
    return module.requires_grad_(False).eval()


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE of a checkpoint in float32; mapped from disk where stored so.

    Raises as :func:`load_text_encoder`, and for latents that are shifted or normalised.
    """
    module = _filled(_outline(folder, "vae"))
    assert isinstance(module, AutoencoderKL)
    return module.requires_grad_(False).eval()


def _outline(folder: Path, name: str) -> _Outline:
    """A part as its config says, with all of its tensors found in the headers."""
    home = folder / name
    path = home / "config.json"
    config = checkpoint.without_training_keys(checkpoint.read_json(path))
    kind = class_of(folder, name, config)
    if name == "vae":
        headers = checkpoint.headers(home)
        check_vae(config, path)
        fields = {key: value for key, value in config.items() if not key.startswith("_")}
        with as_checkpoint_error(path, "VAE"), torch.device("meta"):
            module: nn.Module = AutoencoderKL(**fields)
        names = {_today(stored): stored for stored in headers}
    else:
        ignored = checkpoint.POSITION_IDS
        headers = checkpoint.headers(home, checkpoint.TEXT_WEIGHTS, ignored=ignored)
        fields = text_fields(config, path)
        with as_checkpoint_error(path, "CLIP text encoder"), torch.device("meta"):
            module = TEXT_CLASSES[kind](CLIPTextConfig(**fields))
        plain = kind == "CLIPTextModel" and all(stored.startswith(_TEXT) for stored in headers)
        names = {stored.removeprefix(_TEXT) if plain else stored: stored for stored in headers}
    if len(names) < len(headers):
        raise MissingWeights(f"{home}: the same weights are there under old and new names")
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    try:
        checkpoint.compare({new: headers[old] for new, old in names.items()}, expected)
    except MissingWeights as error:
        raise MissingWeights(f"{name}: {error}") from None
    return _Outline(home, module, headers, names)


def _filled(outline: _Outline) -> nn.Module:
    """The module with its weights: finite, in float32."""
    state: dict[str, Tensor] = {}
    for name, stored in outline.stored.items():
        state[name] = checkpoint.tensor(outline.headers, stored).to(torch.float32)
        if not is_finite(state[name]):
            raise MissingWeights(f"{outline.folder.name}: tensor {stored!r} holds NaN or Inf")
    outline.module.load_state_dict(state, strict=True, assign=True)
    return outline.module


def _today(name: str) -> str:
    """The name that a VAE tensor has today."""
    head, _, rest = name.partition(".mid_block.attentions.0.")
    old, _, leaf = rest.partition(".")
    return f"{head}.mid_block.attentions.0.{_RENAMED[old]}.{leaf}" if old in _RENAMED else name


# --------------------------------------------------------------------------------- text encoder


class TextEncoderGraph(nn.Module):
    """CLIP's text transformer with one forward for every toolchain.

    Stock modules and weights; attention is scale, bmm, an added causal mask of constants, softmax,
    bmm on [heads, 77, width]. Layers that no output needs are left out.
    """

    causal: Tensor
    before: Tensor
    first: Tensor

    def __init__(self, module: nn.Module, *, penultimate: bool, pooled: bool) -> None:
        super().__init__()
        text: Any = getattr(module, "text_model", module)
        config = text.config
        depth = config.num_hidden_layers
        self.penultimate, self.pooled = penultimate, pooled
        self.heads, self.eos = config.num_attention_heads, config.eos_token_id
        self.embeddings = text.embeddings
        used = depth if pooled or not penultimate else depth - 1
        self.layers = nn.ModuleList(list(text.encoder.layers)[:used])
        self.tapped = depth - 1
        if pooled or not penultimate:
            self.final_layer_norm = text.final_layer_norm
        self.text_projection = getattr(module, "text_projection", None) if pooled else None
        ones = torch.ones(TEXT_TOKENS, TEXT_TOKENS)
        self.register_buffer("causal", ones.triu(1) * _MASKED, persistent=False)
        if pooled:
            self.register_buffer("before", ones.triu(1), persistent=False)
            self.register_buffer("first", ones[:1].tril(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map input_ids [1, 77] to hidden states [1, 77, d] and, where asked, pooled [1, p]."""
        positions = self.embeddings.position_embedding.weight
        x = self.embeddings.token_embedding(input_ids) + positions
        hidden = x
        for number, layer in enumerate(self.layers):
            hidden = x if self.penultimate and number == self.tapped else hidden
            x = x + self._attend(layer.self_attn, layer.layer_norm1(x))  # type: ignore[operator]
            x = x + layer.mlp(layer.layer_norm2(x))  # type: ignore[operator]
        if self.penultimate and not self.pooled:
            return x
        last = self.final_layer_norm(x)
        if not self.pooled:
            return last
        pooled = self._ends(input_ids).bmm(last)[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return (hidden if self.penultimate else last), pooled

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        """Causal self-attention on x [1, 77, d]."""
        tokens, width = x.shape[1:]

        def split(y: Tensor) -> Tensor:
            return y.reshape(tokens, self.heads, width // self.heads).permute(1, 0, 2)

        query = split(attention.q_proj(x) * attention.scale)
        scores = query.bmm(split(attention.k_proj(x)).transpose(1, 2)) + self.causal
        mixed = scores.softmax(-1).bmm(split(attention.v_proj(x)))
        return attention.out_proj(mixed.permute(1, 0, 2).reshape(1, tokens, width))

    def _ends(self, input_ids: Tensor) -> Tensor:
        """One at the first end of the text, else zero: float32 [1, 1, 77].

        Where the config says 2 (an old mistake) the greatest id marks the end, as in transformers;
        a text without an end is read at its first token, as there.
        """
        end = input_ids.amax(-1, keepdim=True) if self.eos == 2 else self.eos
        marks = (input_ids == end).to(torch.float32)
        first = F.relu(marks - marks @ self.before)  # an end with ends before it is 0 or less
        return (first + self.first * (1 - first.sum(-1, keepdim=True)))[:, None]


def text_encoder_graph(
    module: nn.Module, config: Any, *, penultimate: bool, pooled: bool = False
) -> Graph:
    """The graph of a text encoder of :func:`load_text_encoder` and its ``config``.

    ``penultimate`` (SDXL): the hidden states before the last layer, without the final norm, else
    the last ones behind it. ``pooled``: the state at the end of the text, projected where the
    encoder has a projection. The module shares the weights of ``module``.
    """
    width = config.hidden_size
    outputs = [TensorSpec(name="hidden_states", shape=(1, TEXT_TOKENS, width))]
    graph = TextEncoderGraph(module, penultimate=penultimate, pooled=pooled).eval()
    if pooled:
        size = width if graph.text_projection is None else graph.text_projection.out_features
        outputs.append(TensorSpec(name="pooled", shape=(1, size)))
    ids = TensorSpec(name="input_ids", shape=(1, TEXT_TOKENS), dtype="int32")
    return Graph(module=graph, inputs=(ids,), outputs=tuple(outputs))


# ------------------------------------------------------------------------------------------ VAE


class VAEEncoderGraph(nn.Module):
    """The encoder's half of a VAE, up to the mean of the posterior."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.channels = vae.config["latent_channels"]
        self.encoder = vae.encoder
        self.quant_conv = None
        if vae.quant_conv is not None:
            self.quant_conv = _first_rows(vae.quant_conv, self.channels)

    def forward(self, sample: Tensor) -> Tensor:
        """Map sample [1, 3, H, W] in −1..1 to the unscaled latent [1, C, h, w]."""
        moments = self.encoder(sample)
        if self.quant_conv is not None:
            return self.quant_conv(moments)
        return moments[:, : self.channels]


def _first_rows(conv: nn.Conv2d, rows: int) -> nn.Conv2d:
    """The convolution of the first output channels (a view); those of the variance go."""
    part = nn.Conv2d(conv.in_channels, rows, 1, device="meta")
    part.weight = nn.Parameter(conv.weight.data[:rows], requires_grad=False)
    assert conv.bias is not None
    part.bias = nn.Parameter(conv.bias.data[:rows], requires_grad=False)
    return part


class VAEDecoderGraph(nn.Module):
    """The decoder's half of a VAE."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Map a latent [1, C, h, w], divided by the scaling factor, to sample [1, 3, H, W]."""
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent)


def vae_encoder_graph(vae: AutoencoderKL, height: int, width: int) -> Graph:
    """The graph from a picture of this size in pixels to its latent: the posterior's mode."""
    image, latent = _sides(vae, height, width)
    return Graph(module=VAEEncoderGraph(vae).eval(), inputs=(image,), outputs=(latent,))


def vae_decoder_graph(vae: AutoencoderKL, height: int, width: int) -> Graph:
    """The graph from a latent to a picture of this size in pixels."""
    image, latent = _sides(vae, height, width)
    return Graph(module=VAEDecoderGraph(vae).eval(), inputs=(latent,), outputs=(image,))


def _sides(vae: AutoencoderKL, height: int, width: int) -> tuple[TensorSpec, TensorSpec]:
    factor = vae_scale_factor(vae.config)
    cells = (height // factor, width // factor)
    image = TensorSpec(name="sample", shape=(1, 3, height, width))
    return image, TensorSpec(name="latent", shape=(1, vae.config["latent_channels"], *cells))
