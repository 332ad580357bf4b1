"""Named replacements of equal mathematics that make a graph run well; a target lists names.

``attention``  softmax attention as scale, bmm, softmax, bmm on [B·heads, tokens, d]: no mask, no
               guard against empty rows, which delegates do not take.
``geglu``      the value and gate halves of a GEGLU as two linear layers, without a split.
``gate_weight`` the gains of tasks that share weights on the smaller side of a linear layer, which
               a runtime that folds constants multiplies in when it loads.
``group_norm`` the mean and variance of large groups axis by axis, and the variance of what is
               centred: a kernel that sums a group in one float32 loses digits with its size.
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
    """A diffusers attention processor of batched matrix products and one softmax."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from hidden_states [B, n, d] to encoder_hidden_states [B, m, e] or to itself.

        Pictures [B, d, h, w], as in a VAE, attend from cell to cell.
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
"""Attributes of a diffusers ``Attention`` that the processor above does not compute."""


def attention(module: nn.Module) -> None:
    """Give every diffusers ``Attention`` below ``module`` the processor above.

    Scores are float32 as everything else; a target that computes in float16 keeps them so where
    the UNet's config says ``upcast_attention``. Raises ``Unsupported`` for one with norms of
    queries or keys, a spatial norm or keys of its own.
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
    """value(x) · gelu(gate(x)) with a linear layer each."""

    def __init__(self, value: nn.Linear, gate: nn.Linear) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., H]; exact GELU."""
        return self.value(x) * F.gelu(self.gate(x))


def geglu(module: nn.Module) -> None:
    """Split the projection of every diffusers ``GEGLU`` below ``module`` in two."""
    from diffusers.models.activations import GEGLU

    for parent, name, layer in _children(module, GEGLU):
        half = layer.proj.out_features // 2
        value, gate = _rows(layer.proj, 0, half), _rows(layer.proj, half, 2 * half)
        setattr(parent, name, TwoLinearGEGLU(value, gate))


def _rows(layer: nn.Module, begin: int, end: int) -> nn.Linear:
    """Output rows ``begin`` to ``end`` of a linear layer, on the same memory."""
    assert isinstance(layer, nn.Linear)
    if isinstance(layer, GatedLinear):
        return layer.rows(begin, end)
    part = nn.Linear(layer.in_features, end - begin, layer.bias is not None, device="meta")
    part.weight = nn.Parameter(layer.weight.data[begin:end], requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.data[begin:end], requires_grad=False)
    return part


def gate_weight(module: nn.Module) -> None:
    """Let every ``GatedLinear`` below ``module`` put its gain where it costs least."""
    for parent, name, layer in _children(module, GatedLinear):
        setattr(parent, name, WeightGatedLinear.of(layer))


def _children(module: nn.Module, kind: type[Layer]) -> list[tuple[nn.Module, str, Layer]]:
    """Modules of exactly this class below ``module``, each with its parent and name."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]


_LARGE_GROUP = 1 << 16
"""Numbers of a group up to which one float32 sum does: the largest of SD 1.5's UNet at 512 x 512
has 40,960, of its VAE 1,048,576."""


class SteadyGroupNorm(nn.GroupNorm):
    """Group norm of [B, C, ...] whose sums run over one axis at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; groups that are not large go the stock way."""
        if x[0].numel() // self.num_groups <= _LARGE_GROUP:
            return super().forward(x)
        centred = x - self._mean(x)
        normalised = centred * (self._mean(centred * centred) + self.eps).rsqrt()
        if not self.affine:
            return normalised
        ones = (1, -1, *[1] * (x.ndim - 2))
        return normalised * self.weight.reshape(ones) + self.bias.reshape(ones)

    def _mean(self, x: Tensor) -> Tensor:
        """Mean of each group, [B, C, 1, ...]."""
        batch, channels, ones = x.shape[0], x.shape[1], [1] * (x.ndim - 2)
        while x.ndim > 2:
            x = x.mean(-1)
        means = x.reshape(batch, self.num_groups, -1).mean(2, keepdim=True)
        size = channels // self.num_groups
        return means.expand(-1, -1, size).reshape(batch, channels, *ones)


def group_norm(module: nn.Module) -> None:
    """Let every ``GroupNorm`` below ``module`` sum large groups axis by axis."""
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
