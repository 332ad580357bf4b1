"""An output folder that appears whole or not at all.

While it is written it is ``.NAME.KEY.RANDOM.partial`` beside its final place, with a ``.lock`` of
the same stem that the writing process holds. An older output is called ``.old`` between the two
renames, and ``.dead`` while it is deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import MtuExportError, OutputExists, PlanError, ResourceError
from mtu_export.storage import locks
from mtu_export.storage.files import sync, sync_tree, system_error, umask

if TYPE_CHECKING:
    from filelock import BaseFileLock

SCRATCH = ".state"
"""Scratch subfolder of a draft, deleted before the draft is published."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ELOOP)
_NO_KEY = "none"


@dataclass(frozen=True, kw_only=True)
class OutputMarker:
    """Identifies a folder this tool wrote by the keys of one JSON file.

    ``key`` must be there, with ``value`` where one is set, and all of ``other_keys``.
    """

    file: str
    key: str
    value: str | None = None
    other_keys: tuple[str, ...] = ()

    def is_on(self, folder: Path) -> bool:
        """Whether ``folder`` carries the marker."""
        try:
            document = json.loads((folder / self.file).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        if not isinstance(document, dict) or not {self.key, *self.other_keys} <= document.keys():
            return False
        return self.value is None or document[self.key] == self.value


BUNDLE = OutputMarker(
    file="manifest.json", key="schema_version", other_keys=("source", "parts", "proof")
)
CHECKPOINT = OutputMarker(file="model_index.json", key="_class_name", value="MTUPipeline")
FOLDED = OutputMarker(file="config.json", key="_folded_by", value="mtu-export")


def refuse_existing(
    out: Path, force: bool, marker: OutputMarker, sources: Sequence[Path] = ()
) -> None:
    """Refuse an output that exists, or that ``force`` must not replace.

    Only an empty folder or one that carries ``marker`` is replaced, and never one that is or holds
    one of ``sources``. Raises ``OutputExists`` and ``PlanError``.
    """
    while True:
        before = _identity(out)
        try:
            _refuse(out, force, marker, sources)
        except (MtuExportError, OSError) as error:
            if _identity(out) != before:
                continue  # another process has replaced it meanwhile
            if isinstance(error, OSError):
                raise _refusal(error, out) from None
            raise
        return


def _identity(out: Path) -> tuple[int, int] | None:
    """(inode, modification time), which tell a concurrent replacement."""
    try:
        status = out.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _refuse(out: Path, force: bool, marker: OutputMarker, sources: Sequence[Path]) -> None:
    try:
        exists = bool(out.lstat())
    except FileNotFoundError:
        exists = False
    real = out.resolve()
    for source in sources:
        if real == source.resolve() or real in source.resolve().parents:
            raise PlanError(f"output {str(out)!r} is or holds the source {str(source)!r}")
    if not exists:
        return
    if not force:
        raise OutputExists(out)
    is_folder = out.is_dir() and not out.is_symlink()
    if not is_folder or not (marker.is_on(out) or not any(out.iterdir())):
        raise PlanError(
            f"--force replaces only what this command made; {str(out)!r} has no {marker.file} "
            "that mtu-export wrote"
        )


@contextmanager
def draft(
    out: Path,
    *,
    force: bool,
    marker: OutputMarker,
    sources: Sequence[Path] = (),
    keep: str | None = None,
) -> Iterator[Path]:
    """A private folder beside ``out`` that takes its place at the end, on the disk itself.

    After an error or an interruption nothing of it is left and an older ``out`` is untouched.
    Leftovers of a killed process are removed. With ``keep``, eight hexadecimal digits that
    identify the content, an unfinished draft stays, hidden beside ``out``: the next one with the
    same digits continues it, one with others leaves it alone until there is an ``out``. Raises
    ``OutputExists``, ``PlanError`` and ``ResourceError`` (no space, no permission).
    """
    out = out.absolute()
    new_parents: list[Path] = []
    private, lock = None, None
    try:
        _restore(out)
        refuse_existing(out, force, marker, sources)
        new_parents = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        private, lock = (_unfinished(out, keep) if keep else None) or _new(out, keep or _NO_KEY)
        _remove_leftovers(out, every=not keep)
        try:
            yield private
            _apply_umask(private)
            refuse_existing(out, force, marker, sources)
            shutil.rmtree(private / SCRATCH, ignore_errors=True)
            sync_tree(private)
            _replace(private, out, force, marker)
        except BaseException:
            if keep and private.is_dir() and any(private.iterdir()):
                private, new_parents = None, []
            raise
        new_parents = []
        tidy(out)
    except OSError as error:
        raise _refusal(error, out) from error
    except Exception as error:
        cause = None if isinstance(error, MtuExportError) else system_error(error)
        if cause is None:
            raise
        raise _refusal(cause, out) from error
    finally:
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)
        if lock is not None:
            locks.remove(lock)
        for parent in new_parents:
            try:
                parent.rmdir()
            except OSError:
                break


