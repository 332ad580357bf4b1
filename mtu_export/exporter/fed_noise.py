"""Noise of our choice in place of what a scheduler's step draws.

Every scheduler of diffusers that draws normal noise does so through ``torch.randn``, as
``randn_tensor`` of ``diffusers.utils.torch_utils`` does. A mode of PyTorch answers that call, in
whatever module it is made. What is drawn in another way advances PyTorch's generator, which
:func:`has_drawn` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mtu_export.spec import Unsupported


class FedNoise(TorchFunctionMode):
    """Within it, ``torch.randn`` gives ``noise`` [N, ...], once.

    Raises ``Unsupported`` with the scheduler's ``name`` for a second draw and for one of another
    shape: a pass of a table has a single coefficient for noise of the sample's shape.
    """

    def __init__(self, noise: torch.Tensor, name: str) -> None:
        super().__init__()
        self.noise, self.name, self.draws = noise, name, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer ``torch.randn``; let every other function run."""
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        sizes = kwargs.get("size", args)
        shape = tuple(sizes[0]) if sizes and not isinstance(sizes[0], int) else tuple(sizes)
        self.draws += 1
        if self.draws > 1 or shape != tuple(self.noise.shape):
            what = "twice" if self.draws > 1 else f"of shape {list(shape)}"
            raise Unsupported(f"{self.name} draws noise {what} in a pass, so no table holds it")
        return self.noise.to(kwargs.get("dtype") or torch.get_default_dtype(), copy=True)


def has_drawn() -> bool:
    """Whether PyTorch's generator was used since its seed was set to 0."""
    return not torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())
