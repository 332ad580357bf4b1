"""The structure of an artefact, read once and compared with the manifest."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mtu_export import targets
from mtu_export.bundle import Part, files_of
from mtu_export.spec import BundleError, Structure

_Stamp = tuple[tuple[int, int, int], ...]


def structure_of(target: str, part: Part, task: str) -> Structure:
    """The structure of a task's entry, cached while its files do not change.

    Raises ``BundleError`` where its inputs and outputs are not those of the manifest.
    """
    files = [path.stat() for path in files_of(part.path)]
    stamp = tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in files)
    structure = _read(target, part.path, part.entry_of(task), stamp)
    for name, expected, actual in (
        ("inputs", part.inputs_of(task), structure.inputs),
        ("outputs", part.outputs, structure.outputs),
    ):
        if expected != actual:
            raise BundleError(f"{part.path.name}: its {name} are not those of the manifest")
    return structure


@lru_cache(maxsize=64)
def _read(target: str, path: Path, entry: str, stamp: _Stamp) -> Structure:
    return targets.load(target).structure(path, entry)
