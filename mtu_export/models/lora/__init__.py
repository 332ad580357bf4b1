"""LoRA files folded exactly into the weights of a loaded model: W' = W + Σ scale · Δ in float32.

A LoRA trained on a dense model is folded into an upcycled one the way ``upcycle`` splits the model
itself. Experts take consecutive slices of the feed-forward's Δ, so that upcycle(W) + slices of Δ
equals upcycle(W + Δ); this requires Σ hs_i to be the dense width, which the shape of Δ shows. A
task's first convolution takes the whole Δ if the widths agree; if Δ has the width of the noisy
latent or of another task, it takes only the channels of the noisy latent. Norms have no LoRA.

A checkpoint upcycled with ``rescale`` holds value rows that are N times the dense ones and records
this in its config: Δ is multiplied by N for them. A checkpoint of several experts that does not
record it takes Δ unchanged, with a warning.
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
    """One folded LoRA; ``layers`` and ``unused`` count its layers by component."""

    lora: Lora
    scale: float
    layers: Mapping[str, int]
    unused: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of :func:`apply`; ``changed`` counts the changed weights by component."""

    folded: tuple[Folded, ...]
    changed: Mapping[str, int]

    @property
    def unused(self) -> dict[str, int]:
        """Number of layers, over all LoRAs, for components that the model lacks."""
        counts = dict.fromkeys(COMPONENTS, 0)
        for folded in self.folded:
            for component, number in folded.unused.items():
                counts[component] += number
        return {component: number for component, number in counts.items() if number}


def parse(argument: str) -> LoraSource:
    """Parse ``FILE[:scale]`` as a file and a scale, which defaults to 1.

    If the whole argument names an existing file, colons in it do not separate a scale.
    Raises ``PlanError``.
    """
    path = _existing_file(argument)
    if path is not None:
        return LoraSource(path)
    name, colon, text = argument.rpartition(":")
    path = _existing_file(name) if colon else None
    if path is None:
        raise PlanError(f"--lora: no file {shown(name if _NUMBER.fullmatch(text) else argument)}")
    scale = float(text) if _NUMBER.fullmatch(text) else math.nan
    _check_scale(scale, f"--lora {shown(argument)}", text)
    return LoraSource(path, scale)


def _existing_file(name: str) -> Path | None:
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

    Every layer of a LoRA is either folded, refused by name, or counted as unused because its
    component is not in ``components``. Everything is checked before the first weight changes;
    parameters are replaced, not modified in place, and keep their dtype. Raises
    ``CheckpointError``, and ``PlanError`` for a scale out of range.
    """
    import torch

    names = {n: Names(n, components[n]) for n in COMPONENTS if n in components}
    terms_by_weight: dict[tuple[str, str], list[tuple[Part, Layer, float]]] = {}
    folded = []
    for lora, scale in loras:
        _check_scale(scale, str(lora.path), scale)
        matched = _match_layers(lora, names)
        _warn_of_value_rows(lora, names)
        for layer, parts in matched:
            for part in parts:
                terms = terms_by_weight.setdefault((layer.component, part.path), [])
                terms.append((part, layer, scale))
        used = [layer.component for layer, _ in matched]
        folded.append(
            Folded(
                lora=lora,
                scale=scale,
                layers={name: used.count(name) for name in COMPONENTS if name in used},
                unused=_count_unused(lora, names),
            )
        )
    delta = lru_cache(maxsize=len(loras))(Layer.delta)  # the experts of one layer share it
    with torch.no_grad():
        layers = {name: dict(components[name].named_modules()) for name in names}
        for (component, path), terms in terms_by_weight.items():
            layer: Any = layers[component][path]
            weight = layer.weight
            total = torch.zeros(weight.shape, dtype=torch.float32)
            for part, source, scale in terms:
                total += scale * part.of(delta(source))
            new = (weight.float() + total.to(weight.device)).to(weight.dtype)
            layer.weight = torch.nn.Parameter(new, requires_grad=weight.requires_grad)
    changed = [component for component, _ in terms_by_weight]
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


def _count_unused(lora: Lora, names: Mapping[str, Names]) -> dict[str, int]:
    unused = [layer.component for layer in lora.layers if layer.component not in names]
    return {name: unused.count(name) for name in COMPONENTS if name in unused}


def _match_layers(lora: Lora, names: Mapping[str, Names]) -> list[tuple[Layer, tuple[Part, ...]]]:
    """Layers of a LoRA with the weights that they change; refuses those that fit nowhere."""
    unknown, misshapen, matched = [], [], []
    name_by_target: dict[tuple[str, str], str] = {}
    for layer in lora.layers:
        if layer.component not in names:
            continue
        target = names[layer.component].find(layer.name, layer.flat)
        if target is None:
            unknown.append(f"{layer.component} {layer.name}")
            continue
        key = layer.component, target.path
        if key in name_by_target:
            raise CheckpointError(
                f"{lora.path}: {name_by_target[key]!r} and {layer.name!r} are the same "
                f"layer of {key[0]}"
            )
        name_by_target[key] = layer.name
        parts = target.parts(layer.shape)
        if not parts:
            misshapen.append(
                f"{layer.component} {layer.name} is of {list(layer.shape)}, "
                f"the model's of {target.expected_shapes}"
            )
        matched.append((layer, parts))
    problems = [
        f"{problem}: {', '.join(layers[:3])}"
        + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        for problem, layers in (("no such layer", unknown), ("wrong shape", misshapen))
        if layers
    ]
    if problems:
        raise CheckpointError(f"{lora.path} does not fit the model: {'; '.join(problems)}")
    if not matched:
        present = ", ".join(names) or "none"
        unused = ", ".join(_count_unused(lora, names))
        raise CheckpointError(
            f"{lora.path} would change nothing: it is for {unused}; the model here has: {present}"
        )
    return matched


def identity(
    loras: Sequence[tuple[Lora, float]], components: Collection[str]
) -> list[dict[str, Any]]:
    """Manifest entries of LoRAs, in order; ``components`` are those that they were folded into.

    ``layers`` counts the folded layers by component, ``unused`` those of absent components.
    """
    entries = []
    for lora, scale in loras:
        counts: dict[str, int] = {}
        for layer in lora.layers:
            counts[layer.component] = counts.get(layer.component, 0) + 1
        entries.append(
            {
                "name": lora.path.name,
                "sha256": lora.sha256,
                "scale": scale,
                "layers": {name: n for name, n in counts.items() if name in components},
                "unused": {name: n for name, n in counts.items() if name not in components},
            }
        )
    return entries
