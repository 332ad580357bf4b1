"""The layers of a model under every name a LoRA may use, and which part of Δ each tensor takes.

Names are derived from the model's paths and then looked up, so that none is guessed: kohya's are
these paths with underscores for dots. Layers that a family adds to a stock UNet come from its
``LAYOUT``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mtu_export.models.pipeline.names import natural_order

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtu_export.models.pipeline.places import Place

Shape = tuple[int, ...]
_ORIGINAL_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?(?:\.(?P<block>\d+))?"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_TEXT = "text_model."


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of a Δ that one tensor takes: ``spans`` (begin, length, factor) along ``axis``.

    The spans are concatenated and padded with zeros to the tensor's ``shape``; ``dense`` is the
    shape of Δ with its kernel unfolded.
    """

    path: str
    shape: Shape
    dense: Shape
    axis: int
    spans: tuple[tuple[int, int, float], ...]

    def of(self, delta: Tensor) -> Tensor:
        """Cut this part out of ``delta``, in the shape of the tensor."""
        import torch

        delta = delta.reshape(self.dense)
        slices = [
            delta.narrow(self.axis, begin, length) * factor for begin, length, factor in self.spans
        ]
        part = torch.cat(slices, self.axis)
        padding = list(part.shape)
        padding[self.axis] = self.shape[self.axis] - part.shape[self.axis]
        if padding[self.axis]:
            part = torch.cat([part, part.new_zeros(padding)], self.axis)
        return part.reshape(self.shape)

    def put(self, tensor: Tensor, dense: Tensor) -> None:
        """Write the tensor to its place in the dense one: the inverse of :meth:`of`."""
        shape = list(self.dense)
        shape[self.axis] = self.shape[self.axis]
        tensor, done = tensor.float().reshape(shape), 0
        for begin, length, factor in self.spans:
            place = dense.narrow(self.axis, begin, length)
            place.copy_(tensor.narrow(self.axis, done, length) / factor)
            done += length


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parameter that a LoRA may change, by name, and the tensors of the model that represent it.

    A single tensor is that of the layer itself. Several either divide the parameter along
    ``axis``, in each of its ``halves`` (the experts of a dense feed-forward), or are versions of
    it (``axis`` is None: the first convolutions of the tasks).
    """

    name: str
    weights: tuple[tuple[str, Shape], ...]
    axis: int | None = None
    halves: int = 1
    factor: float | None = 1.0
    """Factor of Δ in the first half; None if the checkpoint does not record it."""
    latent: int = 0
    """Channels of the noisy latent, which come first in every version."""

    @property
    def path(self) -> str:
        """The layer's path."""
        return self.name.rpartition(".")[0]

    @property
    def expected_shapes(self) -> str:
        """The shapes of Δ that fit, for an error message."""
        if self.axis is not None:
            return str(list(self._dense_shape()))
        shapes = [shape for _, shape in self.weights]
        if self.latent and len(shapes[0]) > 1:
            shapes.append((shapes[0][0], self.latent, *shapes[0][2:]))
        return " or ".join(str(list(shape)) for shape in sorted(set(shapes)))

    def _dense_shape(self) -> Shape:
        shape = list(self.weights[0][1])
        axis = self.axis or 0
        shape[axis] = sum(weight_shape[axis] for _, weight_shape in self.weights)
        return tuple(shape)

    def parts(self, delta: Shape) -> tuple[Part, ...]:
        """The parts that a Δ of this shape divides into; none if it does not fit."""
        delta = _unfolded(delta, self.weights[0][1])
        if self.axis is None:
            return self._version_parts(delta)
        dense = self._dense_shape()
        if _as_linear(dense) != _as_linear(delta):
            return ()
        half, begin, parts = dense[self.axis] // self.halves, 0, []
        for path, shape in self.weights:
            length = shape[self.axis] // self.halves
            factors = (self.factor or 1.0, *[1.0] * (self.halves - 1))
            spans = tuple((k * half + begin, length, factors[k]) for k in range(self.halves))
            parts.append(Part(path=path, shape=shape, dense=delta, axis=self.axis, spans=spans))
            begin += length
        return tuple(parts)

    def _version_parts(self, delta: Shape) -> tuple[Part, ...]:
        """Parts for versions of one parameter, split as ``upcycle`` does.

        A convolution as wide as Δ takes all of it, the others only the channels of the noisy
        latent. A vector takes all of it.
        """
        axis = min(1, len(delta) - 1)
        widths = {shape[axis] for _, shape in self.weights} | ({self.latent} - {0})
        parts = []
        for path, shape in self.weights:
            if len(shape) == 1 or len(delta) == 1:
                width, fits = shape[0], shape == delta
            else:
                width = shape[1] if shape[1] == delta[1] else self.latent
                fits = _as_linear((shape[0], delta[1], *shape[2:])) == _as_linear(delta)
                fits = fits and delta[1] in widths and width <= delta[1]
            if not fits:
                return ()
            spans = ((0, width, 1.0),)
            parts.append(Part(path=path, shape=shape, dense=delta, axis=axis, spans=spans))
        return tuple(parts)

    def dense_groups(self, parts: Sequence[Part]) -> list[Sequence[Part]]:
        """The parts that make up each whole parameter; none where a version has another width."""
        if self.axis is not None:
            return [parts]
        whole = all(p.shape[p.axis] == p.dense[p.axis] == p.spans[0][1] for p in parts)
        return [[part] for part in parts] if whole else []


