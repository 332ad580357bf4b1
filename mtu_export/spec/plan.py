"""The types that packages exchange, from the plan of an export to its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtu_export.spec.errors import ToolchainError
from mtu_export.spec.model import BaselineKind, Model, PartSpec
from mtu_export.spec.scheme import Scheme
from mtu_export.spec.task import Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from mtu_export.checkpoint.view import Folder


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, static shape and dtype name (``"float32"``) of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class LoraSource(NamedTuple):
    """A LoRA file, the factor of its difference, and those of blocks by name in its place;
    ``adapter`` is one of several in the file.
    """

    path: Path
    scale: float = 1.0
    adapter: str | None = None
    blocks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One export, resolved: every name looked up, every default filled in.

    ``source`` is the checkpoint's name: its folder's or ``owner/name`` on the hub, where
    ``revision`` is the commit. ``height`` and ``width`` are in pixels; ``options`` are the target's
    own. ``floor_db`` overrides the scheme's floor; ``memory``, in bytes, what the machine has
    available. ``parts`` are exported, each by its scheme of ``schemes``; ``scheme`` is the
    denoiser's. ``scheduler`` is None for the checkpoint's own; ``steps`` and ``strengths`` are
    those of the loop's tables; one that the scheduler cannot do refuses the export where
    ``steps_named`` (the user named them), else it is left out. ``baseline`` is what the export is
    instead of the usual one; ``model`` is then the baseline's. ``resume`` continues a stopped
    export.
    """

    model: Model
    source: str = ""
    revision: str | None = None
    tasks: tuple[Task, ...]
    target: str
    scheme: Scheme
    height: int
    width: int
    batch: int
    seed: int
    out: Path
    options: Any
    floor_db: float | None = None
    memory: float | None = None
    force: bool = False
    parts: tuple[str, ...] = ()
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    scheduler: str | None = None
    steps: tuple[int, ...] = ()
    strengths: tuple[float, ...] = ()
    steps_named: bool = False
    loras: tuple[LoraSource, ...] = ()
    baseline: BaselineKind | None = None
    resume: bool = False

    def part(self, name: str) -> Plan:
        """This plan with the scheme of one part."""
        return replace(self, scheme=self.schemes.get(name, self.scheme))

    def spec(self, name: str) -> PartSpec:
        """A part of the model."""
        return next(part for part in self.model.parts if part.name == name)

    @property
    def checkpoint(self) -> Folder:
        """The checkpoint."""
        return self.model.folder

    @property
    def is_plain(self) -> bool:
        """Whether the toolchain's own ways take the place of ours."""
        return self.baseline == "plain"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def latent_shape(self) -> tuple[int, int, int, int] | None:
        """[1, C, h, w]; None for a model without a loop."""
        latent = self.model.latent
        if latent is None:
            return None
        return 1, latent.channels, self.height // latent.factor, self.width // latent.factor


@dataclass(frozen=True, kw_only=True)
class Specialised:
    """The module of one task without a router, and how exact it is.

    ``errors`` maps a block to its largest relative error against the live router in float64;
    ``deviations`` says, a line each, where the module is no stock one of diffusers.
    """

    module: nn.Module
    errors: Mapping[str, float]
    deviations: tuple[str, ...] = ()


Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One part, captured: the narrow waist between models and targets.

    ``methods`` maps a task to its ``torch.export.ExportedProgram``, ``inputs`` to its inputs. Tasks
    differ in the channels of ``sample`` only; ``outputs`` are those of every task.
    """

    name: str
    methods: Mapping[str, torch.export.ExportedProgram]
    inputs: Mapping[str, tuple[TensorSpec, ...]]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def task_tensors(self) -> frozenset[str]:
        """Parameters and buffers that methods do not share; empty where there is one method."""
        states = [method.state_dict for method in self.methods.values()]
        return frozenset(
            name
            for name, tensor in states[0].items()
            if len({state[name].data_ptr() for state in states}) > 1
        )

    def require_same_graph(self) -> None:
        """Raise ``ToolchainError`` for methods that differ in more than values and input widths."""
        graphs = [
            [(node.op, str(node.target), str(node.args)) for node in method.graph.nodes]
            for method in self.methods.values()
        ]
        if any(graph != graphs[0] for graph in graphs):
            raise ToolchainError(f"the graphs of {', '.join(self.methods)} differ")

    def layer(self, tensor: str) -> str:
        """Path of the layer that holds a parameter or buffer of the exported program."""
        return tensor.removeprefix(f"{self.name}.").rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """What a target wrote and what it really did.

    - ``path``: the artefact, relative to the bundle; ``entries``: task to function, method or file.
    - ``io_names``: input or output of the program to its name in the artefact, where they differ.
    - ``activations``: ``"float32"``, ``"float16"`` or ``"dynamic_int8"``.
    - ``kept_float``: layers that the target itself left in float, each with the reason.
    - ``weight_dtype``: of matrices that are not integer codes; ``vector_dtype``: of biases, norms
      and scales; ``granularity`` of the codes.
    - ``weight_bytes``: of all weights, where they are not those of the program.
    - ``notes``: for the part's record in the manifest.
    """

    path: str
    entries: Mapping[str, str]
    activations: str
    io_names: Mapping[str, str] = field(default_factory=dict)
    kept_float: tuple[tuple[str, str], ...] = ()
    weight_dtype: str = "float32"
    vector_dtype: str = "float32"
    granularity: str = "per_channel"
    weight_bytes: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What an artefact declares, read without running it.

    ``operators`` counts operator kinds; ``identity`` is the embedded metadata.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    identity: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and work of one pass.

    A multiply-add counts as 2 FLOPs. ``flops_conv_linear`` leaves out attention's two products.
    """

    parameters: int
    flops_conv_linear: int
    flops_total: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of proof. ``runner`` and ``passed`` are None where nothing could run."""

    part: str
    task: str
    stage: str
    psnr_db: float | None
    max_abs: float | None
    floor_db: float
    runner: str | None
    passed: bool | None
    reason: str | None = None

    @property
    def cells(self) -> dict[str, str]:
        """The verdict as texts for a table, by column."""
        unjudged = "not run" if self.runner is None else "figure"
        return {
            "part": self.part,
            "task": self.task,
            "stage": self.stage,
            "PSNR": "not run" if self.psnr_db is None else f"{self.psnr_db:.1f} dB",
            "floor": f"{self.floor_db:g} dB" if self.floor_db else "",
            "verdict": {True: "passed", False: "FAILED", None: unjudged}[self.passed],
            "runner": self.runner or self.reason or "",
        }
