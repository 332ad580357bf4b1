"""Equivalent rewrites that make a graph run well, by name; each target lists those it needs.

``attention``  softmax attention as scale, bmm, softmax, bmm on [B·heads, tokens, d], without the
               mask and the guard against empty rows that delegates do not support.
``geglu``      the value and gate halves of a GEGLU as two linear layers, without a split.
``gate_weight`` for tasks that share weights: each gain goes to the smaller side of its linear
               layer, where a runtime that folds constants multiplies it in at load time.
``group_norm`` the mean and variance of large groups axis by axis, the variance from centred
               values: a kernel that sums a large group in one float32 loses digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from mtu_export.graph.gated import GatedLinear, WeightGatedLinear
from mtu_export.spec import UnknownName, Unsupported

Layer = TypeVar("Layer", bound=nn.Module)


class PlainAttention:
    """A diffusers attention processor made of batched matrix products and one softmax."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from hidden_states [B, n, d] to encoder_hidden_states [B, m, e] or to itself.

        For images [B, d, h, w], as in a VAE, every position attends to every other.
        """
        assert attention_mask is None
        inputs = hidden_states
        if inputs.ndim == 4:
            hidden_states = inputs.reshape(*inputs.shape[:2], -1).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        batch, tokens, _ = hidden_states.shape
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            split = x.reshape(batch, x.shape[1], attn.heads, -1).permute(0, 2, 1, 3)
            return split.reshape(batch * attn.heads, x.shape[1], -1)

        query, key = heads(attn.to_q(hidden_states)), heads(attn.to_k(context))
        scores = (query * attn.scale).bmm(key.transpose(1, 2)).softmax(-1)
        mixed = scores.bmm(heads(attn.to_v(context)))
        merged = mixed.reshape(batch, attn.heads, tokens, -1).permute(0, 2, 1, 3)
        out = attn.to_out[0](merged.reshape(batch, tokens, -1))
        if inputs.ndim == 4:
            out = out.transpose(1, 2).reshape(inputs.shape)
        if attn.residual_connection:
            out = out + inputs
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


_UNSUPPORTED_ATTENTION = ("norm_q", "norm_k", "norm_cross", "spatial_norm", "added_kv_proj_dim")
"""Attributes of a diffusers ``Attention`` that ``PlainAttention`` does not support."""


def attention(module: nn.Module) -> None:
    """Set ``PlainAttention`` on every diffusers ``Attention`` below ``module``.

    Scores are float32, as everything else is; a target that computes in float16 keeps them in
    float32 where the UNet's config sets ``upcast_attention``. Raises ``Unsupported`` for attention
    with norms of queries or keys, a spatial norm or added keys.
    """
    from diffusers.models.attention_processor import Attention

    for path, layer in module.named_modules():
        if not isinstance(layer, Attention):
            continue
        extras = [name for name in _UNSUPPORTED_ATTENTION if getattr(layer, name) is not None]
        if extras:
            raise Unsupported(
                f"{path or 'attention'}: attention with {', '.join(extras)} cannot be exported; "
                "plain softmax attention can"
            )
        layer.set_processor(PlainAttention())  # type: ignore[arg-type]


class TwoLinearGEGLU(nn.Module):
    """value(x) · gelu(gate(x)), each half with a linear layer of its own."""

    def __init__(self, value: nn.Linear, gate: nn.Linear) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., H]; exact GELU."""
        return self.value(x) * F.gelu(self.gate(x))


def geglu(module: nn.Module) -> None:
    """Split the projection of every diffusers ``GEGLU`` below ``module`` in two linear layers."""
    from diffusers.models.activations import GEGLU

    for parent, name, layer in _children(module, GEGLU):
        half = layer.proj.out_features // 2
        value, gate = _output_rows(layer.proj, 0, half), _output_rows(layer.proj, half, 2 * half)
        setattr(parent, name, TwoLinearGEGLU(value, gate))


def _output_rows(layer: nn.Module, begin: int, end: int) -> nn.Linear:
    """Output rows ``begin`` to ``end`` of a linear layer, sharing its memory."""
    assert isinstance(layer, nn.Linear)
    if isinstance(layer, GatedLinear):
        return layer.rows(begin, end)
    part = nn.Linear(layer.in_features, end - begin, layer.bias is not None, device="meta")
    part.weight = nn.Parameter(layer.weight.data[begin:end], requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.data[begin:end], requires_grad=False)
    return part


def gate_weight(module: nn.Module) -> None:
    """Make every ``GatedLinear`` below ``module`` apply its gain where it costs least."""
    for parent, name, layer in _children(module, GatedLinear):
        setattr(parent, name, WeightGatedLinear.of(layer))


def _children(module: nn.Module, kind: type[Layer]) -> list[tuple[nn.Module, str, Layer]]:
    """(parent, name, module) for each module of exactly this class below ``module``."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]


_LARGE_GROUP = 1 << 16
"""Largest group for which one float32 sum is accurate enough; at 512 x 512 the largest group has
40,960 values in SD 1.5's UNet and 1,048,576 in its VAE."""


class SteadyGroupNorm(nn.GroupNorm):
    """Group norm of [B, C, ...] whose sums run over one axis at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x; groups of ordinary size are left to PyTorch."""
        if x[0].numel() // self.num_groups <= _LARGE_GROUP:
            return super().forward(x)
        centred = x - self._mean(x)
        normalised = centred * (self._mean(centred * centred) + self.eps).rsqrt()
        if not self.affine:
            return normalised
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        return normalised * self.weight.reshape(per_channel) + self.bias.reshape(per_channel)

    def _mean(self, x: Tensor) -> Tensor:
        """Mean of each group, repeated for its channels: [B, C, 1, ...]."""
        batch, channels, ones = x.shape[0], x.shape[1], [1] * (x.ndim - 2)
        while x.ndim > 2:
            x = x.mean(-1)
        means = x.reshape(batch, self.num_groups, -1).mean(2, keepdim=True)
        size = channels // self.num_groups
        return means.expand(-1, -1, size).reshape(batch, channels, *ones)


def group_norm(module: nn.Module) -> None:
    """Make every ``GroupNorm`` below ``module`` sum large groups axis by axis."""
    for parent, name, norm in _children(module, nn.GroupNorm):
        steady = SteadyGroupNorm(
            norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta"
        )
        steady.weight, steady.bias = norm.weight, norm.bias
        setattr(parent, name, steady.train(norm.training))


REWRITES: Mapping[str, Callable[[nn.Module], None]] = {
    "attention": attention,
    "geglu": geglu,
    "gate_weight": gate_weight,
    "group_norm": group_norm,
}


def apply(module: nn.Module, names: Sequence[str]) -> None:
    """Apply the named rewrites in order, in place."""
    for name in names:
        if name not in REWRITES:
            raise UnknownName("rewrite", name, list(REWRITES))
        REWRITES[name](module)
