"""The live model's modules that differ between tasks: norms, convolutions, routed experts.

Also helpers for the stock blocks that they are put into.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from mtu_export.spec import CheckpointError


@dataclass(frozen=True, eq=False)
class Routing:
    """The active task and its embedding e_τ, [d_task] or [1, d_task]."""

    task: str
    embedding: Tensor


class ActiveTask:
    """The active task of the live model, shared by the modules that differ between tasks.

    Each thread has its own active task.
    """

    @contextmanager
    def run(self, task: str, embedding: Tensor) -> Iterator[None]:
        """Make ``task`` active inside the block; the previous task is restored at the end."""
        previous = _THREAD.routings
        _THREAD.routings = {**previous, self: Routing(task, embedding)}
        try:
            yield
        finally:
            _THREAD.routings = previous

    @property
    def routing(self) -> Routing:
        """The routing of this thread; raises ``RuntimeError`` outside :meth:`run`."""
        routing = _THREAD.routings.get(self)
        if routing is None:
            raise RuntimeError("no task is active: call the UNet with a task, or use activate()")
        return routing


class _Thread(threading.local):
    """Active routings of one thread; ``torch.compile`` traces this, but not a ``ContextVar``."""

    def __init__(self) -> None:
        self.routings: dict[ActiveTask, Routing] = {}


_THREAD = _Thread()


class PerTask(nn.Module):
    """One module per task, under the task's name; runs that of the active task."""

    def __init__(self, active: ActiveTask, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.active = active
        self._modules.update(modules)  # not add_module: a task may have an attribute's name

    def of(self, task: str) -> nn.Module:
        """The module of one task."""
        module = self._modules[task]
        assert module is not None
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Map x as the active task's module does."""
        return self.of(self.active.routing.task)(x)

    def train(self, mode: bool = True) -> PerTask:
        """As in PyTorch, but works for a task named ``training`` too."""
        self.__dict__["training"] = mode
        for module in self.children():
            module.train(mode)
        return self


class StackedNorm(PerTask):
    """The stock norm3, shared, followed by the task's norm (``task_norm: "stacked"``)."""

    def __init__(
        self, active: ActiveTask, shared: nn.LayerNorm, modules: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(active, modules)
        self.weight, self.bias = shared.weight, shared.bias
        self._width, self._eps = list(shared.normalized_shape), shared.eps

    def stock(self) -> nn.LayerNorm:
        """The shared norm alone."""
        norm = nn.LayerNorm(self._width, self._eps, device="meta")
        norm.weight, norm.bias = self.weight, self.bias
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., d] twice."""
        shared = F.layer_norm(x, self._width, self.weight, self.bias, self._eps)
        return super().forward(shared)


class Router(nn.Module):
    """g of Eq. 1: a two-layer ReLU perceptron on the task embedding."""

    def __init__(self, embedding: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embedding, hidden)
        self.fc2 = nn.Linear(hidden, experts)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map e_τ [d_task] to w [N], positive and summing to 1."""
        return self.fc2(self.fc1(embedding).relu()).softmax(-1)


class Expert(nn.Module):
    """A GEGLU feed-forward of inner width ``width`` on ``dim`` channels."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * width)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., d]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class MTUFeedForward(nn.Module):
    """Σ_i w_i · E_i(x), the feed-forward of Eq. 1."""

    def __init__(
        self, active: ActiveTask, dim: int, widths: Sequence[int], embedding: int, hidden: int
    ) -> None:
        super().__init__()
        self.active = active
        self.router = Router(embedding, hidden, len(widths))
        self.experts = nn.ModuleList(Expert(dim, width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to [..., d] with the active task's weights."""
        weights = self.router(self.active.routing.embedding).flatten()
        mixed = weights[0] * self.experts[0](x)
        for weight, expert in zip(weights[1:], self.experts[1:], strict=True):
            mixed = mixed + weight * expert(x)
        return mixed


def transformer_blocks(unet: nn.Module) -> list[tuple[str, BasicTransformerBlock]]:
    """(path, block) of every ``BasicTransformerBlock``; keeps no reference to other modules."""
    modules = unet.named_modules()
    return [(path, module) for path, module in modules if isinstance(module, BasicTransformerBlock)]


def dense_widths(path: str, block: BasicTransformerBlock) -> tuple[int, int]:
    """Channels d and inner width H of a stock block; refuses all but norm3 with GEGLU."""
    proj = getattr(block.ff.net[0], "proj", None)
    if type(block.ff.net[0]).__name__ != "GEGLU" or not isinstance(block.norm3, nn.LayerNorm):
        raise CheckpointError(f"{path}: only GEGLU feed-forwards behind a layer norm have experts")
    assert isinstance(proj, nn.Linear)
    return proj.in_features, proj.out_features // 2


def shares(inner: int, experts: int, path: str) -> tuple[int, ...]:
    """Split ``inner`` into ``experts`` widths as equal as possible, the wider ones first."""
    if experts > inner:
        raise CheckpointError(f"{path}: width {inner} cannot be divided among {experts} experts")
    width, rest = divmod(inner, experts)
    return (width + 1,) * rest + (width,) * (experts - rest)
