"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtu_export.spec import OutputExists, PlanError, ResourceError

_RESOURCE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)


def refuse_existing(out: Path, force: bool, marker: str) -> None:
    """Refuse an output that is there, or that ``force`` would not replace by its like.

    ``marker`` is the file by which a folder of our making is known: nothing else is deleted.
    """
    if not out.is_symlink() and not out.exists():
        return
    if not force:
        raise OutputExists(out)
    replaceable = out.is_dir() and not out.is_symlink()
    if not replaceable or not ((out / marker).is_file() or not any(out.iterdir())):
        raise PlanError(f"--force replaces only a folder with {marker}; {str(out)!r} has none")


@contextmanager
def draft(out: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """A private folder beside ``out`` that takes its place at the end.

    After an error or an interruption nothing of it is left and an older ``out`` is untouched.
    Leftovers of a killed process are removed. Raises ``OutputExists``, ``PlanError`` and
    ``ResourceError`` (no space, no permission).
    """
    out = out.absolute()
    refuse_existing(out, force, marker)
    private = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        private.mkdir()
        yield private
        refuse_existing(out, force, marker)
        _replace(private, out)
    except OSError as error:
        if error.errno in _RESOURCE:
            where = error.filename or out
            raise ResourceError(f"cannot write {where}: {os.strerror(error.errno)}") from None
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _replace(private: Path, out: Path) -> None:
    """Rename ``private`` to ``out``; an older ``out`` goes only after the new one is there."""
    if not out.exists():
        private.rename(out)
        return
    old = private.with_suffix(".old")
    out.rename(old)
    try:
        private.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    for path in out.parent.glob(f".{out.name}.*"):
        pid = path.name.removesuffix(".partial").rpartition(".")[2]
        if path.name.endswith(".partial") and pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
