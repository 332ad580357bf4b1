"""The types that packages exchange, from the plan of an export to its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from mtu_export.spec.errors import ToolchainError
from mtu_export.spec.scheme import Scheme
from mtu_export.spec.task import Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


Component = Literal["text_encoder", "text_encoder_2", "vae_encoder", "unet", "vae_decoder"]
COMPONENTS: tuple[str, ...] = get_args(Component)
"""What a bundle may hold, in the order in which a loop needs them."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, static shape and dtype name (``"float32"``) of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class LoraSource(NamedTuple):
    """A LoRA file, and the factor of its difference."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One export, resolved: every name looked up, every default filled in.

    - ``source``: the checkpoint's name, its folder's or ``owner/name`` on the hub; ``revision``:
      the commit on the hub.
    - ``config``: the checkpoint's ``unet/config.json``.
    - ``height``, ``width``: of the pictures, in pixels; ``factor``: pixels per latent cell.
    - ``components``: the parts to export, each with its scheme of ``schemes``; ``scheme`` is the
      UNet's.
    - ``options``: an instance of the target's options dataclass.
    - ``floor_db``: replaces the scheme's floor; ``memory``: replaces the bytes that are free here.
    - ``scheduler``: None for the checkpoint's own.
    - ``steps``: step counts to write tables for. Of those that the user named (``steps_named``)
      one that the scheduler cannot do refuses the export, of the default ones it is left out.
    - ``resume``: continue a stopped export.
    - ``stock_configs``: JSON that diffusers would find for a component, for ``"scheduler"`` and for
      ``"model_index"``, where the checkpoint has it.
    """

    checkpoint: Path
    source: str = ""
    revision: str | None = None
    family: str
    config: Mapping[str, Any]
    tasks: tuple[Task, ...]
    target: str
    scheme: Scheme
    height: int
    width: int
    factor: int
    batch: int
    seed: int
    out: Path
    options: Any
    floor_db: float | None = None
    memory: float | None = None
    force: bool = False
    components: tuple[str, ...] = ("unet",)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    scheduler: str | None = None
    steps: tuple[int, ...] = ()
    steps_named: bool = False
    loras: tuple[LoraSource, ...] = ()
    resume: bool = False
    is_sdxl: bool = False
    stock_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def part(self, component: str) -> Plan:
        """This plan with the scheme of one component."""
        return replace(self, scheme=self.schemes.get(component, self.scheme))

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.height // self.factor, self.width // self.factor


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A loaded checkpoint: its config, and its live modules by component.

    The classes of the modules are known to their family alone.
    """

    config: Mapping[str, Any]
    components: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Specialised:
    """The module of one task without a router, and how exact it is.

    ``errors`` maps a block to its largest relative error against the live router in float64;
    ``deviations`` has one line for each difference from a stock diffusers UNet.
    """

    module: nn.Module
    errors: Mapping[str, float]
    deviations: tuple[str, ...] = ()


Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One captured component: all that a target sees of a model.

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
      and scales.
    - ``notes``: for the part's record in the manifest.
    """

    path: str
    entries: Mapping[str, str]
    activations: str
    io_names: Mapping[str, str] = field(default_factory=dict)
    kept_float: tuple[tuple[str, str], ...] = ()
    weight_dtype: str = "float32"
    vector_dtype: str = "float32"
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
    """One result of the proof: how close a component is to PyTorch at one stage.

    ``runner`` and ``psnr_db`` are None where nothing could run, ``passed`` also for a figure
    without a floor; ``reason`` says why.
    """

    component: str
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
            "part": self.component,
            "task": self.task,
            "stage": self.stage,
            "PSNR": "not run" if self.psnr_db is None else f"{self.psnr_db:.1f} dB",
            "floor": f"{self.floor_db:g} dB" if self.floor_db else "",
            "verdict": {True: "passed", False: "FAILED", None: unjudged}[self.passed],
            "runner": self.runner or self.reason or "",
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Verdict:
        """Read an entry of a manifest's ``proof``; keys of a newer minor schema are left out."""
        names = [key.name for key in fields(cls) if key.name != "stage"]
        return cls(stage=record["rung"], **{name: record[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """The entry of a manifest's ``proof``; inverse of :meth:`from_json`."""
        return {"rung" if name == "stage" else name: v for name, v in asdict(self).items()}
