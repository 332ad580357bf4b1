"""Integer weight codes and scales in the modules of a PyTorch model.

Codes are symmetric and signed: ``weight ≈ scale · code``, with codes in −127..127 for 8 bits and no
zero point. The gain of a ``GatedLinear`` multiplies only the scales, so its codes do not depend on
the task.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtu_export.graph.gated import GatedLinear, bake
from mtu_export.spec import IntWeights, PerChannel, PlanError, Scheme, UnknownName, Unsupported
from mtu_export.spec.patterns import compile_pattern


def codes_and_scales(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantise a weight [out, ...]: int8 codes [out, ...] and float32 scales [out].

    The scale of an output row is max|row| / (2^(bits−1) − 1); a row of zeros has scale 1.
    """
    top = 2 ** (bits - 1) - 1
    peak = weight.detach().flatten(1).abs().amax(1).to(torch.float32)
    scales = peak / top
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, torch.ones_like(peak))
    divisors = scales.view(-1, *[1] * (weight.ndim - 1))
    codes = torch.round(weight.detach() / divisors).clamp_(-top, top)
    return codes.to(torch.int8), scales


class _Quantized(nn.Module):
    """Int8 codes [out, ...], float32 scales [out] and a float bias; dequantised in the graph."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, quantized: tuple[Tensor, ...], bits: int
    ) -> None:
        super().__init__()
        codes, scales, zeros = quantized
        bias = layer.bias
        if isinstance(layer, GatedLinear):
            tiny = torch.finfo(torch.float32).tiny
            scales = (scales * layer.gain.to(torch.float32)).clamp_min(tiny)
            bias = nn.Parameter(layer.gain * layer.bias, requires_grad=False)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.bias = bias
        self.top = 2 ** (bits - 1) - 1

    def weight(self) -> Tensor:
        """The dequantised weight, in float32."""
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
        return dequantize(self.codes, self.scales, self.zeros, 0, -self.top, self.top, torch.int8)


class QuantizedLinear(_Quantized):
    """A linear layer with integer weight codes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return F.linear(x, self.weight(), self.bias)


class QuantizedConv2d(_Quantized):
    """A 2-d convolution with integer weight codes."""

    def __init__(self, layer: nn.Conv2d, quantized: tuple[Tensor, ...], bits: int) -> None:
        super().__init__(layer, quantized, bits)
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in, h, w] to [B, out, h', w']."""
        return F.conv2d(
            x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def layers(module: nn.Module, scheme: Scheme) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the layers that an integer scheme quantises, and (path, reason) of those it keeps.

    Raises ``UnknownName`` for a required override that matches no layer, and ``PlanError`` where
    nothing is left to quantise.
    """
    paths = [path for path, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    overrides = [(keep, compile_pattern(keep.pattern)) for keep in scheme.overrides]
    for keep, pattern in overrides:
        if keep.required and not any(pattern.fullmatch(path) for path in paths):
            near = difflib.get_close_matches(keep.pattern, paths, 3, 0)
            raise UnknownName("layer to keep in float", keep.pattern, [*near, "..."])
    quantized: list[str] = []
    kept: list[tuple[str, str]] = []
    for path in paths:
        reason = next((keep.why for keep, pattern in overrides if pattern.fullmatch(path)), None)
        if reason is None:
            quantized.append(path)
        else:
            kept.append((path, reason))
    if not quantized:
        raise PlanError("--keep-float leaves no layer to quantise; choose fp32 or fp16")
    return quantized, kept


def quantize_layer(modules: Sequence[nn.Module], path: str, bits: int) -> list[nn.Module]:
    """Quantise the layer at ``path`` of each module in place; returns the float layers.

    Layers that share a weight share its codes, and also its scales where their gains are equal.
    Raises ``Unsupported`` for a convolution that does not pad with a fixed number of zeros.
    """
    import torch.ao.quantization.quantize_fx  # registers the operators of quantized_decomposed

    float_layers: list[nn.Module] = []
    by_weight: dict[tuple[int, torch.Size], tuple[Tensor, ...]] = {}
    for module in modules:
        layer = module.get_submodule(path)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        if isinstance(layer, nn.Conv2d):
            _check_padding(layer, path)
        weight = layer.weight
        key = (weight.data_ptr(), weight.shape)
        if key not in by_weight:
            codes, scales = codes_and_scales(weight, bits)
            by_weight[key] = (codes, scales, torch.zeros(len(scales), dtype=torch.int64))
        quantized_class = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        module.set_submodule(path, quantized_class(layer, by_weight[key], bits))  # type: ignore[arg-type]
        float_layers.append(layer)
    return float_layers


def _check_padding(layer: nn.Conv2d, path: str) -> None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise Unsupported(
            f"{path}: padding {layer.padding!r} of {layer.padding_mode!r} is not quantised; "
            f"numbers of 'zeros' are, or keep the layer: --keep-float {path}"
        )


def quantize(modules: Sequence[nn.Module], scheme: Scheme) -> tuple[tuple[str, str], ...]:
    """Quantise ``modules``, one per task of the same model, in place as ``scheme`` says.

    The gains of a single module are multiplied into what stays float; several modules keep theirs
    apart, because they share the weights. Returns (path, reason) of the layers that an override
    keeps in float. Layers are quantised one by one, so that each float weight is freed before the
    next is read.
    """
    weights, kept = scheme.weights, []
    if isinstance(weights, IntWeights):
        if weights.granularity != PerChannel(axis=0):
            raise Unsupported(
                f"scheme {scheme.name!r}: weights are quantised per output channel only"
            )
        quantized, kept = layers(modules[0], scheme)
        for path in quantized:
            quantize_layer(modules, path, weights.bits)
    if len(modules) == 1:
        bake(modules[0])
    return tuple(kept)
