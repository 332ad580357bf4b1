"""LoRAs folded into the weights of a loaded model, in the order in which they are named.

Plain differences: W' = W + Σ s · Δ. A DoRA scales the rows (or columns) of what stands before it:
W' = (W + s · Δ) · m / ||W₀ + s · Δ||, where W₀ is the model's own weight, without other LoRAs
(Liu et al., "DoRA", 2024, Eq. 5; with several adapters and scales, as PEFT runs and merges them).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mtu_export.models.lora.file import Layer, Lora, Magnitude
from mtu_export.models.lora.keys import COMPONENTS
from mtu_export.models.lora.model import Names, Part, Target
from mtu_export.models.lora.scales import Scales, as_scales, blocks_of, component_of
from mtu_export.spec import CheckpointError, MtuExportWarning, PlanError

if TYPE_CHECKING:
    from torch import Tensor, nn

Scaled = Sequence[tuple[Lora, Scales | float]]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """One folded LoRA; ``layers`` and ``unused`` count its layers by component."""

    lora: Lora
    scales: Scales
    layers: Mapping[str, int]
    unused: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of :func:`apply`; ``changed`` counts the changed tensors by component."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Change:
    """What one LoRA does to one parameter, and the parts of it that tensors take."""

    layer: Layer
    parameter: str
    target: Target
    parts: tuple[Part, ...]
    scale: float

    @property
    def magnitude(self) -> Magnitude | None:
        """m, where the norm of the parameter is set."""
        return self.layer.magnitude if self.parameter == "weight" else None


def apply(components: Mapping[str, nn.Module], loras: Scaled) -> Report:
    """Fold LoRAs with their scales into ``unet``, ``text_encoder`` and ``text_encoder_2``.

    Every layer of a LoRA is either folded, refused by name, or counted as unused because its
    component is not in ``components``. Everything is checked before the first weight changes;
    parameters are replaced, not modified in place, and keep their dtype. Raises
    ``CheckpointError``, and ``PlanError`` for a scale out of range or of no layer.
    """
    import torch

    names = {n: Names(n, components[n]) for n in COMPONENTS if n in components}
    changes: dict[str, list[_Change]] = {component: [] for component in names}
    folded = []
    for lora, value in loras:
        scales = as_scales(value)
        scales.check(str(lora.path))
        matched = _match_layers(lora, scales, names)
        _warn_of_value_rows(lora, matched)
        for change in matched:
            changes[change.layer.component].append(change)
        used = [layer.component for layer in dict.fromkeys(change.layer for change in matched)]
        folded.append(
            Folded(
                lora=lora,
                scales=scales,
                layers={name: used.count(name) for name in COMPONENTS if name in used},
                unused=_count_unused(lora, names),
            )
        )
    divided = {component: _divide(own) for component, own in changes.items()}
    changed = {}
    delta = lru_cache(maxsize=max(1, len(loras)))(Layer.delta)  # experts of one layer share it
    with torch.no_grad():
        for component, (plain, scaled) in divided.items():
            module = components[component]
            for path, terms in plain.items():
                _put(module, path, _sum(module.get_parameter(path), terms, delta))
            for group, terms in scaled:
                for path, tensor in _rescaled(module, group, terms):
                    _put(module, path, tensor)
            changed[component] = len(plain) + sum(len(group) for group, _ in scaled)
    return Report(
        folded=tuple(folded), changed={name: count for name, count in changed.items() if count}
    )


# ------------------------------------------------------------------------------------ arithmetic

_Terms = list[tuple[Part, _Change]]


def _sum(tensor: Tensor, terms: _Terms, delta: Callable[[Layer, str], Tensor]) -> Tensor:
    """W + Σ s · Δ."""
    import torch

    total = torch.zeros(tensor.shape, dtype=torch.float32)
    for part, change in terms:
        total += change.scale * part.of(delta(change.layer, change.parameter))
    return tensor.float() + total.to(tensor.device)


def _rescaled(
    module: nn.Module, group: Sequence[Part], terms: Sequence[_Change]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one parameter of which a DoRA sets the norms: made whole, changed, divided."""
    import torch

    own = torch.empty(group[0].dense, dtype=torch.float32)
    for part in group:
        part.put(module.get_parameter(part.path), own)
    current = own.clone()
    for change in terms:
        delta = change.scale * change.layer.delta(change.parameter).reshape(own.shape)
        current += delta
        magnitude = change.magnitude
        if magnitude is not None:
            others = [axis for axis in range(own.ndim) if axis != magnitude.axis]
            norm = torch.linalg.vector_norm(own + delta, dim=others, keepdim=True)
            values = magnitude.values.reshape(norm.shape)
            current *= values / norm.where(norm > 0, torch.ones(()))  # a zero row stays zero
    for part in group:
        yield part.path, part.of(current)


