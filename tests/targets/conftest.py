"""A mini model of three layers, captured as an export captures it: seconds a lowering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtu_export.exporter.options import resolve
from mtu_export.graph import capture, quantize
from mtu_export.graph.capture import Graph
from mtu_export.spec import Arrays, Plan, Program, TensorSpec

SPEC = TensorSpec(name="sample", shape=(1, 4, 8, 8))
OUT = TensorSpec(name="out_sample", shape=(1, 4, 8, 6))


class Mini(nn.Module):
    """conv, silu, conv, linear; ``dead`` makes a row of the first layer all zeros."""

    def __init__(self, dead: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(8, 6)
        if dead:
            with torch.no_grad():
                self.first.weight[3] = 0

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.silu(self.first(sample))
        return self.last(self.second(hidden))


MakeMini = Callable[..., tuple[Program, Plan, tuple[Arrays, ...], tuple[Arrays, ...], nn.Module]]


@pytest.fixture
def mini(atom: Path) -> MakeMini:
    """Program, plan, cases, float outputs and the quantised module of one target and scheme."""

    def make(target: str, scheme: str, dead: bool = False, **options: object):
        resolved = resolve(target=target, model=atom, task="t2i", scheme=scheme, options=options)
        random = np.random.default_rng(0)
        cases = tuple({"sample": random.standard_normal(SPEC.shape, np.float32)} for _ in range(4))
        graph = Graph(module=Mini(dead).eval(), inputs=(SPEC,), outputs=(OUT,))
        expected = capture.run(graph, cases)
        quantize.quantize([graph.module], resolved.schemes["unet"])
        program = capture.capture("unet", {"t2i": graph})
        return program, resolved, cases[:2], expected[:2], graph.module

    return make
