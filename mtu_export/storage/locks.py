"""Locks between processes, which end with the process that holds them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def acquire(path: Path) -> BaseFileLock | None:
    """Hold the lock file ``path``; ``None`` while another holds it.

    Raises ``OSError`` where the file cannot be written or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def remove(lock: BaseFileLock) -> None:
    """Release a lock and delete its file, which nobody else can hold meanwhile."""
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
