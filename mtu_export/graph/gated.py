"""A linear layer with a gain per output row, in which a fold keeps the expert weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GatedLinear(nn.Linear):
    """A linear layer whose rows carry a static gain: ``y = gain ⊙ (W x + b)``.

    A fold keeps expert matrices as they are and puts the expert weights into ``gain`` [out], so
    that the integer codes of ``weight`` do not depend on the task. :meth:`dense` is the equivalent
    plain layer.
    """

    gain: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, gain: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("gain", gain)

    def forward(self, input: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.gain * F.linear(input, self.weight, self.bias)

    def _dense(self) -> tuple[Tensor, Tensor]:
        return self.gain[:, None] * self.weight, self.gain * self.bias

    def dense(self) -> nn.Linear:
        """The equivalent stock layer, with the gains multiplied into weight and bias."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        weight, bias = self._dense()
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = nn.Parameter(bias, requires_grad=False)
        return plain

    def rows(self, begin: int, end: int) -> nn.Linear:
        """Output rows ``begin`` to ``end`` as a layer (a view); a stock one if all gains are 1."""
        span = slice(begin, end)
        weight, bias = self.weight.data[span], self.bias.data[span]
        gain = self.gain[span].clone()  # XNNPACK writes a buffer's whole storage
        if not bool((gain == 1).all()):
            return GatedLinear(weight, bias, gain)
        plain = nn.Linear(self.in_features, end - begin, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = nn.Parameter(bias, requires_grad=False)
        return plain


class WeightGatedLinear(GatedLinear):
    """A ``GatedLinear`` that scales whichever is smaller: the rows of W, or the outputs."""

    @classmethod
    def of(cls, layer: GatedLinear) -> WeightGatedLinear:
        """The same layer, sharing its parameters."""
        twin = cls(layer.weight, layer.bias, layer.gain)
        twin.weight, twin.bias = layer.weight, layer.bias
        return twin.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        tokens = input.numel() // self.in_features
        if tokens < self.in_features:
            return super().forward(input)
        weight, bias = self._dense()
        return F.linear(input, weight, bias)


def bake(module: nn.Module) -> None:
    """Replace each ``GatedLinear`` below ``module`` with its dense layer, one at a time."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GatedLinear):
                setattr(parent, name, child.dense())
