"""Checkpoints and bundles that a run of the tests makes once, for all its workers."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

Listing = dict[str, tuple[int, int]]


class SharedFolders:
    """Folders below ``home``, each made under a lock by the first worker that asks for it.

    They are to be read alone: a test copies one before it changes it (a copy, as what is written
    into a hard link is written into the original too). :meth:`require_unchanged` tells.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, Listing] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, name: str, key: object, make: Callable[[Path], object]) -> Path:
        """The folder called ``name`` that ``make`` writes where it is told; one for each key."""
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        place = self.root / f"{re.sub('[^a-z0-9]+', '-', name)}-{digest}"
        with FileLock(f"{place}.lock"):
            if not place.is_dir():
                draft = place.with_suffix(".draft")
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir()
                make(draft / name)
                draft.rename(place)
        self._listings.setdefault(place / name, listing(place / name))
        return place / name

    def require_unchanged(self) -> None:
        """Fail where a test changed what the others share."""
        for folder, before in self._listings.items():
            assert listing(folder) == before, f"a test changed {folder}: copy it first"


def listing(folder: Path) -> Listing:
    """Size and time of the last change of every file."""
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (s.st_size, s.st_mtime_ns) for path, s in files}
