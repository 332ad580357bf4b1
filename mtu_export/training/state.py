"""The state of a run on disk: safetensors and JSON, whole or not there at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, PlanError, ResourceError, shown
from mtu_export.storage import locks
from mtu_export.storage.files import sync, sync_tree, system_error

FORMAT = 1
_STEP = re.compile(r"step-(\d{8})")
_TENSORS, _JSON = "state.safetensors", "state.json"


@dataclass(kw_only=True)
class Progress:
    """What a run has done: steps, seconds, and the losses summed since the last row of the log.

    ``mark`` is what ``seconds`` was at that row.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    mark: float = 0.0

    def check(self, path: Path) -> None:
        """Raise ``ValueError`` where this is not what a run writes to the folder ``path``."""
        numbers = {"seconds": self.seconds, "mark": self.mark}
        if not isinstance(self.sums, dict):
            raise ValueError(f"sums must be an object, got {shown(self.sums)}")
        for name, value in {**numbers, **{f"sums.{k}": v for k, v in self.sums.items()}}.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a number, got {shown(value)}")
        for name, value in {"step": self.step, "count": self.count}.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an integer from 0, got {shown(value)}")
        if path.name != f"step-{self.step:08d}":
            raise ValueError(f"step is {self.step}")


def newest(folder: Path) -> Path | None:
    """The newest whole state in a folder."""
    states = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)]
    return max(states, key=lambda path: path.name, default=None)


def save(
    folder: Path, progress: Progress, identity: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write a state to a new folder, rename it into place, remove the older ones.

    Raises ``ResourceError``, before anything is written where the disk will not hold it; the older
    state stays then.
    """
    from safetensors.torch import save_file

    need = sum(value.numel() * value.element_size() for value in tensors.values())
    check_disk(folder, need, "the state")
    out = folder / f"step-{progress.step:08d}"
    private = folder / f".{out.name}.partial"
    with as_resource_error(f"the state {out}"):
        for leftover in folder.glob(".step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        private.mkdir(parents=True)
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, private / _TENSORS, metadata={"format": "pt"})
        document = {"format": FORMAT, "progress": asdict(progress), "recipe": dict(identity)}
        (private / _JSON).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        sync_tree(private)
        shutil.rmtree(out, ignore_errors=True)
        private.rename(out)
        sync(folder)
    for path in folder.glob("step-*"):
        if path != out and _STEP.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    return out


@contextmanager
def as_resource_error(what: str) -> Iterator[None]:
    """Turn the system's errors, and safetensors' class of them, into one ``ResourceError``."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else system_error(error)
        reason = os.strerror(cause.errno) if cause and cause.errno else str(error)
        raise ResourceError(f"cannot write {what}: {reason}") from None


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Refuse a second process in the same state folder; raises ``PlanError``.

    Raises ``ResourceError`` where the folder cannot be written.
    """
    with as_resource_error(f"in {folder}"):
        lock = locks.acquire(folder / "lock")
    if lock is None:
        raise PlanError(f"another run is using {folder}")
    with lock:
        yield


def check_disk(folder: Path, need: float, what: str) -> None:
    """Raise ``ResourceError`` where ``need`` bytes are more than what is free."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise ResourceError(
            f"{what} needs {need / 1e9:.2f} GB in {folder}, {free / 1e9:.2f} GB are free"
        )


def read(path: Path, identity: Mapping[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
    """Progress and tensors of a state; refuses one of another recipe with the key that differs.

    Raises ``PlanError`` and ``CheckpointError``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    document = checkpoint.read_json(path / _JSON)
    if document.get("format") != FORMAT or not isinstance(document.get("recipe"), dict):
        raise CheckpointError(f"{path / _JSON} is not a state of format {FORMAT}")
    refuse_other(document["recipe"], identity, path.parent)
    try:
        progress = Progress(**document["progress"])
        progress.check(path)
        tensors = load_file(path / _TENSORS)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return progress, tensors


def refuse_other(recorded: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Raise ``PlanError`` for the first key in which two identities differ."""
    for key in sorted({*recorded, *identity}):
        if recorded.get(key) != identity.get(key):
            raise PlanError(
                f"{folder} is of another run: {key} is {shown(recorded.get(key))} there and "
                f"{shown(identity.get(key))} here; name another folder or remove it"
            )
