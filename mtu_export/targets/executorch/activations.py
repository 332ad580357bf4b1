"""Int8 activations around layers whose weights arrive as int8 codes: static or dynamic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtu_export.spec import Arrays

if TYPE_CHECKING:
    import torch

BIAS_REACH = 2.0**30
"""Largest bias code: half of int32, as the code is rounded in float32."""
REQUANTISATION_LIMIT = 256.0
"""XNNPACK refuses input scale x weight scale / output scale from here on."""


def make_static(
    exported: torch.export.ExportedProgram,
    names: Sequence[str],
    feeds: Sequence[Arrays],
    mark: int = 0,
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Quantise the input and output of every layer whose weight arrives as int8 codes.

    Returns a new program that shares the tensors of ``exported``, and the names of the biases
    that do not fit int32 codes and are added in float. XNNPACK's own quantiser is not
    used: it chooses weight scales anew and clamps them at 2^-12.

    ``mark`` is one number for each method of a file that shares codes; it is added to every
    layer's first bias code. XNNPACK's cache of packed weights, which a runtime may have on, takes
    equal codes and biases for equal layers, whatever their scales: the biases must differ.
    """
    import torch
    from torch.ao.quantization.fx import _decomposed as _decomposed  # registers the operators

    if not feeds:
        raise ValueError("static int8 needs calibration inputs")
    aten, quantised = torch.ops.aten, torch.ops.quantized_decomposed
    program = exported.run_decompositions({})
    layers = [
        node
        for node in program.graph.nodes
        if node.target in (aten.conv2d.default, aten.linear.default)
        and getattr(node.args[1], "target", None) is quantised.dequantize_per_channel.default
    ]
    watched = {node for layer in layers for node in (layer.args[0], layer)}
    ranges = _ranges(program, watched, names, feeds)
    made: dict[Any, Any] = {}
    apart = [bias for layer in layers for bias in _quantise_layer(program, layer, ranges, made)]
    if mark:
        for layer in layers:
            _mark_bias(program, layer, mark)
    program.graph_module.recompile()
    return program, tuple(apart)


def make_dynamic(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Quantise the input of every linear layer whose weight arrives as int8 codes, as it runs.

    Each token has a scale and zero point of its own, found in its values: no range is calibrated,
    and a few large values in one token cost the others nothing. Layers do not share the codes of
    a common input: a delegate could not be cut out of a graph that does.
    """
    import operator

    import torch
    from torch.ao.quantization.fx import _decomposed as _decomposed  # registers the operators

    quantised = torch.ops.quantized_decomposed
    program = exported.run_decompositions({})
    for layer in list(program.graph.nodes):
        weight = layer.args[1] if layer.target is torch.ops.aten.linear.default else None
        if getattr(weight, "target", None) is not quantised.dequantize_per_channel.default:
            continue
        source = layer.args[0]
        like, codes = source.meta["val"], source.meta["val"].to(torch.int8)
        choose = quantised.choose_qparams_per_token_asymmetric.default
        chosen = _call(choose, (source, torch.int8), choose(like, torch.int8), layer)
        steps = [
            _call(operator.getitem, (chosen, i), chosen.meta["val"][i], layer) for i in range(2)
        ]
        reach = (*steps, -128, 127, torch.int8)
        codes = _call(quantised.quantize_per_token.default, (source, *reach), codes, layer)
        wide = quantised.dequantize_per_token.default
        layer.replace_input_with(source, _call(wide, (codes, *reach, torch.float32), like, layer))
    program.graph_module.recompile()
    return program


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
    """Smallest and largest value of every watched node over ``feeds``, zero included."""
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
    return ranges


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
    from executorch.backends.transforms.utils import create_constant_placeholder
    from torch.export.graph_signature import InputKind

    tensors = _tensors(program)
    codes, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    scales = tensors[weight.args[1].name]
    marked = torch.zeros_like(scales) if bias is None else tensors[bias.name].detach().clone()
    marked[0] += mark * scales[0] * codes.args[1]
    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        node = create_constant_placeholder(
            program, program.graph, f"{layer.name}_marked_bias", InputKind.BUFFER, marked, False
        )
    layer.args = (codes, weight, node, *rest)


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
