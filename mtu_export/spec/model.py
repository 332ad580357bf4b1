"""What a model family is: how a checkpoint folder becomes parts, graphs and flows.

A family is a package of ``mtu_export.models``, found by what it claims; the rest of the house knows
these protocols and no family's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mtu_export.spec.errors import PlanError
from mtu_export.spec.scheme import FloatWeights, KeepFloat, Scheme
from mtu_export.spec.task import Task

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mtu_export.checkpoint.view import Folder
    from mtu_export.graph.capture import Graph
    from mtu_export.spec.flow import Call, Flow, Inputs, Kind, Value
    from mtu_export.spec.plan import Specialised

BaselineKind = Literal["unfolded", "dense", "plain"]
"""What an export is compared with: the router in the graph, a dense model of random weights, and
the toolchain's own export of the usual model."""
WEIGHTS = "diffusion_pytorch_model"
"""Stem of the file of weights that diffusers writes."""


@dataclass(frozen=True, kw_only=True)
class StockPart:
    """How other libraries open a part: its entry in ``model_index.json``, its config and its names.

    ``io_names`` maps a graph's input or output to the name that they expect, where it differs;
    ``repeated`` an output to add to the one that it repeats.
    """

    key: str
    library: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    io_names: Mapping[str, str] = field(default_factory=dict)
    repeated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StockPipeline:
    """How other libraries open the whole of a task: class and flags of ``model_index.json``.

    ``configs`` are those of parts whose config differs between tasks. ``tokenizers`` maps a
    tokenizer's folder to its class; both are of transformers. ``scheduler`` is the checkpoint's
    config of it, empty where it has none.
    """

    class_name: str
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """A part of a model: what it does, where its weights are, and how they may be stored.

    ``folder`` is that of the checkpoint and ``stem`` the stem of its weights' files, of which
    ``prefixes`` select this part's tensors (none: all) and ``optional`` need not be there.
    ``by_task``: its graph differs between tasks, otherwise one serves all. ``integer``: whether
    schemes with integer weights make its weights integer, else they are float16 or float32.
    ``float16`` under a narrow scheme: always, where the target gains by it, or never (its values
    overflow). ``keep_float`` are layers that stay float under integer schemes.
    ``upcast_attention``: its attention scores overflow float16.
    """

    name: str
    kind: Kind
    folder: str
    stem: str = WEIGHTS
    prefixes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    by_task: bool = False
    integer: bool = True
    float16: Literal["always", "gain", "never"] = "always"
    keep_float: tuple[KeepFloat, ...] = ()
    upcast_attention: bool = False
    stock: StockPart | None = None

    def scheme(self, scheme: Scheme, schemes: Mapping[str, Scheme], *, gains: bool) -> Scheme:
        """The scheme of this part in an export by ``scheme``.

        ``gains``: whether the target saves bytes or time by float16 in a part of ``"gain"``.
        """
        from dataclasses import replace

        weights = scheme.weights
        if isinstance(weights, FloatWeights) and weights.dtype == "float32":
            return scheme
        narrow = self.float16 == "always" or (self.float16 == "gain" and gains)
        if isinstance(weights, FloatWeights):
            return scheme if self.float16 == "always" else schemes["fp16" if narrow else "fp32"]
        if not self.integer:
            return schemes["fp16" if narrow else "fp32"]
        return replace(scheme, overrides=(*scheme.overrides, *self.keep_float))


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Channels of a latent, and its pixels per cell."""

    channels: int
    factor: int


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """How a prompt reaches the parts of a pass.

    ``calls`` are those of the text encoders; ``inputs`` the value of each input of a pass call that
    they feed. ``zero_empty``: the empty prompt's embeddings are zeros, not the encoders'.
    """

    calls: tuple[Call, ...]
    inputs: Mapping[str, Value]
    zero_empty: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerDeviation:
    """‖θ_f − θ_p‖ and ‖θ_p‖ (Frobenius, float64) over the tensors of one layer and kind."""

    layer: str
    kind: str
    deviation: float
    reference: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The deviation of one model from another, by layer and summed by kind, the greatest first.

    ``left_out`` holds (tensor, reason) for every tensor that was not compared.
    """

    layers: Sequence[LayerDeviation]
    kinds: Sequence[LayerDeviation]
    left_out: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A file of trained tokens (textual inversion), read for a model.

    ``tokens`` are T, ``T_1``, ..., one a vector; ``tensors`` maps a text encoder to the tensor with
    its vectors, [d] or [n, d].
    """

    path: Path
    sha256: str
    tokens: tuple[str, ...]
    tensors: Mapping[str, str]


class LivePart(Protocol):
    """A part in memory, as the checkpoint has it."""

    @property
    def module(self) -> nn.Module:
        """The module that LoRAs are folded into."""
        ...

    def graph(
        self, task: Task, size: tuple[int, int], batch: int, module: nn.Module | None = None
    ) -> Graph:
        """The graph of a task at ``size`` in pixels, of the live or of a specialised module."""
        ...

    def specialise(self, tasks: Sequence[Task]) -> Mapping[str, Specialised] | None:
        """The module of each task as it exists on a phone; None where it is the live one.

        They share the tensors that are equal. May consume the live module's memory.
        """
        ...


class Model(Protocol):
    """A checkpoint of a family, opened: its JSON is read and checked, its weights are not."""

    @property
    def family(self) -> str: ...  # noqa: D102 (the family's name)
    @property
    def folder(self) -> Folder: ...  # noqa: D102
    @property
    def config(self) -> Mapping[str, Any]:
        """The config that the manifest quotes."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it can do."""
        ...

    @property
    def default_tasks(self) -> tuple[str, ...]:
        """Names of the tasks to export where none is named; empty: the user names one."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the model card: what was not exported, and the like."""
        ...

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """Its parts, in the order in which flows run them."""
        ...

    @property
    def latent(self) -> LatentSpec | None:
        """The latent of its loop; None for a model without a loop."""
        ...

    @property
    def text(self) -> TextEncoding | None:
        """How prompts are encoded; None for a model without prompts."""
        ...

    @property
    def clip_skip(self) -> int:
        """Layers of the text encoders left out before the one whose states are used."""
        ...

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The trained tokens that are added to its text encoders and tokenizers."""
        ...

    def with_text(self, embeddings: Sequence[str], clip_skip: int) -> Model:
        """This model with added tokens, a ``FILE[:token]`` each, and text of an earlier layer.

        Raises ``PlanError`` and ``CheckpointError`` for what it cannot take.
        """
        ...

    def embed(self, part: str, module: nn.Module, ids: Mapping[str, int]) -> None:
        """Set the rows of the added tokens, by their ids, in a text encoder in memory."""
        ...

    @property
    def size_step(self) -> int:
        """Height and width are multiples of this many pixels."""
        ...

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the model's own where none is given; ``PlanError``."""
        ...

    def flow(self, task: Task) -> Flow:
        """The flow of a task, by the names of the graphs' inputs and outputs."""
        ...

    def inputs(self, task: Task) -> Inputs:
        """What the task takes from its user beside the prompt."""
        ...

    def constants(self, task: Task, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Constants of the flow that are not of a prompt, by name, [1, ...] float32."""
        ...

    def require_complete(self) -> None:
        """Refuse a folder without a part that its ``model_index.json`` names."""
        ...

    def require_compatible(self, parts: Collection[str]) -> None:
        """Refuse parts that do not fit together, by configs and headers; ``CheckpointError``."""
        ...

    def load(self, part: str) -> LivePart:
        """A part in memory, checked; raises ``CheckpointError``."""
        ...

    def outline(self, part: str, task: Task) -> nn.Module:
        """The module that is exported for a task, on the meta device."""
        ...

    def working_bytes(self, part: str, size: tuple[int, int], batch: int) -> float:
        """Bytes of memory that a pass of a part needs beside its weights."""
        ...

    def describe(self, height: int | None, width: int | None) -> dict[str, Any]:
        """What it holds, for `inspect`: tasks, parameters, FLOPs at a size in pixels."""
        ...

    def deviation(self, other: Model) -> Deviation:
        """How much the weights of two models deviate, layer by layer; ``PlanError``."""
        ...

    def stock_pipeline(self, task: Task) -> StockPipeline | None:
        """How other libraries open the exported parts of a task; None where none does."""
        ...

    def unfolded(self) -> Model | None:
        """This model with its router in the graph; None where it has none."""
        ...

    def dense(self, task: Task) -> Model | None:
        """A dense model of one task with random weights, of the size of the exported one.

        None where this one is dense.
        """
        ...


class PlainModel:
    """What most models without a loop answer; a family's model derives from it or not."""

    config: Mapping[str, Any] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    latent: LatentSpec | None = None
    text: TextEncoding | None = None
    clip_skip: int = 0
    embeddings: tuple[Embedding, ...] = ()
    size_step: int = 8

    def constants(self, task: Task, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """No constants."""
        return {}

    def with_text(self, embeddings: Sequence[str], clip_skip: int) -> Model:
        """It has no text encoder."""
        raise PlanError("--embedding and --clip-skip belong to models with a CLIP text encoder")

    def embed(self, part: str, module: nn.Module, ids: Mapping[str, int]) -> None:
        """It has no text encoder."""

    def require_complete(self) -> None:
        """Nothing is missing."""

    def require_compatible(self, parts: Collection[str]) -> None:
        """All fits."""

    def working_bytes(self, part: str, size: tuple[int, int], batch: int) -> float:
        """Too little to count."""
        return 0.0

    def stock_pipeline(self, task: Task) -> StockPipeline | None:
        """No other library opens it."""
        return None

    def unfolded(self) -> Model | None:
        """It has no router."""
        return None

    def dense(self, task: Task) -> Model | None:
        """It is dense."""
        return None


class Family(Protocol):
    """One family of checkpoints: a package of ``mtu_export.models``, found by its folder."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in ``model_index.json`` or a ``config.json`` that it claims, for errors."""
        ...

    def claims(self, folder: Folder) -> bool:
        """Whether a checkpoint folder is of this family; reads JSON alone."""
        ...

    def open(self, folder: Folder) -> Model:
        """Read a folder that it claims; raises ``CheckpointError``."""
        ...
