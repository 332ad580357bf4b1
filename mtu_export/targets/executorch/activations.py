"""Int8 activations around layers whose weights arrive as int8 codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mtu_export.spec import Arrays

if TYPE_CHECKING:
    import torch

BIAS_REACH = 2.0**30
"""Largest bias code: half of int32, as the code is rounded in float32."""
REQUANTISATION_LIMIT = 256.0
"""XNNPACK refuses input scale x weight scale / output scale from here on."""


HEADROOM = 1.25
"""Of a range that calibration inputs reach: what other pictures reach beyond it is not clipped."""


def make_int8(
    exported: torch.export.ExportedProgram,
    names: Sequence[str],
    feeds: Sequence[Arrays],
    mark: int = 0,
    own: Collection[str] = (),
    common: Mapping[str, torch.Tensor] | None = None,
) -> tuple[torch.export.ExportedProgram, str, tuple[str, ...]]:
    """Quantise the activations around every layer whose weight arrives as int8 codes.

    Linear layers and 1 x 1 convolutions dynamically, each token by the range of its own values;
    other convolutions statically, input and output, by ranges over ``feeds``, inputs under
    ``names``, as XNNPACK's pass for layouts finds no way through a delegate of many layers to a
    dynamic one; and so linear layers on pictures, whose layout it changes too. Returns a
    new program that shares the tensors of ``exported``; ``"dynamic_int8"``, or ``"mixed_int8"``
    where any are static; and the names of the biases that do not fit int32 codes and are added in
    float. XNNPACK's own quantiser is not used: it chooses weight scales anew and clamps them at
    2^-12.

    XNNPACK's cache of packed weights, which a runtime may have on, takes equal codes for equal
    layers, whatever their scales, and in dynamic ones whatever their biases. So that methods of one
    file may share codes, ``mark``, one number for each, changes the first bias of every static
    layer; and what a dynamic layer differs in is multiplied and added after it, in float: ``own``
    names the tensors that differ between methods, ``common`` has scales that all may share for
    those of them that are scales.
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
    layers = [_on_tokens(program, node) if _is_pointwise(node) else node for node in layers]
    static = [node for node in layers if node.args[0].meta["val"].ndim == 4]
    if static and not feeds:
        raise ValueError("static int8 needs calibration inputs")
    watched = {node for layer in static for node in (layer.args[0], layer)}
    ranges = _ranges(program, watched, names, feeds) if watched else {}
    made: dict[Any, Any] = {}
    apart: list[str] = []
    for layer in layers:
        if layer not in static:
            _quantise_tokens(layer)
            _set_apart(program, layer, own, common or {})
            continue
        apart += _quantise_layer(program, layer, ranges, made)
        if mark:
            _mark_bias(program, layer, mark)
    program.graph_module.recompile()
    return program, "mixed_int8" if static else "dynamic_int8", tuple(apart)


def _is_pointwise(layer: Any) -> bool:
    """Whether a layer is a convolution of 1 x 1 pixels that takes each."""
    import torch

    if layer.target is not torch.ops.aten.conv2d.default:
        return False
    strides, padding, _, groups = (*layer.args[3:], *_DEFAULTS[max(0, len(layer.args) - 3) :])
    plain = [*strides, *padding, groups] == [1, 1, 0, 0, 1]
    return plain and tuple(layer.args[1].meta["val"].shape[2:]) == (1, 1)


_DEFAULTS: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
"""Of ``conv2d``: stride, padding, dilation, groups."""


