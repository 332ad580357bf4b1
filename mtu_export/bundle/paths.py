"""Paths that a manifest names: inside the bundle, through no link."""

from __future__ import annotations

from pathlib import Path

from mtu_export.bundle.hashes import is_finder_file
from mtu_export.spec import BundleError

MANIFEST, GOLDENS = "manifest.json", "goldens.safetensors"


def names_of(relative: str) -> list[str]:
    """The names of a path: joined by ``/``, none of them empty, ``.``, ``..`` or the Finder's."""
    names = relative.split("/")
    if set(relative) & set("\\:\0") or {"", ".", ".."} & set(names):
        raise BundleError(f"{MANIFEST}: path {relative[:80]!r} leaves the bundle or is not plain")
    if any(map(is_finder_file, names)):
        raise BundleError(f"{MANIFEST}: path {relative[:80]!r} is a file of the macOS Finder")
    return names


def inside(folder: Path, relative: str) -> Path:
    """A path of the manifest below the bundle's folder.

    Raises ``BundleError`` where it leaves the bundle, crosses a link or is missing.
    """
    path = folder
    try:
        for name in names_of(relative):
            path = path / name
            if path.is_symlink():
                raise BundleError(f"{MANIFEST}: path {relative!r} goes through a link")
        if not path.exists():
            raise BundleError(f"{MANIFEST}: {relative!r} is missing from the bundle")
    except OSError as error:
        raise BundleError(f"{MANIFEST}: path {relative!r}: {error.strerror}") from None
    return path
