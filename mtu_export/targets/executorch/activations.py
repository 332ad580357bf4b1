"""Dynamic int8 quantisation of the inputs of layers whose weights are int8 codes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

LEAST_SCALE = 1e-9
"""Lower limit of an image's scale: an image may be all zeros."""


def make_int8(
    exported: torch.export.ExportedProgram,
    task_tensors: Collection[str] = (),
    common_scales: Mapping[str, torch.Tensor] | None = None,
) -> torch.export.ExportedProgram:
    """Quantise at run time the input of every layer whose weight is int8 codes.

    One range covers:

    ===================== ========================= =============================
    layer                 in XNNPACK                when PyTorch runs the program
    ===================== ========================= =============================
    linear, 1 x 1 conv    one token                 one token
    other convolutions    one image of the batch    the whole batch
    ===================== ========================= =============================

    Outputs are float32. Returns a new program that shares the tensors of ``exported``. Raises
    ``ValueError`` for a depthwise convolution, or one with a single input channel: XNNPACK has no
    such kernel. XNNPACK's own quantiser is not used: it recomputes weight scales and clamps them
    at 2^-12.

    XNNPACK's cache of packed weights, which a runtime may enable, treats layers with equal codes as
    equal, whatever their scales and biases. So that the methods of one file can share codes, a
    layer's differing scales and bias are applied after it, in float. ``task_tensors`` names the
    tensors that differ between methods; ``common_scales`` holds shared values for the scales among
    them.
    """
    import torch
    import torch.ao.quantization.quantize_fx  # registers the operators of quantized_decomposed

    aten, quantised = torch.ops.aten, torch.ops.quantized_decomposed
    program = exported.run_decompositions({})
    for node in program.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default  # its input may no longer be contiguous
    layers = [
        node
        for node in program.graph.nodes
        if node.target in (aten.conv2d.default, aten.linear.default)
        and getattr(node.args[1], "target", None) is quantised.dequantize_per_channel.default
    ]
    for layer in layers:
        if layer.target is aten.conv2d.default and not _is_pointwise(layer):
            quantised_layer = _quantise_image(program, layer)
        else:
            on_image = layer.args[0].meta["val"].ndim >= 4
            quantised_layer = _on_tokens(program, layer) if on_image else layer
            _quantise_tokens(quantised_layer)
        _apply_differences_after(program, quantised_layer, task_tensors, common_scales or {})
    program.graph_module.recompile()
    return program


