"""Checks on tensors that several packages share."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor is free of NaN and Inf; does not copy it."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())  # NaN shows in both
