"""Single files that appear whole or not at all, and what a rename needs to survive power loss."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A private path beside ``path``; the file written there replaces ``path`` at the end.

    File and folder reach the disk before this returns. After an error or an interruption nothing
    is left and an older ``path`` is untouched. A killed process leaves ``.NAME.*.partial``.
    Raises ``OSError``.
    """
    stem = path.name.encode("utf-8", "surrogateescape")[:80].decode("utf-8", "ignore")
    private = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    try:
        yield private
        sync(private)
        private.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            private.unlink()


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk itself."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in _NO_FOLDER_SYNC:
            return  # a folder that may be written but not listed
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """:func:`sync` every file and folder below ``folder``, then ``folder`` itself."""
    for top, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (Path(top) / name).is_symlink():
                sync(Path(top) / name)
        sync(Path(top))


def umask(folder: Path) -> int:
    """The permission bits that new files in ``folder`` do not get.

    Read from a probe folder: ``os.umask`` would change the mask of every thread meanwhile.
    """
    probe = folder / f".{secrets.token_hex(4)}.probe"
    probe.mkdir()
    try:
        return 0o777 & ~probe.stat().st_mode
    finally:
        probe.rmdir()


def system_error(error: Exception) -> OSError | None:
    """The system's error inside one of a library in Rust (safetensors), which has its own class."""
    number = re.search(r"\(os error (\d{1,4})\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
