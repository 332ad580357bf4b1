"""A checkpoint that is not one folder, used as if it were: parts from elsewhere, derived files.

An ``Entry`` answers what code asks of a checkpoint's ``Path``: ``/``, ``is_dir``, ``is_file``,
``name``. Nothing of it is on disk but what it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from mtu_export.spec import CheckpointError

if TYPE_CHECKING:
    from mtu_export.checkpoint.weights import Header


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A place in a view where nothing is; ``where`` is how messages call it."""

    where: str

    def __str__(self) -> str:
        return self.where

    def __truediv__(self, name: str | PurePath) -> Folder:
        """What is below: of a place where nothing is, nothing."""
        return Entry(where=f"{self.where}/{name}")

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self.where.rpartition("/")[2]

    def is_dir(self) -> bool:
        """Whether it stands for a folder."""
        return False

    def is_file(self) -> bool:
        """Whether it stands for a file."""
        return False

    def exists(self) -> bool:
        """Whether there is anything."""
        return self.is_dir() or self.is_file()

    def sources(self) -> Iterator[Path]:
        """Files and folders on disk that it is made of."""
        yield from ()


Folder: TypeAlias = Path | Entry
"""A checkpoint, or a place in one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Document(Entry):
    """A JSON file that is derived and not on disk."""

    value: Mapping[str, Any]

    def is_file(self) -> bool:
        """True."""
        return True

    def sha256(self) -> str:
        """Hash of its canonical text."""
        text = json.dumps(self.value, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensors(Entry):
    """A file of weights whose tensors are those of ``file`` under other names and shapes."""

    file: Path
    headers: Mapping[str, Header]

    def is_file(self) -> bool:
        """True."""
        return True

    def sources(self) -> Iterator[Path]:
        """The file of the tensors."""
        yield self.file


@dataclass(frozen=True, kw_only=True, eq=False)
class View(Entry):
    """A folder: ``entries`` by name, everything else from the folder ``base``.

    An entry of None hides what ``base`` has. ``files`` are the first that it is made of. ``absent``
    says of parts that are not there why, and how the user gives them; ``notes`` are lines for the
    model card.
    """

    entries: Mapping[str, Folder | None]
    base: Folder | None = None
    files: Sequence[Path] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __truediv__(self, name: str | PurePath) -> Folder:
        """What is below, whether it is there or not."""
        first, _, rest = str(name).partition("/")
        entry = self.entries.get(first)
        if entry is None:
            hidden = first in self.entries or self.base is None
            entry = None if hidden or self.base is None else self.base / first
        if first == ".":
            return self
        if entry is None:
            entry = Entry(where=f"{self.where}/{first}")
        return entry / rest if rest else entry

    def is_dir(self) -> bool:
        """True."""
        return True

    def sources(self) -> Iterator[Path]:
        """The base, and what entries from elsewhere are made of."""
        places = (*self.files, self.base, *self.entries.values())
        paths = [path for place in places if place is not None for path in sources(place)]
        yield from dict.fromkeys(paths)


def children(folder: Folder) -> dict[str, Folder]:
    """What is directly in a folder, by the name that it has there."""
    if isinstance(folder, Path):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        return {path.name: path for path in paths}
    if not isinstance(folder, View):
        return {}
    base = {} if folder.base is None else children(folder.base)
    names = sorted({*base, *folder.entries})
    return {name: folder / name for name in names if folder.entries.get(name, folder) is not None}


def sources(place: Folder) -> Iterator[Path]:
    """Files and folders on disk that a checkpoint, or a place in one, is made of."""
    if isinstance(place, Entry):
        yield from place.sources()
    else:
        yield place


def on_disk(place: Folder) -> Path:
    """The folder or file itself. Raises ``CheckpointError`` for what is not on disk."""
    if isinstance(place, Path):
        return place
    raise CheckpointError(f"{place} is {'not on disk' if place.exists() else 'missing'}")


def refusals(folder: Folder) -> dict[str, str]:
    """Why a checkpoint lacks parts and how the user gives them, where its kind says so."""
    return dict(folder.absent) if isinstance(folder, View) else {}


def refusal(folder: Folder, part: str) -> str | None:
    """Why a checkpoint lacks a part and how the user gives it, where its kind says so."""
    return folder.absent.get(part) if isinstance(folder, View) else None


def notes(folder: Folder) -> tuple[str, ...]:
    """What the model card says of where a checkpoint's parts are from."""
    return tuple(folder.notes) if isinstance(folder, View) else ()
