"""Paths that a manifest names: inside the bundle, through no link."""

from __future__ import annotations

from pathlib import Path

from mtu_export.spec import BundleError

MANIFEST = "manifest.json"


def inside(folder: Path, relative: str) -> Path:
    """A path of the manifest: names joined by ``/``, none of them empty, ``.`` or ``..``.

    Refused where it leaves the bundle, crosses a link or is missing.
    """
    if len(relative) > 255:
        raise BundleError(f"{MANIFEST}: a path has {len(relative)} characters")
    names = relative.split("/")
    if set(relative) & set("\\:\0") or {"", ".", ".."} & set(names):
        raise BundleError(f"{MANIFEST}: path {relative!r} leaves the bundle or is not plain")
    path = folder
    try:
        for name in names:
            path = path / name
            if path.is_symlink():
                raise BundleError(f"{MANIFEST}: path {relative!r} goes through a link")
        if not path.exists():
            raise BundleError(f"{MANIFEST}: {relative!r} is missing from the bundle")
    except OSError as error:
        raise BundleError(f"{MANIFEST}: path {relative!r}: {error.strerror}") from None
    return path