def _on_tokens(program: torch.export.ExportedProgram, layer: Any) -> Any:
    """Rewrite a 1 x 1 convolution as a linear layer on the pixels [B, h·w, in]; returns that."""
    import torch

    aten = torch.ops.aten
    source, weight, *rest = layer.args
    codes, wanted = weight.args[0], layer.meta["val"]
    for spec in program.graph_signature.input_specs:
        for stored in cast(list[dict[Any, Any]], [program.state_dict, program.constants]):
            if spec.arg.name == codes.name and spec.target in stored:
                stored[spec.target] = stored[spec.target].flatten(1)
    for node in (codes, weight):
        node.meta["val"] = node.meta["val"].flatten(1)

    def call(operator: Any, *arguments: Any) -> Any:
        values = [getattr(x, "meta", {"val": x})["val"] for x in arguments]
        return _call(operator, arguments, operator(*values), layer)

    batch, channels, height, width = source.meta["val"].shape
    pixels = call(aten.reshape.default, source, [batch, channels, height * width])
    tokens = call(aten.permute.default, pixels, [0, 2, 1])
    found = call(aten.linear.default, tokens, weight, *rest[:1])
    across = call(aten.permute.default, found, [0, 2, 1])
    result = call(aten.reshape.default, across, list(wanted.shape))
    layer.replace_all_uses_with(result)
    program.graph_signature.replace_all_uses(layer.name, result.name)
    program.graph.erase_node(layer)
    return found


def _quantise_tokens(layer: Any) -> None:
    """Rewrite ``y = linear(x, w, b)`` as ``linear(dq(q(x)), w, b)``, a range for each token of x.

    Layers do not share the codes of a common input: a delegate could not be cut out of a graph
    that does.
    """
    import operator

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


def _tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Placeholder name -> the parameter, buffer or constant that it stands for."""
    stored = {**program.constants, **program.state_dict}
    return {
        spec.arg.name: stored[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    }


def _ranges(
    program: torch.export.ExportedProgram,
    watched: set[Any],
    names: Sequence[str],
    feeds: Sequence[Arrays],
) -> dict[str, tuple[float, float]]:
    """Reach of every watched node's values over ``feeds``, zero included, with headroom."""
    import torch

    ranges = {node.name: (0.0, 0.0) for node in watched}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n in watched:
                low, high = (float(bound) for bound in torch.aminmax(value))
                ranges[n.name] = (min(ranges[n.name][0], low), max(ranges[n.name][1], high))
            return value

    tensors = _tensors(program)
    with torch.no_grad():
        for feed in feeds:
            given = iter(names)
            Watch(program.graph_module).run(
                *(
                    tensors[spec.arg.name]
                    if spec.arg.name in tensors
                    else torch.from_numpy(feed[next(given)])
                    for spec in program.graph_signature.input_specs
                )
            )
    return {name: (HEADROOM * low, HEADROOM * high) for name, (low, high) in ranges.items()}


def _quantise_layer(
    program: torch.export.ExportedProgram,
    layer: Any,
    ranges: dict[str, tuple[float, float]],
    made: dict[Any, Any],
) -> list[str]:
    """Rewrite ``y = layer(x, w, b)`` as ``dq(q(layer(dq(q(x)), w, b)))``.

    ``made`` maps a float value to its codes, so that layers that read one value share them. A bias
    beyond the int32 codes (rows of almost no weight) is added in float after the layer; its name is
    returned.
    """
    import torch

    arguments: list[Any] = [*layer.args, None]
    source, weight, bias = arguments[:3]
    tensors, users = _tensors(program), list(layer.users)
    if source not in made:
        made[source] = _quantise(source, _steps(*ranges[source.name]), before=layer)
    layer.replace_input_with(source, _dequantise(made[source], before=layer))

    unit = tensors[weight.args[1].name] * made[source].args[1]
    low, high = ranges[layer.name]
    offset = torch.zeros(1) if bias is None else tensors[bias.name]
    apart = bool((offset / unit).abs().max() > BIAS_REACH)
    if apart:
        low, high = low - float(offset.max()), high - float(offset.min())
        layer.update_arg(2, None)
    steps = _steps(low, high, least=1.01 * float(unit.max()) / REQUANTISATION_LIMIT)
    after = layer.next
    codes = _quantise(layer, steps, before=after)
    result = _dequantise(codes, before=after)
    made[result] = codes
    if apart:
        result = _add_bias(result, bias, before=after)
        ranges[result.name] = ranges[layer.name]
    for user in users:
        user.replace_input_with(layer, result)
    program.graph_signature.replace_all_uses(layer.name, result.name)
    if bias is None or not apart:
        return []
    return [program.graph_signature.inputs_to_parameters.get(bias.name, bias.name)]


