"""Sizes and hashes of a bundle's files and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mtu_export.spec import BundleError


def is_finder_file(name: str) -> bool:
    """Whether macOS writes files of this name into folders that are only looked at."""
    return name == ".DS_Store" or name.startswith("._")


def files_of(path: Path) -> list[Path]:
    """The files of a folder, sorted by relative POSIX path, or the file itself.

    Files of the Finder are left out. Raises ``BundleError`` for a link or a special file.
    """
    if path.is_symlink():
        raise BundleError(f"{path} is a link: refused")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BundleError(f"{path} is a special file: refused")
    files = []
    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BundleError(f"{entry} is a link or a special file: refused")
        if entry.is_file() and not is_finder_file(entry.name):
            files.append(entry)
    return sorted(files, key=lambda entry: entry.relative_to(path).as_posix())


def sha256(path: Path) -> str:
    """Hash of a file; of a folder, that of its files by relative path (:func:`sha256_of`)."""
    if path.is_dir():
        return sha256_of({f.relative_to(path).as_posix(): f for f in files_of(path)})
    (file,) = files_of(path)  # opening a pipe would wait for a writer
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(files: Mapping[str, Path]) -> str:
    """Hash of the lines ``<sha256 of the file>  <relative path>\\n``, sorted by path."""
    text = "".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))