def _convolution(layer: Any) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a ``conv2d``."""
    passed = layer.args[3:]
    return (*passed, *_CONVOLUTION_DEFAULTS[len(passed) :])


_CONVOLUTION_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)


def _is_pointwise(layer: Any) -> bool:
    """Whether a convolution is 1 x 1, with stride 1, no padding and one group."""
    strides, padding, _, groups = _convolution(layer)
    is_plain = [*strides, *padding, groups] == [1, 1, 0, 0, 1]
    return is_plain and tuple(layer.args[1].meta["val"].shape[2:]) == (1, 1)


def _on_tokens(program: torch.export.ExportedProgram, layer: Any) -> Any:
    """Rewrite a layer on images as a linear layer on tokens [B, n, in], and return that.

    ``layer`` is a 1 x 1 convolution on [B, in, h, w], or a linear layer on [B, h, w, in].
    """
    import torch

    aten = torch.ops.aten
    source, weight, *rest = layer.args
    output = layer.meta["val"]

    def call(function: Any, *arguments: Any) -> Any:
        values = [getattr(x, "meta", {"val": x})["val"] for x in arguments]
        return _call(function, arguments, function(*values), layer)

    if layer.target is aten.linear.default:
        batch, height, width, channels = source.meta["val"].shape
        tokens = call(aten.reshape.default, source, [batch, height * width, channels])
        linear = result = call(aten.linear.default, tokens, weight, *rest)
    else:
        codes = weight.args[0]
        for spec in program.graph_signature.input_specs:
            for stored in cast(list[dict[Any, Any]], [program.state_dict, program.constants]):
                if spec.arg.name == codes.name and spec.target in stored:
                    stored[spec.target] = stored[spec.target].flatten(1)
        for node in (codes, weight):
            node.meta["val"] = node.meta["val"].flatten(1)
        batch, channels, height, width = source.meta["val"].shape
        pixels = call(aten.reshape.default, source, [batch, channels, height * width])
        tokens = call(aten.permute.default, pixels, [0, 2, 1])
        linear = call(aten.linear.default, tokens, weight, *rest[:1])
        result = call(aten.permute.default, linear, [0, 2, 1])
    _replace(program, layer, call(aten.reshape.default, result, list(output.shape)))
    return linear


def _quantise_tokens(layer: Any) -> None:
    """Rewrite ``linear(x, w, b)`` as ``linear(dq(q(x)), w, b)``, with one range per token of x.

    Layers with a common input do not share its codes: a graph in which they do cannot be split
    into delegates.
    """
    import torch

    quantised = torch.ops.quantized_decomposed
    source = layer.args[0]
    like, codes = source.meta["val"], source.meta["val"].to(torch.int8)
    choose_qparams = quantised.choose_qparams_per_token_asymmetric.default
    chosen_qparams = _call(
        choose_qparams, (source, torch.int8), choose_qparams(like, torch.int8), layer
    )
    scale_and_zero = [
        _call(operator.getitem, (chosen_qparams, i), chosen_qparams.meta["val"][i], layer)
        for i in range(2)
    ]
    qparams = (*scale_and_zero, -128, 127, torch.int8)
    codes = _call(quantised.quantize_per_token.default, (source, *qparams), codes, layer)
    dequantize = quantised.dequantize_per_token.default
    layer.replace_input_with(
        source, _call(dequantize, (codes, *qparams, torch.float32), like, layer)
    )


def _quantise_image(program: torch.export.ExportedProgram, layer: Any) -> Any:
    """Rewrite ``conv2d(x, w, b)`` as ``conv2d(dq(q(x)), w, b)``, with one range for all of x.

    The rows of the padding (or one row below, if there is none) are concatenated to x in float.
    This works around ExecuTorch 1.5.1: instead of x it changes the layout of the first value in the
    delegate from which x derives through operators of one input, and fails or computes wrong
    results if that is another value. An operator with a list of inputs ends this search. Zeros do
    not widen the range, which always contains zero. Returns the new layer.
    """
    import torch

    aten, quantised = torch.ops.aten, torch.ops.quantized_decomposed
    source, weight, *rest = layer.args
    strides, padding, dilation, groups = _convolution(layer)
    if weight.meta["val"].shape[1] == 1:
        raise ValueError(f"{layer.name}: XNNPACK has no depthwise convolution of dynamic int8")
    batch, channels, _, width = source.meta["val"].shape
    zeros = torch.zeros(batch, channels, max(1, padding[0]), width)
    padding_rows = _constant(program, f"{layer.name}_rows", zeros)
    parts = [padding_rows, source, padding_rows] if padding[0] else [source, padding_rows]
    like = aten.cat.default([node.meta["val"] for node in parts], 2)
    padded = _call(aten.cat.default, (parts, 2), like, layer)

    choose_qparams, codes = quantised.choose_qparams.tensor, like.to(torch.int8)
    limits = (-128, 127, LEAST_SCALE, torch.int8)
    chosen_qparams = _call(choose_qparams, (padded, *limits), choose_qparams(like, *limits), layer)
    scale_and_zero = [
        _call(operator.getitem, (chosen_qparams, i), chosen_qparams.meta["val"][i], layer)
        for i in range(2)
    ]
    qparams = (*scale_and_zero, -128, 127, torch.int8)
    codes = _call(quantised.quantize_per_tensor.tensor, (padded, *qparams), codes, layer)
    dequantised = _call(quantised.dequantize_per_tensor.tensor, (codes, *qparams), like, layer)

    bias, output = rest[0] if rest else None, layer.meta["val"]
    settings = (strides, [0, padding[1]], dilation, groups)
    values = [None if node is None else node.meta["val"] for node in (dequantised, weight, bias)]
    like = aten.conv2d.default(*values, *settings)
    convolution = result = _call(
        aten.conv2d.default, (dequantised, weight, bias, *settings), like, layer
    )
    if like.shape != output.shape:
        result = _call(aten.slice.Tensor, (convolution, 2, 0, output.shape[2]), output, layer)
    _replace(program, layer, result)
    return convolution


def _apply_differences_after(
    program: torch.export.ExportedProgram,
    layer: Any,
    task_tensors: Collection[str],
    common_scales: Mapping[str, torch.Tensor],
) -> None:
    """Rewrite ``layer(x, s·codes, b)`` as ``layer(x, c·codes) · s/c + b`` with common scales c.

    If all methods have the same scales, only b is moved out; if they also have the same b, nothing.
    """
    import torch

    aten, tensors = torch.ops.aten, _tensors(program)
    tensor_names = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    _, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    scales = weight.args[1]
    shared_scales = common_scales.get(tensor_names[scales.name] or "")
    if shared_scales is None and (bias is None or tensor_names[bias.name] not in task_tensors):
        return
    shape = (1, -1, 1, 1) if layer.target is aten.conv2d.default else (-1,)
    result, after = layer, layer.next
    users, like = list(layer.users), layer.meta["val"]

    def then(function: Any, name: str, value: torch.Tensor) -> Any:
        operand = _constant(program, f"{layer.name}_{name}", value.detach().reshape(shape))
        return _call(function, (result, operand), like, after)

    if shared_scales is not None:
        weight.replace_input_with(scales, _constant(program, f"{layer.name}_scales", shared_scales))
        result = then(aten.mul.Tensor, "gain", tensors[scales.name] / shared_scales)
    if bias is not None:
        layer.args = (*layer.args[:2], None, *rest)
        result = then(aten.add.Tensor, "bias", tensors[bias.name])
    for user in users:
        user.replace_input_with(layer, result)
    program.graph_signature.replace_all_uses(layer.name, result.name)


def _tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Placeholder name -> the parameter, buffer or constant that it stands for."""
    stored = {**program.constants, **program.state_dict}
    return {
        spec.arg.name: stored[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    }


def _constant(program: torch.export.ExportedProgram, name: str, value: torch.Tensor) -> Any:
    """Add a tensor to the program as a new input of the graph."""
    from executorch.backends.transforms.utils import create_constant_placeholder
    from torch.export.graph_signature import InputKind

    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        return create_constant_placeholder(
            program, program.graph, name, InputKind.BUFFER, value, False
        )


def _call(function: Any, arguments: tuple[Any, ...], like: Any, before: Any) -> Any:
    """Insert a call before a node; its value has the shape and dtype of ``like``."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, arguments)
    node.meta["val"] = like
    return node


def _replace(program: torch.export.ExportedProgram, layer: Any, result: Any) -> None:
    """Use another node's value wherever that of ``layer`` was used, and erase ``layer``."""
    layer.replace_all_uses_with(result)
    program.graph_signature.replace_all_uses(layer.name, result.name)
    program.graph.erase_node(layer)