def _mark_bias(program: torch.export.ExportedProgram, layer: Any, mark: int) -> None:
    """Add ``mark`` units of the int32 accumulator to row 0; a layer without bias gets one."""
    import torch

    tensors = _tensors(program)
    codes, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    scales = tensors[weight.args[1].name]
    marked = torch.zeros_like(scales) if bias is None else tensors[bias.name].detach().clone()
    marked[0] += mark * scales[0] * codes.args[1]
    layer.args = (codes, weight, _constant(program, f"{layer.name}_marked_bias", marked), *rest)


def _set_apart(
    program: torch.export.ExportedProgram,
    layer: Any,
    own: Collection[str],
    common: Mapping[str, torch.Tensor],
) -> None:
    """Rewrite ``linear(x, s·codes, b)`` as ``linear(x, c·codes) · s/c + b``, c the common scales.

    Where the scales are the same in all methods, b alone leaves the layer; nothing where b is too.
    """
    import torch

    aten, tensors = torch.ops.aten, _tensors(program)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    _, weight, *rest = layer.args
    scales, bias = weight.args[1], rest[0] if rest else None
    ours = common.get(targets[scales.name] or "")
    if ours is None and (bias is None or targets[bias.name] not in own):
        return
    result, after = layer, layer.next
    users, like = list(layer.users), layer.meta["val"]
    if ours is not None:
        weight.replace_input_with(scales, _constant(program, f"{layer.name}_scales", ours))
        gain = _constant(program, f"{layer.name}_gain", tensors[scales.name].detach() / ours)
        result = _call(aten.mul.Tensor, (result, gain), like, after)
    if bias is not None:
        layer.update_arg(2, None)
        result = _call(aten.add.Tensor, (result, bias), like, after)
    for user in users:
        user.replace_input_with(layer, result)
    program.graph_signature.replace_all_uses(layer.name, result.name)


def _constant(program: torch.export.ExportedProgram, name: str, value: torch.Tensor) -> Any:
    """A tensor as a new input of the graph."""
    from executorch.backends.transforms.utils import create_constant_placeholder
    from torch.export.graph_signature import InputKind

    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        return create_constant_placeholder(
            program, program.graph, name, InputKind.BUFFER, value, False
        )


def _steps(low: float, high: float, least: float = 1e-12) -> tuple[float, int]:
    """Scale and zero point of int8 codes over ``low <= 0 <= high``."""
    scale = max((high - low) / 255, least)
    return scale, max(-128, min(127, round(-128 - low / scale)))


def _call(operator: Any, arguments: tuple[Any, ...], like: Any, before: Any) -> Any:
    """Insert a call whose value has the shape and dtype of ``like``."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(operator, arguments)
    node.meta["val"] = like
    return node


def _quantise(value: Any, steps: tuple[float, int], before: Any) -> Any:
    import torch

    operator = torch.ops.quantized_decomposed.quantize_per_tensor.default
    like = value.meta["val"].to(torch.int8)
    return _call(operator, (value, *steps, -128, 127, torch.int8), like, before)


def _dequantise(codes: Any, before: Any) -> Any:
    import torch

    operator = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    like = codes.meta["val"].to(torch.float32)
    return _call(operator, (codes, *codes.args[1:]), like, before)


def _add_bias(value: Any, bias: Any, before: Any) -> Any:
    """``value + bias``, channels at axis 1 of images and at the last axis of sequences."""
    import torch

    like, row = value.meta["val"], bias.meta["val"]
    layer = value.args[0].args[0]
    if layer.target == torch.ops.aten.conv2d.default:
        row = row.reshape(-1, 1, 1)
        bias = _call(torch.ops.aten.reshape.default, (bias, list(row.shape)), row, before)
    return _call(torch.ops.aten.add.Tensor, (value, bias), like, before)
