"""``FILE[#adapter][:scale][,block=scale...]``: a LoRA as it is named, and its factors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtu_export.models.lora.keys import COMPONENTS
from mtu_export.spec import LoraSource, PlanError, shown

LARGEST_SCALE = 100.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BLOCK = re.compile(rf"{'|'.join(COMPONENTS)}|mid|(?:down|up)(?:\.\d{{1,3}}){{0,2}}", re.ASCII)
_PLACE = re.compile(
    r"(?P<side>down|mid|up)_blocks?(?:\.(?P<block>\d+)(?:\.(?:resnets|attentions)\.(?P<index>\d+))?)?"
    r"(?:\..*)?"
)
_FORM = "FILE[#adapter][:scale][,block=scale...]"
_BLOCKS = f"{', '.join(COMPONENTS)}, down, mid, up, down.0, down.0.1, ..."


@dataclass(frozen=True)
class Scales:
    """Factors of a LoRA's Δ: ``default``, and in its place those of ``blocks`` by name.

    A block is a component, a side of the UNet (``down``, ``mid``, ``up``), a block of it
    (``down.1``), or a resnet and attention in that (``down.1.0``); the narrowest counts.
    """

    default: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()

    def of(self, component: str, path: str) -> float:
        """The factor of a layer, by its path in the model."""
        factors = dict(self.blocks)
        return next((factors[n] for n in blocks_of(component, path) if n in factors), self.default)

    def check(self, where: str) -> None:
        """Raise ``PlanError`` for a factor out of range."""
        for scale in (self.default, *(value for _, value in self.blocks)):
            check_scale(scale, where, scale)


def as_scales(value: Scales | float) -> Scales:
    """One factor for all layers, or factors as they are."""
    return value if isinstance(value, Scales) else Scales(value)


def blocks_of(component: str, path: str) -> Iterator[str]:
    """Names of the blocks that a layer is in, from the narrowest to its component."""
    place = _PLACE.fullmatch(path) if component == "unet" else None
    if place is not None:
        side, *inner = (place[group] for group in ("side", "block", "index"))
        numbers = [number for number in inner if number is not None] if side != "mid" else []
        for length in range(len(numbers), -1, -1):
            yield ".".join((side, *numbers[:length]))
    yield component


def component_of(block: str) -> str:
    """The component that a block is in."""
    return block if block in COMPONENTS else "unet"


def parse(argument: str) -> LoraSource:
    """Parse a LoRA as it is named on the command line.

    If the whole argument names an existing file, it is that file. Raises ``PlanError``.
    """
    path = _existing_file(argument)
    if path is not None:
        return LoraSource(path)
    name, colon, text = argument.rpartition(":")
    source = _file(name) if colon else None
    if source is None:
        source = _file(argument)
        if source is not None:
            return source
        likely = colon and all(_NUMBER.fullmatch(p.rpartition("=")[2]) for p in text.split(","))
        raise PlanError(f"--lora: no file {shown(name if likely else argument)}")
    where = f"--lora {shown(argument)}"
    default, *rest = text.split(",") if "=" not in text.split(",")[0] else ["1", *text.split(",")]
    blocks: dict[str, float] = {}
    for item in rest:
        block, _, number = item.partition("=")
        if not _BLOCK.fullmatch(block):
            raise PlanError(f"{where}: no block {shown(block)}; legal: {_FORM}, blocks {_BLOCKS}")
        if block in blocks:
            raise PlanError(f"{where}: block {block} appears twice")
        blocks[block] = _number(number, where)
    return source._replace(scale=_number(default, where), blocks=tuple(blocks.items()))


def _file(name: str) -> LoraSource | None:
    """``FILE`` or ``FILE#adapter``; None where there is no such file."""
    path = _existing_file(name)
    if path is not None:
        return LoraSource(path)
    file, _, adapter = name.rpartition("#")
    path = _existing_file(file) if adapter and ":" not in adapter else None
    return None if path is None else LoraSource(path, adapter=adapter)


def _existing_file(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, ~nobody, a null byte
        return None


def _number(text: str, where: str) -> float:
    scale = float(text) if _NUMBER.fullmatch(text) else math.nan
    check_scale(scale, where, text)
    return scale


def check_scale(scale: float, where: str, text: object) -> None:
    """Raise ``PlanError`` for a factor out of range."""
    if not abs(scale) <= LARGEST_SCALE:
        raise PlanError(
            f"{where}: the scale must be a number from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, "
            f"got {shown(text)}"
        )
