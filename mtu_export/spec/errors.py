"""The error tree, and the exit code of each kind.

MtuExportError
├── PlanError                 exit 2   options are invalid or contradict each other
│   ├── UnknownName                    no task, target, scheme ... has this name
│   ├── Unsupported                    the names exist, the combination is not supported
│   └── OutputExists                   the output exists already
├── CheckpointError           exit 3   the checkpoint is incomplete, damaged or not of format 1
│   ├── MissingWeights                 tensors missing, extra, of a wrong shape or dtype
│   └── NotFoldable                    a block has no exact static equivalent
├── BundleError               exit 3   a bundle is damaged or inconsistent
├── ToolchainError            exit 4   a toolchain failed
│   ├── ToolchainMissing               a package is not installed; names the extra
│   └── RuntimeUnavailable             an artefact cannot run on this machine
├── ParityError               exit 1   an artefact is further from PyTorch than its floor
├── DeviceError               exit 5   a connected phone
├── ResourceError             exit 6   disk, memory or permission
└── Interrupted               exit 130 by Ctrl-C; the message says what stays on disk

Any other exception is a bug of mtu-export: exit 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class MtuExportError(Exception):
    """Base of all errors: one line for the user, and the exit code of its kind."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """The line; what does not print, as names from somebody else's file may hold, is ``?``."""
        return _printable(super().__str__())


class MtuExportWarning(UserWarning):
    """One clear line for the user about work that goes on."""


class PlanError(MtuExportError):
    """The requested options are invalid or contradict each other."""

    exit_code = 2


class UnknownName(PlanError):
    """No ``kind`` has this name; the message lists the legal names."""

    def __init__(self, kind: str, name: str, legal: Sequence[str]) -> None:
        choices = ", ".join(legal) or "none"
        super().__init__(f"unknown {kind} {name!r}; choose from: {choices}")


class Unsupported(PlanError):
    """A combination of options that is not supported; names the nearest supported choice."""


class OutputExists(PlanError):
    """The output exists already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"output {str(path)!r} exists; choose another -o or pass --force")


class CheckpointError(MtuExportError):
    """The checkpoint is incomplete, damaged or not of format 1."""

    exit_code = 3


class MissingWeights(CheckpointError):
    """The tensors on disk do not match the config."""


class NotFoldable(CheckpointError):
    """A block has no exact static equivalent; the message begins with its name."""


class BundleError(MtuExportError):
    """A bundle is damaged, or its files contradict its manifest."""

    exit_code = 3


class ToolchainError(MtuExportError):
    """A toolchain (coremltools, onnx, executorch ...) failed."""

    exit_code = 4


class ToolchainMissing(ToolchainError):
    """A package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; get it with: pip install 'mtu-export[{extra}]'"
        )


class RuntimeUnavailable(ToolchainError):
    """An artefact cannot run on this machine, through no fault of its own."""


class ParityError(MtuExportError):
    """An artefact is further from PyTorch than its floor."""

    exit_code = 1


class DeviceError(MtuExportError):
    """A connected phone does not answer or refuses."""

    exit_code = 5


class ResourceError(MtuExportError):
    """Not enough disk space or memory, or no permission."""

    exit_code = 6


class Interrupted(MtuExportError):
    """Stopped by Ctrl-C; the message says what stays on disk."""

    exit_code = 130


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of an error's message, printable; the name of its class where it has none."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip() if lines else type(error).__name__
    return _printable(text[:longest])


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
