"""The layers of a model under every name a LoRA may use, and which part of Δ each weight takes.

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
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_ENDS = {
    "conv_in": "input_blocks.0.0",
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
    """The part of a Δ that one weight takes: ``spans`` (begin, length, factor) along ``axis``.

    The spans are concatenated and padded with zeros to the weight's ``shape``.
    """

    path: str
    shape: Shape
    axis: int
    spans: tuple[tuple[int, int, float], ...]

    def of(self, delta: Tensor) -> Tensor:
        """Cut this part out of ``delta``, in the shape of the weight."""
        import torch

        slices = [
            delta.narrow(self.axis, begin, length) * factor for begin, length, factor in self.spans
        ]
        part = torch.cat(slices, self.axis)
        padding = list(part.shape)
        padding[self.axis] = self.shape[self.axis] - part.shape[self.axis]
        if padding[self.axis]:
            part = torch.cat([part, part.new_zeros(padding)], self.axis)
        return part.reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer that a LoRA may name, and the weights of the model that represent it.

    A single weight is that of the layer itself. Several weights either divide the layer along
    ``axis``, in each of its ``halves`` (the experts of a dense feed-forward), or are versions of
    it (``axis`` is None: the first convolutions of the tasks).
    """

    path: str
    weights: tuple[tuple[str, Shape], ...]
    axis: int | None = None
    halves: int = 1
    factor: float | None = 1.0
    """Factor of Δ in the first half; None if the checkpoint does not record it."""
    latent: int = 0
    """Channels of the noisy latent, which come first in every version."""

    @property
    def expected_shapes(self) -> str:
        """The shapes of Δ that fit, for an error message."""
        if self.axis is not None:
            return str(list(self._dense_shape()))
        shapes = [shape for _, shape in self.weights]
        shapes += [(s[0], self.latent, *s[2:]) for s in shapes[:1] if self.latent]
        return " or ".join(str(list(shape)) for shape in sorted(set(shapes)))

    def _dense_shape(self) -> Shape:
        shape = list(self.weights[0][1])
        axis = self.axis or 0
        shape[axis] = sum(weight_shape[axis] for _, weight_shape in self.weights)
        return tuple(shape)

    def parts(self, delta: Shape) -> tuple[Part, ...]:
        """The parts that a Δ of this shape divides into; none if it does not fit."""
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
            parts.append(Part(path=path, shape=shape, axis=self.axis, spans=spans))
            begin += length
        return tuple(parts)

    def _version_parts(self, delta: Shape) -> tuple[Part, ...]:
        """Parts for versions of one convolution, split as ``upcycle`` does.

        A version as wide as Δ takes all of it, the others only the channels of the noisy latent.
        """
        widths = {shape[1] for _, shape in self.weights} | ({self.latent} - {0})
        parts = []
        for path, shape in self.weights:
            width = shape[1] if shape[1] == delta[1] else self.latent
            fits = _as_linear((shape[0], delta[1], *shape[2:])) == _as_linear(delta)
            if not fits or delta[1] not in widths or not width <= delta[1]:
                return ()
            parts.append(Part(path=path, shape=shape, axis=1, spans=((0, width, 1.0),)))
        return tuple(parts)


def _as_linear(shape: Shape) -> Shape:
    """The shape of a weight, that of a 1 x 1 convolution as a linear layer's."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


class Names:
    """The targets of one component by dotted name and by flat name, with underscores for dots."""

    def __init__(self, component: str, module: nn.Module) -> None:
        targets = {target.path: target for target in _targets(module)}
        self.dotted = dict(targets)
        for path, alias in _aliases(component, module, list(targets)):
            self.dotted.setdefault(alias, targets[path])
        self.flat: dict[str, Target] = {}
        self.ambiguous: set[str] = set()
        for name, target in self.dotted.items():
            flat = name.replace(".", "_")
            if self.flat.setdefault(flat, target) is not target:
                self.ambiguous.add(flat)

    def find(self, name: str, flat: bool) -> Target | None:
        """The target of this name; None if there is none or if the name is ambiguous."""
        if flat:
            return None if name in self.ambiguous else self.flat.get(name)
        return self.dotted.get(name)


def _targets(module: nn.Module) -> Iterator[Target]:
    """Every Linear and Conv2d of a model, and the stock layers that a family's layers replace."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv2d)
    shapes: dict[str, Shape] = {
        path: tuple(layer.weight.shape)
        for path, layer in module.named_modules()
        if isinstance(layer, kinds)
    }
    for path, shape in shapes.items():
        yield Target(path=path, weights=((path, shape),))
    family_layout = layout(module)
    paths_by_stock: dict[str, list[str]] = {}
    places: dict[str, Place] = {}
    for path in shapes:
        place, stock = _stock_layer(f"{path}.weight", family_layout)
        if place is not None and stock not in shapes:
            paths_by_stock.setdefault(stock, []).append(path)
            places[stock] = place
    for stock, paths in paths_by_stock.items():
        place = places[stock]
        config: Any = module.config
        yield Target(
            path=stock,
            weights=tuple((path, shapes[path]) for path in sorted(paths, key=natural_order)),
            axis=place.axis,
            halves=place.halves,
            factor=cast(Any, module).value_factor if place.rescaled else 1.0,
            latent=0 if place.axis is not None else config["in_channels"],
        )


def layout(module: nn.Module) -> Sequence[Place]:
    """The ``LAYOUT`` of a family's live UNet; empty for a stock part."""
    return getattr(module, "LAYOUT", ())


def _stock_layer(name: str, places: Sequence[Place]) -> tuple[Place | None, str]:
    """The first place that matches a weight, and the stock layer that the weight comes from."""
    for place in places:
        match = re.fullmatch(place.pattern, name)
        if match:
            stock = match.expand(place.stock).removesuffix(".weight") if place.stock else ""
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
