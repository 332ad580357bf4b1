"""What quantising the weights of each layer alone costs, measured in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from mtu_export import targets
from mtu_export.bundle import metrics
from mtu_export.graph import capture, quantize
from mtu_export.graph.capture import Graph
from mtu_export.spec import (
    Arrays,
    Cost,
    IntWeights,
    Plan,
    Scheme,
)

if TYPE_CHECKING:
    from mtu_export.models.lora import Scaled

_WORK = 2e13
"""FLOPs that the search for the costliest layers may take: one to two minutes on two cores."""


def layer_sensitivity(plan: Plan, part: str, name: str, cost: Cost, loras: Scaled = ()) -> str:
    """A line on what quantising each layer alone of a part costs a task; see :func:`describe`.

    A large model is measured on smaller pictures, as there is one pass per layer: for SD 1.5 that
    takes 20 minutes at 512 x 512 pixels and one minute at 128 x 128.
    """
    from mtu_export.exporter.part import load
    from mtu_export.exporter.reference import Reference
    from mtu_export.graph import quantize, rewrite

    scheme, task = plan.schemes[part], next(t for t in plan.tasks if t.name == name)
    assert isinstance(scheme.weights, IntWeights)
    live = load(plan, part, loras)
    specialised = live.specialise([task])
    module = None if specialised is None else specialised[task.name].module
    layers = live.graph(task, plan.size, 1, module).layers
    rewrite.apply(layers, targets.rewrites(plan))
    work = len(quantize.layers(layers, scheme)[0]) * cost.flops_total / plan.batch
    step, small = plan.model.size_step, replace(plan, batch=1)
    while work > _WORK and max(small.height, small.width) > step:
        height, width = (max(step, n // 2 // step * step) for n in (small.height, small.width))
        work *= height * width / (small.height * small.width)
        small = replace(small, height=height, width=width)
    graph = live.graph(task, small.size, 1, module)
    reference = Reference(small, task, None, None)
    call = next(call for call in reference.flow.calls if call.part == part)
    cases = reference.golden_inputs(call, graph)[1:2]
    together, losses = measure(graph, layers, scheme, cases)
    return describe(together, losses, small.size, scheme.weights.bits)


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """PSNR in dB of the whole output when the weights of ``layer`` alone are integer codes."""

    layer: str
    psnr_db: float


def measure(
    graph: Graph, module: nn.Module, scheme: Scheme, cases: Sequence[Arrays]
) -> tuple[float, tuple[LayerSensitivity, ...]]:
    """PSNR in dB with all layers quantised, and with each layer alone, worst first.

    ``module`` is the float model that ``graph`` runs; afterwards it is quantised. The reference is
    its float output, and each figure is the worst of ``cases``. One pass per layer and case.
    """
    assert isinstance(scheme.weights, IntWeights)
    expected = capture.run(graph, cases)
    (output,) = graph.outputs

    def psnr() -> float:
        pairs = zip(expected, capture.run(graph, cases), strict=True)
        return min(metrics.psnr(a[output.name], b[output.name]) for a, b in pairs)

    losses = []
    for path in quantize.layers(module, scheme)[0]:
        (layer,) = quantize.quantize_layer([module], path, scheme.weights.bits)
        losses.append(LayerSensitivity(layer=path, psnr_db=psnr()))
        module.set_submodule(path, layer)
    quantize.quantize([module], scheme)
    return psnr(), tuple(sorted(losses, key=lambda loss: loss.psnr_db))


def describe(
    together: float, losses: Sequence[LayerSensitivity], size: tuple[int, int], bits: int
) -> str:
    """One line: all weights together, the layer that costs most alone, and the three next."""
    worst, *rest = losses[:4]
    others = ", ".join(f"{loss.layer} {loss.psnr_db:.1f} dB" for loss in rest)
    return (
        f"in PyTorch at {size[0]} x {size[1]} pixels all {bits}-bit weights give "
        f"{together:.1f} dB; the layer that costs most alone is {worst.layer} with "
        f"{worst.psnr_db:.1f} dB"
        + (f", then {others}" if others else "")
        + "; --keep-float NAME keeps a layer in float"
    )
