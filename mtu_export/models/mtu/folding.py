"""The experts of one transformer block as static feed-forwards, one per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtu_export.graph import fold
from mtu_export.models.mtu.experts import Expert, MTUFeedForward, PerTask, StackedNorm
from mtu_export.spec import NotFoldable, Task


@dataclass(frozen=True, kw_only=True)
class FoldedBlock:
    """Norm and feed-forward of one block for one task, and the largest error of the fold."""

    norm: nn.Module
    ff: nn.Module
    error: float


def fold_block(
    path: str, block: Any, tasks: Sequence[Task], embeddings: Tensor
) -> list[FoldedBlock]:
    """Fold norm and experts of one block for each task; frees the block's experts."""
    live: MTUFeedForward = block.ff
    if not isinstance(live, MTUFeedForward) or not isinstance(block.norm3, PerTask):
        raise NotFoldable(f"{path}: not an MTU feed-forward")
    experts = [
        fold.ExpertWeights(
            proj=e.proj.weight, proj_bias=e.proj.bias, out=e.out.weight, out_bias=e.out.bias
        )
        for e in live.experts
        if isinstance(e, Expert)
    ]
    shared: PerTask = block.norm3
    width, dtype = experts[0].out.shape[0], experts[0].proj.dtype
    task_embeddings = [embeddings[task.index].double() for task in tasks]
    folded = []
    with torch.no_grad():
        weights = [live.router.double()(embedding) for embedding in task_embeddings]
        modules = fold.fold_experts(experts, weights)
        for task, embedding, ff in zip(tasks, task_embeddings, modules, strict=True):
            with live.active.run(task.name, embedding):
                error = fold.prove(path, live.double(), ff, width, dtype)
            norm = shared.of(task.name)
            if isinstance(shared, StackedNorm):
                norm = nn.Sequential(shared.stock(), norm)
            folded.append(FoldedBlock(norm=norm, ff=ff, error=error))
    block.ff = block.norm3 = None
    return folded
