"""Exact weight algebra: a router that sees only the task folds into dense weights.

For one task τ, w = softmax(router(e_τ)) is constant, so that
FFN(x) = Σ_i w_i · out_i(value_i(x) · gelu(gate_i(x)))
is a single GEGLU feed-forward of width Σ hs_i: the value rows of all experts times w_i, then their
gate rows, the down columns in the same order, and the down bias Σ w_i·b_i (docs/checkpoint.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtu_export.graph.gated import GatedLinear, bake
from mtu_export.spec import NotFoldable

TOLERANCE = 16
"""Largest relative error allowed for a fold, in units of the weights' machine epsilon."""


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """Weights of one expert of inner width hs on d channels.

    ``proj`` [2·hs, d] holds value rows, then gate rows; ``proj_bias`` [2·hs]; ``out`` [d, hs];
    ``out_bias`` [d].
    """

    proj: Tensor
    proj_bias: Tensor
    out: Tensor
    out_bias: Tensor


def fold_experts(experts: Sequence[ExpertWeights], weights: Sequence[Tensor]) -> list[nn.Module]:
    """Fold experts into one diffusers GEGLU ``FeedForward`` per task, equal to Σ_i w_i · E_i.

    ``weights`` holds one w [N] in float64 per task. All tasks share the same unscaled matrices; w
    becomes the gain of the value rows of a :class:`GatedLinear`. Raises ``NotFoldable`` where w
    does not fit the experts.
    """
    for w in weights:
        if w.shape != (len(experts),) or not bool(torch.isfinite(w).all()):
            raise NotFoldable(f"expert weights {w.tolist()} do not fit {len(experts)} experts")
    widths = [expert.out.shape[1] for expert in experts]
    pairs = list(zip(experts, widths, strict=True))
    proj = torch.cat([e.proj[:n] for e, n in pairs] + [e.proj[n:] for e, n in pairs])
    bias = torch.cat([e.proj_bias[:n] for e, n in pairs] + [e.proj_bias[n:] for e, n in pairs])
    down = torch.cat([e.out for e in experts], dim=1)
    ones = torch.ones(sum(widths), dtype=torch.float64)
    folded = []
    for w in (task_weights.to(torch.float64) for task_weights in weights):
        gain = torch.cat([w.repeat_interleave(torch.tensor(widths)), ones])
        shift = sum(w_i * e.out_bias.double() for w_i, e in zip(w, experts, strict=True))
        assert isinstance(shift, Tensor)
        gated = GatedLinear(proj, bias, gain.to(proj.dtype))
        folded.append(feed_forward(gated, down, shift.to(proj.dtype)))
    return folded


def feed_forward(proj: nn.Linear, down: Tensor, shift: Tensor) -> nn.Module:
    """A stock ``FeedForward`` with these tensors: ``down`` [d, H] and its bias ``shift`` [d]."""
    from diffusers.models.attention import FeedForward

    with torch.device("meta"):
        dense = FeedForward(down.shape[0], inner_dim=down.shape[1], activation_fn="geglu")
    dense.net[0].proj = proj
    last = dense.net[2]
    assert isinstance(last, nn.Linear)
    last.weight = nn.Parameter(down, requires_grad=False)
    last.bias = nn.Parameter(shift, requires_grad=False)
    return dense.eval()


def prove(
    block: str, live: Callable[[Tensor], Tensor], folded: nn.Module, width: int, dtype: torch.dtype
) -> float:
    """Largest relative error of ``folded`` against ``live`` in float64 on a seeded input.

    ``live`` maps float64 [1, 32, width] to the same shape with the router live. The gains of
    ``folded`` are multiplied in at ``dtype`` first, as an export does. Raises ``NotFoldable``
    with the block's name above ``TOLERANCE`` epsilons.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, width, generator=generator, dtype=torch.float64)
    baked = copy.deepcopy(folded)
    bake(baked)
    with torch.no_grad():
        expected, actual = live(x), baked.double()(x)
    tiny = torch.finfo(torch.float64).tiny
    scale = expected.abs().max().clamp_min(tiny)  # a block of zeros is fine
    error = float((actual - expected).abs().max() / scale)
    limit = TOLERANCE * torch.finfo(dtype).eps
    if not error <= limit:
        raise NotFoldable(
            f"{block}: the folded feed-forward differs from the live router by {error:.1e} "
            f"(relative; exact is below {limit:.1e})"
        )
    return error
