"""Paths that a manifest names: inside the bundle, through no link."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mtu_export.spec import BundleError

MANIFEST = "manifest.json"


def inside(folder: Path, relative: str) -> Path:
    """A path of the manifest, refused where it leaves the bundle or crosses a link."""
    pure = PurePosixPath(relative)
    odd = "\\" in relative or ":" in relative or "\0" in relative or pure.is_absolute()
    if odd or not pure.parts or ".." in pure.parts:
        raise BundleError(f"{MANIFEST}: path {relative!r} leaves the bundle")
    path = folder
    if len(relative) > 255:
        raise BundleError(f"{MANIFEST}: a path has {len(relative)} characters")
    try:
        for name in pure.parts:
            path = path / name
            if path.is_symlink():
                raise BundleError(f"{MANIFEST}: path {relative!r} goes through a link")
        if not path.exists():
            raise BundleError(f"{MANIFEST}: {relative!r} is missing from the bundle")
    except OSError as error:
        raise BundleError(f"{MANIFEST}: path {relative!r}: {error.strerror}") from None
    return path
