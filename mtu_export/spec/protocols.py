"""What a target and a model family are: each a module, found by its file name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mtu_export.spec.plan import Arrays, Lowered, Pipeline, Plan, Program, Specialised, Structure
from mtu_export.spec.task import Task

if TYPE_CHECKING:
    import numpy as np

Session = Callable[[Arrays], dict[str, "np.ndarray"]]
Witness = Callable[[Path, str, Arrays], tuple[float, ...]]


class Runtime(Protocol):
    """What runs artefacts of a target on this machine.

    ``slow`` is a line of warning for who waits for a picture. ``witness`` makes numbers of an
    artefact, an entry and inputs that are the same on every machine and change with its weights;
    null where the arithmetic depends on the machine.
    """

    @property
    def slow(self) -> str | None: ...  # noqa: D102 (of the class)

    @property
    def witness(self) -> Witness | None: ...  # noqa: D102

    def runner(self) -> tuple[str | None, str | None]:
        """Name and version, or null and the reason why it does not run here."""
        ...

    def open(self, path: Path, entry: str) -> Session:
        """Load an artefact; the session maps inputs to outputs by name."""
        ...


class Target(Runtime, Protocol):
    """One toolchain: a module or package of ``mtu_export.targets``, found by its file name.

    As a :class:`Runtime` it is its own default one on this machine.
    """

    suffix: str
    packages: tuple[str, ...]
    """Distributions that the toolchain needs; ``doctor`` compares them with what was tried."""
    rewrites: tuple[str, ...]
    """Names from ``rewrite.py`` that make its graphs run well."""
    gates: tuple[str, ...]
    """More of them where tasks share float weights: where their gates go."""
    default_scheme: str
    memory: Mapping[str, float]
    """Peak memory of an export by scheme, in multiples of the float32 weights."""
    staging: int
    """Copies of a part of several tasks that are on disk beside it while it is written."""
    Options: type
    runtimes: Mapping[str, Runtime]
    """Where an artefact has several runtimes: each by name, the preferred first; else empty."""

    def check(self, plan: Plan) -> None:
        """Refuse what cannot work, in under a second: reason and nearest legal choice."""
        ...

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Write the artefact under ``folder``."""
        ...

    def structure(self, path: Path, entry: str) -> Structure:
        """Read the artefact without running it; raise ``BundleError`` if it is malformed."""
        ...


@dataclass(frozen=True)
class Place:
    """Tensors of a family alone: their part of the method, and where a stock UNet has them.

    ``pattern`` is a regular expression of the whole name, ``stock`` the name that it stands for
    in a stock UNet (null where there is none). With an ``axis`` the tensors of one stock name
    follow one another along it, in the order of their numbers, in each of ``halves`` equal parts.
    """

    pattern: str
    kind: str
    stock: str | None = None
    axis: int | None = None
    halves: int = 1


class Family(Protocol):
    """One checkpoint family: a module of ``mtu_export.models``, found by its file name."""

    LAYOUT: Sequence[Place]
    """Tensors that a stock UNet has not; the first pattern that fits a name holds."""

    def load(self, folder: Path) -> Pipeline:
        """The checkpoint in memory, checked; raises ``CheckpointError``."""
        ...

    def graph(self, unet: Any, plan: Plan, task: Task) -> Any:
        """One task of a live or specialised UNet as a ``models.blocks.Graph``."""
        ...

    def specialise(self, pipeline: Pipeline, tasks: Sequence[Task]) -> dict[str, Specialised]:
        """The model of each task as it exists on a phone, on the same tensors where they are equal.

        May consume the pipeline's memory.
        """
        ...

    def expert_weights(self, config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """Expert weights [T, N] in float64 by block, from tensor headers; no model is loaded.

        ``found`` is of ``checkpoint.headers``. Raises ``MissingWeights`` where it does not fit.
        """
        ...

    def outline(self, config: Mapping[str, Any], found: Mapping[str, Any], channels: int) -> Any:
        """What :meth:`specialise` makes of a task with ``channels`` inputs, without memory."""
        ...
