"""What a target is: a module, found by its file name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mtu_export.spec.model import BaselineKind
from mtu_export.spec.plan import Arrays, Lowered, Plan, Program, Structure

if TYPE_CHECKING:
    import numpy as np

Session = Callable[[Arrays], dict[str, "np.ndarray"]]
Witness = Callable[[Path, str, Arrays], tuple[float, ...]]


class Runtime(Protocol):
    """What runs artefacts of a target on this machine."""

    @property
    def slow(self) -> str | None:
        """A warning, in one line, that pictures take long here; None where they do not."""
        ...

    @property
    def witness(self) -> Witness | None:
        """Computes numbers from an artefact, an entry and inputs that are equal on every machine
        and change with the weights. None where the arithmetic depends on the machine.
        """
        ...

    def runner(self) -> tuple[str | None, str | None]:
        """Name and version, or None and the reason why it does not run here."""
        ...

    def open(self, path: Path, entry: str) -> Session:
        """Load an artefact; the session maps inputs to outputs by name.

        Raises ``RuntimeUnavailable`` where nothing on this machine can run this very artefact:
        that is not a failure of the artefact.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Support:
    """What a scheme costs on a target.

    ``memory`` is the peak of an export, in multiples of the float32 weights; ``plain`` that of the
    toolchain's own export.
    """

    memory: float
    plain: float = 4.0


@dataclass(frozen=True, kw_only=True)
class TargetInfo:
    """The facts of a target.

    ``packages`` are the distributions of its toolchain; ``doctor`` compares them with the versions
    that were tried. ``supports`` lists the schemes that it can export. ``rewrites`` are
    names from ``graph.rewrite`` that make its graphs run well, ``multitask_rewrites`` more of them
    for several tasks on shared float weights. ``temporary_copies`` is how many copies of a part
    are on disk beside it while several tasks are written. ``float16_gains``: whether
    float16 saves bytes or time in parts that integer schemes leave alone, such as a VAE.
    ``unused`` are packages that its toolchain imports where they are installed, and that no export
    needs. Integer weights show in one of ``integer_operators``, where its structure can tell;
    ``int8_activations``: whether it quantises activations too, always or, where the structure can
    tell, by one of ``activation_operators``. ``session_options`` are what the contract asks of a
    runtime: name to value. ``baselines`` are those that it exports when a flag asks for them.
    """

    suffix: str
    packages: tuple[str, ...]
    default_scheme: str
    supports: Mapping[str, Support]
    rewrites: tuple[str, ...] = ()
    multitask_rewrites: tuple[str, ...] = ()
    temporary_copies: int = 0
    float16_gains: bool = False
    unused: tuple[str, ...] = ()
    integer_operators: tuple[str, ...] = ()
    int8_activations: bool = False
    activation_operators: tuple[str, ...] = ()
    session_options: Mapping[str, str] = field(default_factory=dict)
    baselines: tuple[BaselineKind, ...] = ()


class Target(Protocol):
    """One toolchain: a module or package of ``mtu_export.targets``, found by its file name.

    The module's ``TARGET`` is an instance, and its docstring begins with the name to show, a colon
    and a sentence. ``targets/reference.py`` is the shortest whole example.
    """

    @property
    def info(self) -> TargetInfo: ...  # noqa: D102 (of the class)

    @property
    def options(self) -> type:
        """A frozen dataclass of the target's own options; flags are generated from its fields.

        A field's metadata may have ``help``, ``choices``, ``flag`` and ``several``, its default
        for several tasks. ``targets.options`` makes an instance and checks its choices.
        """
        ...

    @property
    def runtimes(self) -> Mapping[str, Runtime]:
        """What runs its artefacts, by the name that ``--runner`` takes; the preferred first."""
        ...

    def validate_plan(self, plan: Plan) -> None:
        """Refuse what cannot work, in under a second: reason and nearest legal choice.

        Imports no toolchain. Raises ``Unsupported`` or ``ToolchainMissing``.
        """
        ...

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Write the artefact of one component under ``folder``, with ``identity`` in it.

        ``plan`` has the component's scheme. The same program gives the same bytes. Raises
        ``ToolchainError``.
        """
        ...

    def structure(self, path: Path, entry: str) -> Structure:
        """Read an artefact that may be hostile, without running it; raises ``BundleError``."""
        ...
