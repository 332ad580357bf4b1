"""What each layer loses when its weights alone are quantised, measured in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mtu_export import capture, quantize, verify
from mtu_export.models.blocks import Graph
from mtu_export.spec import Arrays, IntWeights, Scheme


@dataclass(frozen=True, kw_only=True)
class Loss:
    """PSNR in dB of the whole output when the weights of ``layer`` alone are integer codes."""

    layer: str
    psnr_db: float


def measure(
    graph: Graph, module: nn.Module, scheme: Scheme, cases: Sequence[Arrays]
) -> tuple[float, tuple[Loss, ...]]:
    """PSNR in dB with all layers quantised, and the loss of each layer alone, worst first.

    ``module`` is the float model that ``graph`` runs; it is quantised in the end. The reference
    is its own float output; a row is the worst of ``cases``. One pass a layer and case.
    """
    assert isinstance(scheme.weights, IntWeights)
    wanted = capture.run(graph, cases)
    (output,) = graph.outputs

    def psnr() -> float:
        pairs = zip(wanted, capture.run(graph, cases), strict=True)
        return min(verify.psnr(want[output.name], found[output.name]) for want, found in pairs)

    losses = []
    for path in quantize.layers(module, scheme)[0]:
        (layer,) = quantize.quantize_layer([module], path, scheme.weights.bits)
        losses.append(Loss(layer=path, psnr_db=psnr()))
        module.set_submodule(path, layer)
    quantize.quantize([module], scheme)
    return psnr(), tuple(sorted(losses, key=lambda row: row.psnr_db))


def describe(together: float, losses: Sequence[Loss], size: tuple[int, int], bits: int) -> str:
    """One line: all weights together, the layer that costs most alone, and the three next."""
    worst, *rest = losses[:4]
    others = ", ".join(f"{row.layer} {row.psnr_db:.1f} dB" for row in rest)
    return (
        f"in PyTorch at {size[0]} x {size[1]} pixels all {bits}-bit weights give "
        f"{together:.1f} dB; the layer that costs most alone is {worst.layer} with "
        f"{worst.psnr_db:.1f} dB"
        + (f", then {others}" if others else "")
        + "; --keep-float NAME keeps a layer in float"
    )
