"""Parts of a pipeline in memory, as the exporter takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from mtu_export.checkpoint import Folder
from mtu_export.graph.capture import Graph
from mtu_export.models.pipeline import stock
from mtu_export.spec import Specialised, Task


class _Stock:
    """A part whose graph is the same for every task, and is exported as it is."""

    module: nn.Module

    def specialise(self, tasks: Sequence[Task]) -> None:
        """Return None: there is nothing to specialise."""


class TextEncoder(_Stock):
    """A CLIP text encoder."""

    def __init__(self, folder: Folder, name: str, *, is_sdxl: bool, skip: int = 0) -> None:
        self.module = stock.load_text_encoder(folder, name)
        self.skip = skip
        self.penultimate, self.pooled = is_sdxl, name.endswith("_2")

    def graph(
        self, task: Task, size: tuple[int, int], batch: int, module: nn.Module | None = None
    ) -> Graph:
        """Ids to hidden states and, of SDXL's second one, the pooled text."""
        return stock.text_encoder_graph(
            self.module,
            self.module.config,
            penultimate=self.penultimate,
            pooled=self.pooled,
            skip=self.skip,
        )


class VAE(_Stock):
    """Half of a VAE."""

    def __init__(self, folder: Folder, *, decodes: bool) -> None:
        self.vae = stock.load_vae(folder)
        self.module: nn.Module = self.vae
        self.decodes = decodes

    def graph(
        self, task: Task, size: tuple[int, int], batch: int, module: nn.Module | None = None
    ) -> Graph:
        """Picture to latent, or back."""
        build = stock.vae_decoder_graph if self.decodes else stock.vae_encoder_graph
        return build(self.vae, *size)


class UNet:
    """A UNet whose graph ``build`` makes of a module, a task, a latent size and a batch.

    ``specialiser`` makes each task's module; None where the live module is exported.
    """

    def __init__(
        self,
        module: nn.Module,
        factor: int,
        build: Callable[[nn.Module, Task, tuple[int, int], int], Graph],
        specialiser: Callable[[nn.Module, Sequence[Task]], Mapping[str, Specialised]] | None,
    ) -> None:
        self._module: nn.Module | None = module
        self.factor, self.build, self.specialiser = factor, build, specialiser

    @property
    def module(self) -> nn.Module:
        """The live module, until it is specialised."""
        assert self._module is not None
        return self._module

    def graph(
        self, task: Task, size: tuple[int, int], batch: int, module: nn.Module | None = None
    ) -> Graph:
        """The graph of a task, of the live or of a specialised module."""
        latent = size[0] // self.factor, size[1] // self.factor
        return self.build(self.module if module is None else module, task, latent, batch)

    def specialise(self, tasks: Sequence[Task]) -> Mapping[str, Specialised] | None:
        """The module of each task; consumes the live one's memory."""
        if self.specialiser is None:
            return None
        module, self._module = self.module, None
        return self.specialiser(module, tasks)
