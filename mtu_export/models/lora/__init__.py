"""LoRA files folded exactly into the weights of a loaded model: W' = W + Σ scale · Δ in float32.

A LoRA of a dense model goes to an upcycled one as ``upcycle`` takes the model itself: experts
take the slices of the feed-forward's Δ, in order, so that upcycle(W) + slices of Δ is
upcycle(W + Δ); it needs Σ hs_i to be the dense width, and the shape of Δ tells. The first
convolution of a task takes Δ whole where it has its width; where Δ has the width of the noisy
latent or of another task, it takes the channels of the noisy latent. Norms have no LoRA.

A checkpoint that was upcycled with ``rescale`` holds value rows that are N times the dense ones,
and says so in its config: Δ is multiplied by N there. A checkpoint of several experts that does not
say takes Δ as it is, with a warning.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.models.lora.file import COMPONENTS, Layer, Lora, read
from mtu_export.models.lora.model import Names, Part
from mtu_export.models.lora.peft import config_beside
from mtu_export.spec import CheckpointError, LoraSource, MtuExportWarning, PlanError, shown

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Folded", "Lora", "Report", "apply", "config_beside", "identity", "parse", "read"]

LARGEST_SCALE = 100.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Folded:
    """One LoRA of a model: its layers that changed weights, by component, and those unused."""

    lora: Lora
    scale: float
    layers: Mapping[str, int]
    unused: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`apply` did; ``changed`` counts weights by component."""

    folded: tuple[Folded, ...]
    changed: Mapping[str, int]

    @property
    def unused(self) -> dict[str, int]:
        """Layers of all LoRAs for components that the model lacks."""
        rows = dict.fromkeys(COMPONENTS, 0)
        for row in self.folded:
            for component, number in row.unused.items():
                rows[component] += number
        return {component: number for component, number in rows.items() if number}


def parse(word: str) -> LoraSource:
    """File and scale of ``FILE[:scale]``; the scale is 1 where there is none.

    A whole word that is a file is that file, whatever colons it has. Raises ``PlanError``.
    """
    whole = _file(word)
    if whole is not None:
        return LoraSource(whole)
    name, colon, text = word.rpartition(":")
    path = _file(name) if colon else None
    if path is None:
        raise PlanError(f"--lora: no file {shown(name if _NUMBER.fullmatch(text) else word)}")
    scale = float(text) if _NUMBER.fullmatch(text) else math.nan
    _check_scale(scale, f"--lora {shown(word)}", text)
    return LoraSource(path, scale)


