"""What a training set is: samples of tasks; a local folder as an example; how one is named."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mtu_export.bundle import images
from mtu_export.spec import MtuExportError, PlanError, shown

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "metadata.jsonl"
_KEYS = ("file_name", "task", "text", "condition", "mask")
_NEEDED = ("file_name", "task")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of one task.

    ``image`` [3, H, W] in −1..1 is to be made; ``condition`` [3, h, w] in −1..1 is the input image
    (of another size: brought to that of ``image``, bicubic); ``mask`` [1, H, W] of 0 and 1,
    1 = repaint.
    """

    task: str
    prompt: str
    image: Tensor
    condition: Tensor | None = None
    mask: Tensor | None = None


@runtime_checkable
class Samples(Protocol):
    """A training set; the same index gives the same sample at any time.

    A set that also has ``batch(indices) -> list[Sample]`` is asked for whole batches. One that has
    ``fingerprint``, a string that changes with its content, is told from another of its name.
    """

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def task(self, index: int) -> str:
        """The task of a sample, without its picture."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One sample."""
        ...


def fetch(samples: Samples, indices: Sequence[int]) -> list[Sample]:
    """The samples of these indices, in one call where the set has ``batch``.

    Raises ``PlanError`` for whatever the set raises.
    """
    batch, at = getattr(samples, "batch", None), indices
    fetched = []
    try:
        if batch is not None:
            return list(batch(indices))
        for index in indices:
            at = [index]
            fetched.append(samples[index])
    except (MtuExportError, MemoryError):
        raise
    except Exception as error:  # whatever the user's set sets off
        numbers = ", ".join(map(str, at[:8])) + (", ..." if len(at) > 8 else "")
        raise PlanError(f"data: sample {numbers}: {first_line(error)}") from error
    return fetched


def first_line(error: Exception) -> str:
    """Kind and first line of somebody else's error."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:300]}"


def load(reference: str) -> Samples:
    """The training set named ``package.module:name``: an object, or what a callable returns.

    The working directory is importable. Raises ``PlanError``.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise PlanError(f"data must be package.module:name, got {shown(reference)}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        samples: Any = importlib.import_module(module)
        for part in name.split("."):
            samples = getattr(samples, part)
        if isinstance(samples, type) or not isinstance(samples, Samples):
            samples = samples()
    except PlanError:
        raise
    except Exception as error:  # whatever the user's module sets off
        raise PlanError(f"data {reference!r}: {first_line(error)}") from error
    if not isinstance(samples, Samples):
        raise PlanError(
            f"data {reference!r} gives {type(samples).__name__}; samples need __len__, task, "
            "__getitem__"
        )
    return samples


class Folder:
    """A local folder of pictures with ``metadata.jsonl``, as Hugging Face's imagefolder has it.

    A line is ``{"file_name": ..., "task": ..., "text": ..., "condition": ..., "mask": ...}``, of
    which the last three may be left out. Pictures are cut to ``height`` x ``width`` as ``run``
    cuts a user's; input images and masks must have the shape of theirs. ``fingerprint`` changes
    with the metadata and with sizes and times of the pictures. Raises ``PlanError``.
    """

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder, self.height, self.width = folder, height, width
        self.lines, self.fingerprint = _metadata(folder)

    def __len__(self) -> int:
        """How many lines the metadata has."""
        return len(self.lines)

    def task(self, index: int) -> str:
        """The task of a line."""
        return self.lines[index]["task"]

    def __getitem__(self, index: int) -> Sample:
        """The pictures of a line."""
        import torch

        line = self.lines[index]
        image = images.read(self.folder / line["file_name"])
        size = images.upright_size(image)
        others: dict[str, Tensor] = {}
        for key in ("condition", "mask"):
            if key not in line:
                continue
            other = images.read(self.folder / line[key])
            if not images.same_shape(size, images.upright_size(other)):
                raise PlanError(
                    f"{self.folder / METADATA}: line {index + 1}: {key} {line[key]!r} has another "
                    f"shape than {line['file_name']!r}"
                )
            cut = images.fit if key == "condition" else images.fit_mask
            others[key] = torch.from_numpy(cut(other, self.width, self.height)[0])
        pixels = images.fit(image, self.width, self.height)[0]
        return Sample(
            task=line["task"], prompt=line.get("text", ""), image=torch.from_numpy(pixels), **others
        )


def _metadata(folder: Path) -> tuple[list[Mapping[str, str]], str]:
    """The lines of the metadata, and a digest of them and their files."""
    path = folder / METADATA
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from None
    parsed, content = [], hashlib.sha256(text.encode())
    lines = text.removesuffix("\n").split("\n") if text else []  # a caption may hold U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise PlanError(f"{path}: line {number} is empty")
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: line {number} is not valid JSON: {error}") from None
        content.update(_check_fields(fields, f"{path}: line {number}", folder))
        parsed.append({key: value for key, value in fields.items() if value is not None})
    return parsed, content.hexdigest()


def _check_fields(fields: Any, where: str, folder: Path) -> bytes:
    """Sizes and times of the pictures of a line."""
    if not isinstance(fields, dict):
        raise PlanError(f"{where} is not an object")
    for key, value in fields.items():
        if key not in _KEYS:
            raise PlanError(f"{where}: unknown key {shown(key)}; legal: {', '.join(_KEYS)}")
        if not isinstance(value, str) and (value is not None or key in _NEEDED):
            raise PlanError(f"{where}: {key} must be a string, got {shown(value)}")
    for key in _NEEDED:
        if key not in fields:
            raise PlanError(f"{where}: key {key!r} is missing")
    for key in (*_NEEDED[1:], "text"):
        if not _is_utf8(fields.get(key) or ""):
            raise PlanError(f"{where}: {key} {shown(fields[key])} has a lone surrogate")
    keys = ("file_name", "condition", "mask")
    paths = {key: fields[key] for key in keys if fields.get(key) is not None}
    for key, name in paths.items():
        try:
            inside = folder.resolve() in (folder / name).resolve().parents
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, null characters
            raise PlanError(f"{where}: {key} {shown(name)} is not a path: {error}") from None
        if not inside:
            raise PlanError(f"{where}: {key} {shown(name)} lies outside the folder")
    stamps = []
    for key, name in paths.items():
        try:
            status = (folder / name).stat()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise PlanError(f"{where}: {key} {shown(name)} cannot be read: {reason}") from None
        stamps.append((status.st_size, status.st_mtime_ns))
    return repr(stamps).encode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
