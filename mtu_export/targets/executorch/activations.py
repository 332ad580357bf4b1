"""Int8 activations before layers whose weights arrive as int8 codes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

LEAST_SCALE = 1e-9
"""Of a picture's codes: a picture may be all zeros."""


def make_int8(
    exported: torch.export.ExportedProgram,
    own: Collection[str] = (),
    common: Mapping[str, torch.Tensor] | None = None,
) -> torch.export.ExportedProgram:
    """Quantise, as it runs, the input of every layer whose weight arrives as int8 codes.

    Linear layers and 1 x 1 convolutions take the range of each token, other convolutions that of
    the picture: XNNPACK of each in a batch, the program in PyTorch of all. Outputs are float32.
    Returns a new program that shares the tensors of ``exported``. Raises ``ValueError`` for a
    depthwise convolution, or one of a single channel: XNNPACK has no such kernel.
    XNNPACK's own quantiser is not used: it chooses weight scales anew and clamps them at 2^-12.

    XNNPACK's cache of packed weights, which a runtime may have on, takes equal codes for equal
    layers, whatever their scales and biases. So that methods of one file may share codes, what a
    layer differs in is multiplied and added after it, in float: ``own`` names the tensors that
    differ between methods, ``common`` has scales that all may share for those of them that are
    scales.
    """
    import torch
    from torch.ao.quantization.fx import _decomposed as _decomposed  # registers the operators

    aten, quantised = torch.ops.aten, torch.ops.quantized_decomposed
    program = exported.run_decompositions({})
    for node in program.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default  # of what is no longer contiguous, too
    layers = [
        node
        for node in program.graph.nodes
        if node.target in (aten.conv2d.default, aten.linear.default)
        and getattr(node.args[1], "target", None) is quantised.dequantize_per_channel.default
    ]
    for layer in layers:
        if layer.target is aten.conv2d.default and not _is_pointwise(layer):
            found = _quantise_picture(program, layer)
        else:
            found = layer if layer.args[0].meta["val"].ndim < 4 else _on_tokens(program, layer)
            _quantise_tokens(found)
        _set_apart(program, found, own, common or {})
    program.graph_module.recompile()
    return program


