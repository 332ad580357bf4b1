"""The layers of a model under every name that a LoRA calls them by, and what each weight takes.

Names are looked up from the model's side: kohya's, which have underscores for dots, are the
model's own paths written so, and need no guessing. A family's own layers come from its ``LAYOUT``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtu_export import checkpoint, models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtu_export.spec.protocols import Place

Shape = tuple[int, ...]
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
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
    """What the weight of one layer takes of a Δ: ``spans`` (begin, length, factor) along ``axis``.

    Zeros follow up to the weight's ``shape``.
    """

    path: str
    shape: Shape
    axis: int
    spans: tuple[tuple[int, int, float], ...]

    def of(self, delta: Tensor) -> Tensor:
        """The part of ``delta`` in the shape of the weight."""
        import torch

        slices = [
            delta.narrow(self.axis, begin, length) * factor for begin, length, factor in self.spans
        ]
        part = torch.cat(slices, self.axis)
        rest = list(part.shape)
        rest[self.axis] = self.shape[self.axis] - part.shape[self.axis]
        wide = torch.cat([part, part.new_zeros(rest)], self.axis) if rest[self.axis] else part
        return wide.reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer that a LoRA may name, and the weights that stand for it in the model.

    One weight is the layer itself. Several follow one another along ``axis``, in each of
    ``halves`` (the experts of a dense feed-forward), or are versions of it (``axis`` null: the
    first convolutions of tasks).
    """

    path: str
    weights: tuple[tuple[str, Shape], ...]
    axis: int | None = None
    halves: int = 1
    factor: float | None = 1.0
    """What the first half takes Δ times; None where the checkpoint does not say."""
    latent: int = 0
    """Channels of the noisy latent, the first of every version."""

    @property
    def wanted(self) -> str:
        """Shapes of Δ that fit, for a message."""
        if self.axis is not None:
            return str(list(self._dense()))
        rows = [shape for _, shape in self.weights]
        rows += [(s[0], self.latent, *s[2:]) for s in rows[:1] if self.latent]
        return " or ".join(str(list(shape)) for shape in sorted(set(rows)))

    def _dense(self) -> Shape:
        shape = list(self.weights[0][1])
        axis = self.axis or 0
        shape[axis] = sum(row[axis] for _, row in self.weights)
        return tuple(shape)

    def parts(self, delta: Shape) -> tuple[Part, ...]:
        """Where a Δ of this shape goes; nowhere if it does not fit."""
        if self.axis is None:
            return self._versions(delta)
        dense = self._dense()
        if _plain(dense) != _plain(delta):
            return ()
        half, begin, rows = dense[self.axis] // self.halves, 0, []
        for path, shape in self.weights:
            length = shape[self.axis] // self.halves
            factors = (self.factor or 1.0, *[1.0] * (self.halves - 1))
            spans = tuple((k * half + begin, length, factors[k]) for k in range(self.halves))
            rows.append(Part(path=path, shape=shape, axis=self.axis, spans=spans))
            begin += length
        return tuple(rows)

    def _versions(self, delta: Shape) -> tuple[Part, ...]:
        """As ``upcycle`` does with a dense convolution: a version of Δ's width takes it whole, the
        others take the channels of the noisy latent."""
        widths = {shape[1] for _, shape in self.weights} | ({self.latent} - {0})
        rows = []
        for path, shape in self.weights:
            width = shape[1] if shape[1] == delta[1] else self.latent
            same = _plain((shape[0], delta[1], *shape[2:])) == _plain(delta)
            if not same or delta[1] not in widths or not width <= delta[1]:
                return ()
            rows.append(Part(path=path, shape=shape, axis=1, spans=((0, width, 1.0),)))
        return tuple(rows)


def _plain(shape: Shape) -> Shape:
    """A 1 x 1 convolution is a linear layer."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


class Names:
    """The targets of one component by dotted name, and by name with underscores alone."""

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
        """The target of this name; None if there is none, or more than one."""
        if flat:
            return None if name in self.ambiguous else self.flat.get(name)
        return self.dotted.get(name)


def _targets(module: nn.Module) -> Iterator[Target]:
    """Every Linear and Conv2d of a model, and the stock layers that a family's own stand for."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv2d)
    own: dict[str, Shape] = {
        path: tuple(layer.weight.shape)
        for path, layer in module.named_modules()
        if isinstance(layer, kinds)
    }
    for path, shape in own.items():
        yield Target(path=path, weights=((path, shape),))
    rows = layout(module)
    dense: dict[str, list[str]] = {}
    places: dict[str, Place] = {}
    for path in own:
        row, stock = _stock(f"{path}.weight", rows)
        if row is not None and stock not in own:
            dense.setdefault(stock, []).append(path)
            places[stock] = row
    for stock, paths in dense.items():
        place = places[stock]
        config: Any = module.config
        yield Target(
            path=stock,
            weights=tuple((path, own[path]) for path in sorted(paths, key=models.natural_order)),
            axis=place.axis,
            halves=place.halves,
            factor=checkpoint.rescale(config) if place.rescaled else 1.0,
            latent=0 if place.axis is not None else config["in_channels"],
        )


def layout(module: nn.Module) -> Sequence[Place]:
    """The ``LAYOUT`` of a family's live UNet; a stock part has none."""
    name, suffix = type(module).__name__, checkpoint.CLASS_SUFFIX
    if name == suffix or not name.endswith(suffix):
        return ()
    return models.load(checkpoint.family({"_class_name": name})).LAYOUT


def _stock(name: str, rows: Sequence[Place]) -> tuple[Place | None, str]:
    """The first place that fits a weight, and the stock layer that it stands for."""
    for row in rows:
        match = re.fullmatch(row.pattern, name)
        if match:
            stock = match.expand(row.stock).removesuffix(".weight") if row.stock else ""
            return (row if stock else None), stock
    return None, ""


# ------------------------------------------------------------------------------------- other names


def _aliases(component: str, module: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(path, other name): the blocks of the first SDXL code, and text encoders old and new.

    transformers lately keeps CLIP's layers at the top of a text encoder; files have them in
    ``text_model``.
    """
    if component != "unet":
        for path in paths:
            inner = path.startswith(_TEXT)
            yield path, path.removeprefix(_TEXT) if inner else _TEXT + path
        return
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        return
    attentive = {match[1] for path in paths if (match := re.match(r"up_blocks\.(\d+)\.att", path))}
    for path in paths:
        alias = _first_name(path, layers, attentive)
        if alias:
            yield path, alias


def _first_name(path: str, layers: int, attentive: set[str]) -> str | None:
    """Name of a UNet's layer in the code of the first release, which kohya trains SDXL by."""
    match = _BLOCK.fullmatch(path)
    if match is None:
        return _ENDS.get(path)
    side, kind, rest = match["side"], match["kind"], match["rest"]
    block, index = int(match["block"] or 0), int(match["index"])
    step = layers + 1
    rest = _RESNET.get(rest, rest) if kind == "resnets" else rest
    if side == "mid":
        return f"middle_block.{2 * index + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{step * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{step * block + layers}.{1 + (match['block'] in attentive)}.{rest}"
    stem = (
        f"input_blocks.{step * block + index + 1}"
        if side == "down"
        else (f"output_blocks.{step * block + index}")
    )
    return f"{stem}.{int(kind == 'attentions')}.{rest}"