def _file(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, ~nobody, a null byte
        return None


def _check_scale(scale: float, where: str, text: object) -> None:
    if not abs(scale) <= LARGEST_SCALE:
        raise PlanError(
            f"{where}: the scale must be a number from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, "
            f"got {shown(text)}"
        )


def apply(components: Mapping[str, nn.Module], loras: Sequence[tuple[Lora, float]]) -> Report:
    """Fold LoRAs with their scales into ``unet``, ``text_encoder`` and ``text_encoder_2``.

    Every layer of a LoRA is folded, or refused by name, or belongs to a component that is not
    given: then it counts as unused. All is checked before the first weight changes; parameters
    are replaced, not written to, and keep their dtype. Raises ``CheckpointError`` and, for a
    scale, ``PlanError``.
    """
    import torch

    names = {n: Names(n, components[n]) for n in COMPONENTS if n in components}
    work: dict[tuple[str, str], list[tuple[Part, Layer, float]]] = {}
    folded = []
    for lora, scale in loras:
        _check_scale(scale, str(lora.path), scale)
        rows = _fit(lora, names)
        _warn_of_value_rows(lora, names)
        for layer, parts in rows:
            for part in parts:
                work.setdefault((layer.component, part.path), []).append((part, layer, scale))
        used = [layer.component for layer, _ in rows]
        folded.append(
            Folded(
                lora=lora,
                scale=scale,
                layers={name: used.count(name) for name in COMPONENTS if name in used},
                unused=_unused(lora, names),
            )
        )
    delta = lru_cache(maxsize=len(loras))(Layer.delta)  # experts of one layer share it
    with torch.no_grad():
        layers = {name: dict(components[name].named_modules()) for name in names}
        for (component, path), terms in work.items():
            layer: Any = layers[component][path]
            old = layer.weight
            total = torch.zeros(old.shape, dtype=torch.float32)
            for part, source, scale in terms:
                total += scale * part.of(delta(source))
            new = (old.float() + total.to(old.device)).to(old.dtype)
            layer.weight = torch.nn.Parameter(new, requires_grad=old.requires_grad)
    changed = [component for component, _ in work]
    return Report(
        folded=tuple(folded),
        changed={name: changed.count(name) for name in COMPONENTS if name in changed},
    )


def _warn_of_value_rows(lora: Lora, names: Mapping[str, Names]) -> None:
    """Warn where a Δ is added to value rows whose scale the checkpoint does not record."""
    for layer in lora.layers:
        if layer.component not in names:
            continue
        target = names[layer.component].find(layer.name, layer.flat)
        if target is not None and target.factor is None:
            message = (
                f"{lora.path.name} changes feed-forwards, and the checkpoint does not say whether "
                "it was upcycled with --rescale: if it was, value rows feel 1/N of the LoRA"
            )
            warnings.warn(message, MtuExportWarning, stacklevel=3)
            return


def _unused(lora: Lora, names: Mapping[str, Names]) -> dict[str, int]:
    rest = [layer.component for layer in lora.layers if layer.component not in names]
    return {name: rest.count(name) for name in COMPONENTS if name in rest}


def _fit(lora: Lora, names: Mapping[str, Names]) -> list[tuple[Layer, tuple[Part, ...]]]:
    """Layers of a LoRA with the weights that they change; refuses those that fit nowhere."""
    unknown, wrong, rows = [], [], []
    taken: dict[tuple[str, str], str] = {}
    for layer in lora.layers:
        if layer.component not in names:
            continue
        target = names[layer.component].find(layer.name, layer.flat)
        if target is None:
            unknown.append(f"{layer.component} {layer.name}")
            continue
        key = layer.component, target.path
        if key in taken:
            raise CheckpointError(
                f"{lora.path}: {taken[key]!r} and {layer.name!r} are the same layer of {key[0]}"
            )
        taken[key] = layer.name
        parts = target.parts(layer.shape)
        if not parts:
            shape, needs = list(layer.shape), target.wanted
            wrong.append(f"{layer.component} {layer.name} is of {shape}, the model's of {needs}")
        rows.append((layer, parts))
    problems = [
        f"{kind}: {', '.join(found[:3])}" + (f" and {len(found) - 3} more" * (len(found) > 3))
        for kind, found in (("no such layer", unknown), ("wrong shape", wrong))
        if found
    ]
    if problems:
        raise CheckpointError(f"{lora.path} does not fit the model: {'; '.join(problems)}")
    if not rows:
        there = ", ".join(names) or "none"
        found = ", ".join(_unused(lora, names))
        raise CheckpointError(
            f"{lora.path} would change nothing: it is for {found}; the model here has: {there}"
        )
    return rows


def identity(
    loras: Sequence[tuple[Lora, float]], components: Collection[str]
) -> list[dict[str, Any]]:
    """The LoRAs for a manifest, in order; ``components`` are those that they were folded into.

    ``layers`` counts what was folded by component, ``unused`` what had nowhere to go.
    """
    found = []
    for lora, scale in loras:
        counts: dict[str, int] = {}
        for layer in lora.layers:
            counts[layer.component] = counts.get(layer.component, 0) + 1
        found.append(
            {
                "name": lora.path.name,
                "sha256": lora.sha256,
                "scale": scale,
                "layers": {name: n for name, n in counts.items() if name in components},
                "unused": {name: n for name, n in counts.items() if name not in components},
            }
        )
    return found