def _convolution(layer: Any) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a ``conv2d``."""
    given = layer.args[3:]
    return (*given, *_DEFAULTS[len(given) :])


_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)


def _is_pointwise(layer: Any) -> bool:
    """Whether a convolution is of 1 x 1 pixels and takes each."""
    strides, padding, _, groups = _convolution(layer)
    plain = [*strides, *padding, groups] == [1, 1, 0, 0, 1]
    return plain and tuple(layer.args[1].meta["val"].shape[2:]) == (1, 1)


def _on_tokens(program: torch.export.ExportedProgram, layer: Any) -> Any:
    """Rewrite a layer on pictures as a linear layer on tokens [B, n, in]; returns that.

    Of a 1 x 1 convolution on [B, in, h, w], or of a linear layer on [B, h, w, in].
    """
    import torch

    aten = torch.ops.aten
    source, weight, *rest = layer.args
    wanted = layer.meta["val"]

    def call(function: Any, *arguments: Any) -> Any:
        values = [getattr(x, "meta", {"val": x})["val"] for x in arguments]
        return _call(function, arguments, function(*values), layer)

    if layer.target is aten.linear.default:
        batch, height, width, channels = source.meta["val"].shape
        tokens = call(aten.reshape.default, source, [batch, height * width, channels])
        found = across = call(aten.linear.default, tokens, weight, *rest)
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
        found = call(aten.linear.default, tokens, weight, *rest[:1])
        across = call(aten.permute.default, found, [0, 2, 1])
    _replace(program, layer, call(aten.reshape.default, across, list(wanted.shape)))
    return found


def _quantise_tokens(layer: Any) -> None:
    """Rewrite ``y = linear(x, w, b)`` as ``linear(dq(q(x)), w, b)``, a range for each token of x.

    Layers do not share the codes of a common input: a delegate could not be cut out of a graph
    that does.
    """
    import torch

    quantised = torch.ops.quantized_decomposed
    source = layer.args[0]
    like, codes = source.meta["val"], source.meta["val"].to(torch.int8)
    choose = quantised.choose_qparams_per_token_asymmetric.default
    chosen = _call(choose, (source, torch.int8), choose(like, torch.int8), layer)
    steps = [_call(operator.getitem, (chosen, i), chosen.meta["val"][i], layer) for i in range(2)]
    reach = (*steps, -128, 127, torch.int8)
    codes = _call(quantised.quantize_per_token.default, (source, *reach), codes, layer)
    wide = quantised.dequantize_per_token.default
    layer.replace_input_with(source, _call(wide, (codes, *reach, torch.float32), like, layer))


def _quantise_picture(program: torch.export.ExportedProgram, layer: Any) -> Any:
    """Rewrite ``y = conv2d(x, w, b)`` as ``conv2d(dq(q(x)), w, b)``, a range for all of x.

    The rows of the padding, or one below where there is none, are concatenated to x in float:
    ExecuTorch 1.5.1 changes the layout not of x but of the first value of the delegate that x is
    made of by single inputs, and fails or is wrong where the two are not the same; a list of inputs
    ends its way back. Zeros add nothing to a range, which has zero in it. Returns the new layer.
    """
    import torch

    aten, quantised = torch.ops.aten, torch.ops.quantized_decomposed
    source, weight, *rest = layer.args
    strides, padding, dilation, groups = _convolution(layer)
    if weight.meta["val"].shape[1] == 1:
        raise ValueError(f"{layer.name}: XNNPACK has no depthwise convolution of dynamic int8")
    batch, channels, _, width = source.meta["val"].shape
    zeros = torch.zeros(batch, channels, max(1, padding[0]), width)
    rows = _constant(program, f"{layer.name}_rows", zeros)
    parts = [rows, source, rows] if padding[0] else [source, rows]
    like = aten.cat.default([node.meta["val"] for node in parts], 2)
    padded = _call(aten.cat.default, (parts, 2), like, layer)

    choose, codes = quantised.choose_qparams.tensor, like.to(torch.int8)
    how = (-128, 127, LEAST_SCALE, torch.int8)
    chosen = _call(choose, (padded, *how), choose(like, *how), layer)
    steps = [_call(operator.getitem, (chosen, i), chosen.meta["val"][i], layer) for i in range(2)]
    reach = (*steps, -128, 127, torch.int8)
    codes = _call(quantised.quantize_per_tensor.tensor, (padded, *reach), codes, layer)
    given = _call(quantised.dequantize_per_tensor.tensor, (codes, *reach), like, layer)

    bias, wanted = rest[0] if rest else None, layer.meta["val"]
    more = (strides, [0, padding[1]], dilation, groups)
    values = [None if node is None else node.meta["val"] for node in (given, weight, bias)]
    like = aten.conv2d.default(*values, *more)
    found = result = _call(aten.conv2d.default, (given, weight, bias, *more), like, layer)
    if like.shape != wanted.shape:
        result = _call(aten.slice.Tensor, (found, 2, 0, wanted.shape[2]), wanted, layer)
    _replace(program, layer, result)
    return found


def _set_apart(
    program: torch.export.ExportedProgram,
    layer: Any,
    own: Collection[str],
    common: Mapping[str, torch.Tensor],
) -> None:
    """Rewrite ``layer(x, s·codes, b)`` as ``layer(x, c·codes) · s/c + b``, c the common scales.

    Where the scales are the same in all methods, b alone leaves the layer; nothing where b is too.
    """
    import torch

    aten, tensors = torch.ops.aten, _tensors(program)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    _, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    scales = weight.args[1]
    ours = common.get(targets[scales.name] or "")
    if ours is None and (bias is None or targets[bias.name] not in own):
        return
    shape = (1, -1, 1, 1) if layer.target is aten.conv2d.default else (-1,)
    result, after = layer, layer.next
    users, like = list(layer.users), layer.meta["val"]

    def then(function: Any, name: str, value: torch.Tensor) -> Any:
        row = _constant(program, f"{layer.name}_{name}", value.detach().reshape(shape))
        return _call(function, (result, row), like, after)

    if ours is not None:
        weight.replace_input_with(scales, _constant(program, f"{layer.name}_scales", ours))
        result = then(aten.mul.Tensor, "gain", tensors[scales.name] / ours)
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
    """A tensor as a new input of the graph."""
    from executorch.backends.transforms.utils import create_constant_placeholder
    from torch.export.graph_signature import InputKind

    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        return create_constant_placeholder(
            program, program.graph, name, InputKind.BUFFER, value, False
        )


def _call(function: Any, arguments: tuple[Any, ...], like: Any, before: Any) -> Any:
    """Insert a call whose value has the shape and dtype of ``like``."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, arguments)
    node.meta["val"] = like
    return node


def _replace(program: torch.export.ExportedProgram, layer: Any, result: Any) -> None:
    """Take another node's value wherever that of ``layer`` was used, and erase it."""
    layer.replace_all_uses_with(result)
    program.graph_signature.replace_all_uses(layer.name, result.name)
    program.graph.erase_node(layer)
