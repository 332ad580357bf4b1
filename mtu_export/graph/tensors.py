"""What is asked of tensors in more than one room."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf; makes no copy of it."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())  # NaN shows in both
