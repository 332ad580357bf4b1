"""Weight codes and scales, put into the modules of a PyTorch model.

Symmetric signed codes: ``weight ≈ scale · code``, code in −127..127 for 8 bits, no zero point.
The gain of a ``GatedLinear`` multiplies the scales alone, so its codes do not depend on the task.
"""

from __future__ import annotations

import difflib
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtu_export.models.blocks import GatedLinear, bake
from mtu_export.spec import IntWeights, PerChannel, PlanError, Scheme, UnknownName, Unsupported


def codes_and_scales(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Codes int8 [out, ...] and scales float32 [out] of a weight [out, ...].

    The scale of a row is max|row| / (2^(bits−1) − 1); a row of zeros has scale 1.
    """
    top = 2 ** (bits - 1) - 1
    peak = weight.detach().flatten(1).abs().amax(1).to(torch.float32)
    scales = peak / top
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, torch.ones_like(peak))
    wide = scales.view(-1, *[1] * (weight.ndim - 1))
    codes = torch.round(weight.detach() / wide).clamp_(-top, top)
    return codes.to(torch.int8), scales


class _Quantized(nn.Module):
    """Codes int8 [out, ...], scales float32 [out] and a float bias; dequantised in the graph."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int) -> None:
        super().__init__()
        codes, scales = codes_and_scales(layer.weight, bits)
        bias = layer.bias
        if isinstance(layer, GatedLinear):
            scales = scales * layer.gain.to(torch.float32)
            bias = nn.Parameter(layer.gain * layer.bias, requires_grad=False)
        dead = scales < torch.finfo(torch.float32).tiny
        codes[dead] = 0
        scales = torch.where(dead, torch.ones_like(scales), scales)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
        self.bias = bias
        self.top = 2 ** (bits - 1) - 1

    def weight(self) -> Tensor:
        """The weight that the codes stand for, in float32."""
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
        return dequantize(self.codes, self.scales, self.zeros, 0, -self.top, self.top, torch.int8)


class QuantizedLinear(_Quantized):
    """A linear layer with integer weight codes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return F.linear(x, self.weight(), self.bias)


class QuantizedConv2d(_Quantized):
    """A 2-d convolution with integer weight codes."""

    def __init__(self, layer: nn.Conv2d, bits: int) -> None:
        super().__init__(layer, bits)
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in, h, w] to [B, out, h', w']."""
        return F.conv2d(
            x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def layers(module: nn.Module, scheme: Scheme) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the layers that an integer scheme quantises, and those it keeps, with the reason.

    Raises ``UnknownName`` for a required override that matches no layer, and ``PlanError`` where
    nothing is left to quantise.
    """
    paths = [path for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for row in scheme.overrides:
        if row.required and not any(re.fullmatch(row.pattern, path) for path in paths):
            near = difflib.get_close_matches(row.pattern, paths, 3, 0)
            raise UnknownName("layer to keep in float", row.pattern, [*near, "..."])
    taken: list[str] = []
    kept: list[tuple[str, str]] = []
    for path in paths:
        why = next((o.why for o in scheme.overrides if re.fullmatch(o.pattern, path)), None)
        taken.append(path) if why is None else kept.append((path, why))
    if not taken:
        raise PlanError("--keep-float leaves no layer to quantise; choose fp32 or fp16")
    return taken, kept


def quantize_layer(module: nn.Module, path: str, bits: int) -> nn.Module:
    """Replace the layer at ``path`` by its quantised twin; returns the float layer."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401  registers the dequantize operator

    layer = module.get_submodule(path)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    convolution = isinstance(layer, nn.Conv2d)
    twin = QuantizedConv2d(layer, bits) if convolution else QuantizedLinear(layer, bits)
    module.set_submodule(path, twin)
    return layer


def quantize(module: nn.Module, scheme: Scheme) -> tuple[tuple[str, str], ...]:
    """Quantise ``module`` in place as ``scheme`` says; float schemes multiply the gains in.

    Returns the layers that keep float by an override, with the reason. Layers go one by one, so
    that a float weight is freed before the next is read.
    """
    weights = scheme.weights
    if not isinstance(weights, IntWeights):
        bake(module)
        return ()
    if weights.granularity != PerChannel(axis=0):
        raise Unsupported(f"scheme {scheme.name!r}: weights are quantised per output channel only")
    taken, kept = layers(module, scheme)
    for path in taken:
        quantize_layer(module, path, weights.bits)
    bake(module)
    return tuple(kept)