def _put(module: nn.Module, path: str, value: Tensor) -> None:
    """Replace a parameter, which keeps its dtype and device."""
    import torch

    old = module.get_parameter(path)
    layer: Any = module.get_submodule(path.rpartition(".")[0])
    value = value.to(dtype=old.dtype, device=old.device)
    setattr(layer, path.rpartition(".")[2], torch.nn.Parameter(value, old.requires_grad))


def _divide(
    changes: Sequence[_Change],
) -> tuple[dict[str, _Terms], list[tuple[Sequence[Part], list[_Change]]]]:
    """Sums of terms by tensor, and the parameters whose norms a DoRA sets, with all of theirs."""
    rescaled: dict[str, list[_Change]] = {}
    for change in changes:
        if change.magnitude is not None:
            rescaled.setdefault(change.target.name, [])
    plain: dict[str, _Terms] = {}
    for change in changes:
        if change.target.name in rescaled:
            rescaled[change.target.name].append(change)
            continue
        for part in change.parts:
            plain.setdefault(part.path, []).append((part, change))
    groups = []
    for terms in rescaled.values():
        first = next(change for change in terms if change.magnitude is not None)
        for change in terms:
            if math.prod(change.parts[0].dense) != math.prod(first.parts[0].dense):
                _refuse(change, "is of another width than the DoRA of this layer")
        for group in first.target.dense_groups(first.parts):
            for path in (part.path for part in group if part.path in plain):
                _refuse(plain[path][0][1], "is part of a layer whose norm a DoRA sets")
            groups.append((group, terms))
    return plain, groups


# -------------------------------------------------------------------------------------- matching


def _match_layers(lora: Lora, scales: Scales, names: Mapping[str, Names]) -> list[_Change]:
    """The changes of a LoRA; refuses layers and blocks that fit nowhere."""
    unknown: list[str] = []
    misshapen: list[str] = []
    changes: list[_Change] = []
    name_by_layer: dict[tuple[str, str], str] = {}
    blocks: set[str] = set()
    for layer in lora.layers:
        if layer.component not in names:
            continue
        targets = names[layer.component].find(layer.name, layer.flat)
        if targets is None:
            unknown.append(f"{layer.component} {layer.name}")
            continue
        path = next(iter(targets.values())).path
        key = layer.component, path
        if key in name_by_layer:
            raise CheckpointError(
                f"{lora.path}: {name_by_layer[key]!r} and {layer.name!r} are the same "
                f"layer of {key[0]}"
            )
        name_by_layer[key] = layer.name
        blocks |= {*blocks_of(layer.component, path)}
        misfits = _misfits(layer, targets)
        misshapen += misfits
        if misfits:
            continue
        scale = scales.of(layer.component, path)
        for parameter, shape in layer.shapes.items():
            target = targets[parameter]
            change = _Change(
                layer=layer,
                parameter=parameter,
                target=target,
                parts=target.parts(shape),
                scale=scale,
            )
            _check_magnitude(lora, change)
            changes.append(change)
    problems = [
        f"{problem}: {', '.join(layers[:3])}"
        + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        for problem, layers in (("no such layer", unknown), ("wrong shape", misshapen))
        if layers
    ]
    if problems:
        raise CheckpointError(f"{lora.path} does not fit the model: {'; '.join(problems)}")
    if not changes:
        present = ", ".join(names) or "none"
        unused = ", ".join(_count_unused(lora, names))
        raise CheckpointError(
            f"{lora.path} would change nothing: it is for {unused}; the model here has: {present}"
        )
    for block, _ in scales.blocks:
        if component_of(block) in names and block not in blocks:
            raise PlanError(f"{lora.path} has no layer in block {block}, which --lora scales")
    return changes