def _refusal(error: OSError, out: Path) -> MtuExportError:
    """The error of this package for one of the system's."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _BAD_PATH:
        return PlanError(f"cannot make {str(out)[:200]!r}: {reason}")
    return ResourceError(f"cannot write {error.filename or out}: {reason}")


def _apply_umask(folder: Path) -> None:
    """Give files the modes of the user's umask; libraries write some for the owner alone."""
    mask = umask(folder)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _replace(private: Path, out: Path, force: bool, marker: OutputMarker) -> None:
    """Rename ``private`` to ``out``; an older ``out`` goes only after the new one is there.

    Where another process has put its own there in the meantime, ``force`` replaces that too.
    """
    old = private.with_suffix(_OLD)
    try:
        while not _renamed(private, out):
            refuse_existing(out, force, marker)
            _discard(old)  # of the previous turn: what replaced it was whole
            with suppress(FileNotFoundError):  # the other process is renaming it too
                out.rename(old)
        sync(out.parent)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        _discard(old)


def _renamed(private: Path, out: Path) -> bool:
    """Rename, unless a folder that is not empty or a file is in the way."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        return False
    try:
        private.rename(out)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def tidy(out: Path) -> None:
    """Remove the leftovers of stopped and killed drafts of ``out``."""
    with suppress(OSError):
        _remove_leftovers(out.absolute(), every=True)


def leftover_bytes(out: Path) -> int:
    """Bytes of the leftovers of stopped and killed drafts of ``out``."""
    total = 0
    for folder in _private_paths(out.absolute()):
        lock = _hold(folder)
        if lock is not None:
            total += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            locks.remove(lock)
    return total


_PARTIAL, _OLD, _DEAD, _LOCK = ".partial", ".old", ".dead", ".lock"


def _stem(out: Path) -> str:
    """How private names begin: with the output's, of which a long one is cut and hashed."""
    name = out.name.encode("utf-8", "surrogateescape")
    if len(name) <= 80:
        return f".{out.name}"
    return f".{name[:60].decode('utf-8', 'ignore')}~{hashlib.sha256(name).hexdigest()[:8]}"


def _private_paths(out: Path) -> list[Path]:
    """Whatever lies beside ``out`` under one of its private names."""
    pattern = re.compile(
        re.escape(_stem(out))
        + rf"\.([0-9a-f]{{8}}|{_NO_KEY})\.[0-9a-f]{{8}}\.(?:partial|old|dead|lock)"
    )
    try:
        return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []


def _new(out: Path, key: str) -> tuple[Path, BaseFileLock | None]:
    """An empty private folder and its lock; no lock where the file system has none."""
    for _ in range(8):  # who removes leftovers may take a lock that is not held yet
        private = out.with_name(f"{_stem(out)}.{key}.{secrets.token_hex(4)}{_PARTIAL}")
        lock = _hold(private)
        if lock is not None:
            break
    private.mkdir(mode=0o700)
    return private, lock


def _hold(private: Path) -> BaseFileLock | None:
    """The lock of a private folder; ``None`` while its writer lives, or may live."""
    path = private.with_suffix(_LOCK)
    try:
        return locks.acquire(path)
    except OSError:  # a file system without locks, or without permission to write one
        with suppress(OSError):
            path.unlink()
        return None


def _key(private: Path) -> str:
    return private.name.split(".")[-3]


def _unfinished(out: Path, key: str) -> tuple[Path, BaseFileLock] | None:
    """The newest draft with this key whose writer no longer lives, and its lock."""
    drafts = [p for p in _private_paths(out) if p.suffix == _PARTIAL and _key(p) == key]
    for path in sorted(drafts, key=_modified, reverse=True):
        lock = _hold(path)
        if lock is not None and path.is_dir():
            return path, lock
        if lock is not None:
            locks.remove(lock)
    return None


def _modified(path: Path) -> int:
    """Modification time in nanoseconds; 0 where another process has removed the path."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _restore(out: Path) -> None:
    """Bring back an ``out`` that a killed process has moved aside."""
    for path in _private_paths(out):
        lock = _hold(path) if path.suffix == _OLD else None
        if lock is not None:
            _bring_back(path, out)
            locks.remove(lock)


def _bring_back(old: Path, out: Path) -> None:
    if not os.path.lexists(out):
        with suppress(FileNotFoundError):
            old.rename(out)


def _remove_leftovers(out: Path, *, every: bool) -> None:
    """Clear what killed processes left beside ``out``; with ``every`` kept drafts, too."""
    for path in _private_paths(out):
        kept = path.suffix == _PARTIAL and _key(path) != _NO_KEY
        lock = None if kept and not every else _hold(path)
        if lock is not None:
            if path.suffix == _OLD:
                _bring_back(path, out)
            shutil.rmtree(path, ignore_errors=True)
            locks.remove(lock)


def _discard(old: Path) -> None:
    """Delete ``old`` under a name that cannot be mistaken for a whole output."""
    dead = old.with_suffix(_DEAD)
    shutil.rmtree(dead, ignore_errors=True)
    with suppress(OSError):
        old.rename(dead)
    shutil.rmtree(dead, ignore_errors=True)