def _as_linear(shape: Shape) -> Shape:
    """The shape of a weight, that of a 1 x 1 convolution as a linear layer's."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def _unfolded(delta: Shape, weight: Shape) -> Shape:
    """The shape of a Δ [out, in · k · k] as [out, in, k, k] where the weight has a kernel."""
    size = math.prod(weight[2:])
    if len(delta) == 2 and len(weight) == 4 and size > 1 and not delta[1] % size:
        return (delta[0], delta[1] // size, *weight[2:])
    return delta


class Names:
    """The layers of one component by dotted name and by flat name, with underscores for dots.

    A layer is its targets by parameter: ``weight``, ``bias``.
    """

    def __init__(self, component: str, module: nn.Module) -> None:
        layers: dict[str, dict[str, Target]] = {}
        for target in _targets(module):
            layers.setdefault(target.path, {})[target.name.rpartition(".")[2]] = target
        self.dotted: dict[str, Mapping[str, Target]] = dict(layers)
        for path, alias in _aliases(component, module, list(layers)):
            self.dotted.setdefault(alias, layers[path])
        self.flat: dict[str, Mapping[str, Target]] = {}
        self.ambiguous: set[str] = set()
        for name, layer in self.dotted.items():
            flat = name.replace(".", "_")
            if self.flat.setdefault(flat, layer) is not layer:
                self.ambiguous.add(flat)

    def find(self, name: str, flat: bool) -> Mapping[str, Target] | None:
        """The layer of this name; None if there is none or if the name is ambiguous."""
        if flat:
            return None if name in self.ambiguous else self.flat.get(name)
        return self.dotted.get(name)


def _targets(module: nn.Module) -> Iterator[Target]:
    """Weights and biases of every linear layer, convolution and norm, and those of the stock
    layers that a family's layers replace.
    """
    from torch import nn

    shapes: dict[str, Shape] = {
        f"{path}.{name}" if path else name: tuple(parameter.shape)
        for path, layer in module.named_modules()
        if not isinstance(layer, nn.Embedding)
        for name, parameter in layer.named_parameters(recurse=False)
        if name in ("weight", "bias")
    }
    for name, shape in shapes.items():
        yield Target(name=name, weights=((name, shape),))
    family_layout = layout(module)
    names_by_stock: dict[str, list[str]] = {}
    places: dict[str, Place] = {}
    for name in shapes:
        place, stock = _stock_tensor(name, family_layout)
        if place is not None and stock not in shapes:
            names_by_stock.setdefault(stock, []).append(name)
            places[stock] = place
    for stock, names in names_by_stock.items():
        place = places[stock]
        config: Any = module.config
        yield Target(
            name=stock,
            weights=tuple((name, shapes[name]) for name in sorted(names, key=natural_order)),
            axis=place.axis,
            halves=place.halves,
            factor=cast(Any, module).value_factor if place.rescaled else 1.0,
            latent=0 if place.axis is not None else config["in_channels"],
        )


def layout(module: nn.Module) -> Sequence[Place]:
    """The ``LAYOUT`` of a family's live UNet; empty for a stock part."""
    return getattr(module, "LAYOUT", ())


def _stock_tensor(name: str, places: Sequence[Place]) -> tuple[Place | None, str]:
    """The first place that matches a tensor, and the stock tensor that it comes from."""
    for place in places:
        match = re.fullmatch(place.pattern, name)
        if match:
            stock = match.expand(place.stock) if place.stock else ""
            return (place if stock else None), stock
    return None, ""


# ----------------------------------------------------------------------------------------- aliases


def _aliases(component: str, module: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(path, other name) pairs: a UNet's layers as SDXL's original code calls them, and a text
    encoder's with or without ``text_model.``.

    Recent transformers keep CLIP's layers at the top of a text encoder; files have them in
    ``text_model``.
    """
    if component != "unet":
        for path in paths:
            prefixed = path.startswith(_TEXT)
            yield path, path.removeprefix(_TEXT) if prefixed else _TEXT + path
        return
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        return
    with_attention = {
        match[1] for path in paths if (match := re.match(r"up_blocks\.(\d+)\.att", path))
    }
    for path in paths:
        alias = _original_name(path, layers, with_attention)
        if alias:
            yield path, alias


def _original_name(path: str, layers: int, with_attention: set[str]) -> str | None:
    """Name of a UNet's layer in Stability's original code, which kohya uses for SDXL."""
    match = _BLOCK.fullmatch(path)
    if match is None:
        return _ORIGINAL_ENDS.get(path)
    side, kind, rest = match["side"], match["kind"], match["rest"]
    block, index = int(match["block"] or 0), int(match["index"])
    step = layers + 1
    rest = _ORIGINAL_RESNET.get(rest, rest) if kind == "resnets" else rest
    if side == "mid":
        return f"middle_block.{2 * index + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{step * (block + 1)}.0.op"
    if kind == "upsamplers":
        return (
            f"output_blocks.{step * block + layers}.{1 + (match['block'] in with_attention)}.{rest}"
        )
    stem = (
        f"input_blocks.{step * block + index + 1}"
        if side == "down"
        else f"output_blocks.{step * block + index}"
    )
    return f"{stem}.{int(kind == 'attentions')}.{rest}"
