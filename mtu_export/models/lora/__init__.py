"""LoRA files folded exactly into the weights of a loaded model, whatever trainer they come from.

A file's tensors get layers and roles from their names (``keys``), layers get Δ from their tensors
(``forms``), a model says under which names its layers go and which part of Δ each tensor takes
(``model``), and ``folding`` adds.

A LoRA trained on a dense model is folded into an upcycled one the way ``upcycle`` splits the model
itself. Experts take consecutive slices of the feed-forward's Δ, so that upcycle(W) + slices of Δ
equals upcycle(W + Δ); this requires Σ hs_i to be the dense width, which the shape of Δ shows. A
task's first convolution takes the whole Δ if the widths agree; if Δ has the width of the noisy
latent or of another task, it takes only the channels of the noisy latent. A DoRA sets norms of the
dense layer, which is put together from the experts first.

A checkpoint upcycled with ``rescale`` holds value rows that are N times the dense ones and records
this in its config: Δ is multiplied by N for them. A checkpoint of several experts that does not
record it takes Δ unchanged, with a warning, and no DoRA.
"""

from __future__ import annotations

from mtu_export.models.lora.file import Lora, read
from mtu_export.models.lora.folding import Folded, Report, Scaled, apply, identity
from mtu_export.models.lora.keys import COMPONENTS
from mtu_export.models.lora.peft import config_beside
from mtu_export.models.lora.scales import Scales, component_of, parse
from mtu_export.spec import LoraSource, PlanError

__all__ = [
    "COMPONENTS",
    "Folded",
    "Lora",
    "Report",
    "Scaled",
    "Scales",
    "apply",
    "config_beside",
    "identity",
    "load",
    "parse",
    "read",
]


def load(source: LoraSource) -> tuple[Lora, Scales]:
    """Read a LoRA that a plan names. Raises as :func:`read` does, and ``PlanError`` for the scale
    of a component that it has no layers for.
    """
    lora = read(source.path, source.adapter)
    present = {layer.component for layer in lora.layers}
    for block, _ in source.blocks:
        if component_of(block) not in present:
            raise PlanError(f"{source.path} has no layer in block {block}, which --lora scales")
    return lora, Scales(source.scale, source.blocks)