def _misfits(layer: Layer, targets: Mapping[str, Target]) -> list[str]:
    """A line for each parameter that the model's layer lacks or has in another shape."""
    lines = []
    for parameter, shape in layer.shapes.items():
        target, which = targets.get(parameter), "" if parameter == "weight" else f" {parameter}"
        where = f"{layer.component} {layer.name}{which} is of {list(shape)}"
        if target is None:
            lines.append(f"{where}, the model's has no {parameter}")
        elif not target.parts(shape):
            lines.append(f"{where}, the model's of {target.expected_shapes}")
    return lines


def _check_magnitude(lora: Lora, change: _Change) -> None:
    """Refuse a DoRA of another width, and one whose dense layer the model does not hold."""
    magnitude, target = change.magnitude, change.target
    if magnitude is None:
        return
    where = f"{lora.path}: the DoRA of {change.layer.component} {change.layer.name}"
    dense, size = change.parts[0].dense, len(magnitude.values)
    if dense[magnitude.axis] != size:
        which = ("rows", "columns")[magnitude.axis]
        raise CheckpointError(f"{where} has {size} magnitudes for {dense[magnitude.axis]} {which}")
    if target.factor is None:
        raise CheckpointError(
            f"{where} sets norms of value rows, and the checkpoint does not say whether it was "
            "upcycled with --rescale"
        )
    if not target.dense_groups(change.parts):
        raise CheckpointError(
            f"{where} is for {dense[1]} channels; the model has {target.expected_shapes}, of "
            "other norms"
        )


def _refuse(change: _Change, problem: str) -> None:
    raise CheckpointError(f"{change.layer.component} {change.layer.name} {problem}")


def _warn_of_value_rows(lora: Lora, changes: Sequence[_Change]) -> None:
    """Warn where a Δ is added to value rows whose scale the checkpoint does not record."""
    if any(change.target.factor is None for change in changes):
        message = (
            f"{lora.path.name} changes feed-forwards, and the checkpoint does not say whether "
            "it was upcycled with --rescale: if it was, value rows feel 1/N of the LoRA"
        )
        warnings.warn(message, MtuExportWarning, stacklevel=3)


def _count_unused(lora: Lora, names: Collection[str]) -> dict[str, int]:
    unused = [layer.component for layer in lora.layers if layer.component not in names]
    return {name: unused.count(name) for name in COMPONENTS if name in unused}


# --------------------------------------------------------------------------------------- records


def identity(loras: Scaled, components: Collection[str]) -> list[dict[str, Any]]:
    """Manifest entries of LoRAs, in order; ``components`` are those that they were folded into.

    ``layers`` counts the folded layers by component, ``unused`` those of absent components, and
    ``forms`` the folded layers by method.
    """
    entries = []
    for lora, value in loras:
        scales = as_scales(value)
        counts, forms = dict[str, int](), dict[str, int]()
        for layer in lora.layers:
            counts[layer.component] = counts.get(layer.component, 0) + 1
            if layer.component in components:
                forms[layer.form] = forms.get(layer.form, 0) + 1
        entry: dict[str, Any] = {
            "name": lora.path.name,
            "sha256": lora.sha256,
            "scale": scales.default,
            "layers": {name: n for name, n in counts.items() if name in components},
            "unused": {name: n for name, n in counts.items() if name not in components},
            "forms": forms,
        }
        if lora.adapter is not None:
            entry["adapter"] = lora.adapter
        if scales.blocks:
            entry["blocks"] = dict(scales.blocks)
        entries.append(entry)
    return entries
