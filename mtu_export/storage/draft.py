"""A folder that appears whole or not at all.

While it is made it is ``.NAME.KEY.RANDOM.partial`` beside its place, with a ``.lock`` of that name
which its process holds. An older output is ``.old`` between two renames, ``.dead`` while it goes.
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
from typing import IO

from mtu_export.spec import MtuExportError, OutputExists, PlanError, ResourceError

SCRATCH = ".state"
"""What a draft has under this name is not of the output; it goes when all else is done."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ELOOP)
_NO_KEY = "none"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """By which a folder of our making is known: a JSON file with ``key`` (and what follows)."""

    file: str
    key: str
    value: str | None = None
    more: tuple[str, ...] = ()

    def is_on(self, folder: Path) -> bool:
        """Whether ``folder`` carries the mark."""
        path = folder / self.file
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        if not isinstance(found, dict) or not {self.key, *self.more} <= found.keys():
            return False
        return self.value is None or found[self.key] == self.value


BUNDLE = Mark(file="manifest.json", key="schema_version", more=("source", "parts", "proof"))
CHECKPOINT = Mark(file="model_index.json", key="_class_name", value="MTUPipeline")
FOLDED = Mark(file="config.json", key="_folded_by", value="mtu-export")


def refuse_existing(out: Path, force: bool, mark: Mark, sources: Sequence[Path] = ()) -> None:
    """Refuse an output that is there, or that ``force`` would not replace by its like.

    Only an empty folder or one with ``mark`` is replaced, and never one that is or holds one of
    ``sources``. Raises ``OutputExists`` and ``PlanError``.
    """
    while True:
        before = _which(out)
        try:
            _look(out, force, mark, sources)
        except (MtuExportError, OSError) as error:
            if _which(out) != before:
                continue  # another process has replaced it while we looked
            if isinstance(error, OSError):
                raise _refusal(error, out) from None
            raise
        return


def _which(out: Path) -> tuple[int, int] | None:
    """By which it is known whether ``out`` is still the same."""
    try:
        found = out.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _look(out: Path, force: bool, mark: Mark, sources: Sequence[Path]) -> None:
    try:
        there = bool(out.lstat())
    except FileNotFoundError:
        there = False
    real = out.resolve()
    for source in sources:
        if real == source.resolve() or real in source.resolve().parents:
            raise PlanError(f"output {str(out)!r} is or holds the source {str(source)!r}")
    if not there:
        return
    if not force:
        raise OutputExists(out)
    ours = out.is_dir() and not out.is_symlink()
    if not ours or not (mark.is_on(out) or not any(out.iterdir())):
        raise PlanError(
            f"--force replaces only what this command made; {str(out)!r} has no {mark.file} of ours"
        )


@contextmanager
def draft(
    out: Path, *, force: bool, mark: Mark, sources: Sequence[Path] = (), keep: str | None = None
) -> Iterator[Path]:
    """A private folder beside ``out`` that takes its place at the end.

    After an error or an interruption nothing of it is left and an older ``out`` is untouched.
    Leftovers of a killed process are removed. With ``keep``, eight hexadecimal digits of what is
    made, both stay, hidden beside ``out``: the next draft with the same digits begins with them,
    one with others leaves them until there is an ``out``. Raises ``OutputExists``, ``PlanError``
    and ``ResourceError`` (no space, no permission).
    """
    out = out.absolute()
    made: list[Path] = []
    private, lock = None, None
    try:
        _restore(out)
        refuse_existing(out, force, mark, sources)
        made = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        private, lock = (_taken_up(out, keep) if keep else None) or _new(out, keep or _NO_KEY)
        _remove_leftovers(out, every=not keep)
        try:
            yield private
            _open_modes(private)
            refuse_existing(out, force, mark, sources)
            shutil.rmtree(private / SCRATCH, ignore_errors=True)
            _replace(private, out, force, mark)
        except BaseException:
            if keep and private.is_dir() and any(private.iterdir()):
                private, made = None, []
            raise
        made = []
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
            _release(lock)
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break


def _refusal(error: OSError, out: Path) -> Exception:
    """The error of ours for one of the system's."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _BAD_PATH:
        return PlanError(f"cannot make {str(out)[:200]!r}: {reason}")
    return ResourceError(f"cannot write {error.filename or out}: {reason}")


def system_error(error: Exception) -> OSError | None:
    """The system's error inside one of a library in Rust (safetensors), which has its own class."""
    number = re.search(r"\(os error (\d{1,4})\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _open_modes(folder: Path) -> None:
    """Give files the modes that the user's umask says; libraries write some for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _replace(private: Path, out: Path, force: bool, mark: Mark) -> None:
    """Rename ``private`` to ``out``; an older ``out`` goes only after the new one is there.

    Where another process has put its own there in the meantime, ``force`` replaces that too.
    """
    old = private.with_suffix(_OLD)
    try:
        while not _renamed(private, out):
            refuse_existing(out, force, mark)
            _discard(old)  # of a turn before: what replaced it was whole
            with suppress(FileNotFoundError):  # the other process is at it too
                out.rename(old)
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
    """Remove what stopped and killed drafts of ``out`` have left."""
    with suppress(OSError):
        _remove_leftovers(out.absolute(), every=True)


def left(out: Path) -> int:
    """Bytes of what stopped and killed drafts of ``out`` have left."""
    found = 0
    for folder in _private(out.absolute()):
        lock = _held(folder)
        if lock is not None:
            found += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _release(lock)
    return found


_PARTIAL, _OLD, _DEAD, _LOCK = ".partial", ".old", ".dead", ".lock"


def _stem(out: Path) -> str:
    """How private names begin: with the output's, of which a long one is cut and hashed."""
    name = out.name.encode("utf-8", "surrogateescape")
    if len(name) <= 80:
        return f".{out.name}"
    return f".{name[:60].decode('utf-8', 'ignore')}~{hashlib.sha256(name).hexdigest()[:8]}"


def _private(out: Path) -> list[Path]:
    """Whatever lies beside ``out`` under a private name of it."""
    pattern = re.compile(
        re.escape(_stem(out))
        + rf"\.([0-9a-f]{{8}}|{_NO_KEY})\.[0-9a-f]{{8}}\.(?:partial|old|dead|lock)"
    )
    try:
        return sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []


def _new(out: Path, key: str) -> tuple[Path, IO[bytes] | None]:
    """An empty private folder and its lock; no lock where the file system has none."""
    for _ in range(8):  # who removes leftovers may take a lock that is not held yet
        private = out.with_name(f"{_stem(out)}.{key}.{secrets.token_hex(4)}{_PARTIAL}")
        lock = _held(private)
        if lock is not None:
            break
    private.mkdir(mode=0o700)
    return private, lock


def _held(private: Path) -> IO[bytes] | None:
    """The lock of a private folder, until it is released; None while its maker lives."""
    import fcntl

    path = private.with_suffix(_LOCK)
    try:
        stream = path.open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
            return stream
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: whoever made it may live
        path.unlink(missing_ok=True)
    stream.close()
    return None


def _release(lock: IO[bytes]) -> None:
    with suppress(OSError):
        os.unlink(lock.name)
    lock.close()


def _taken_up(out: Path, key: str) -> tuple[Path, IO[bytes]] | None:
    """The newest draft with this key whose maker does not live, and its lock."""
    found = [p for p in _private(out) if p.suffix == _PARTIAL and p.name.split(".")[-3] == key]
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        lock = _held(path)
        if lock is not None and path.is_dir():
            return path, lock
        if lock is not None:
            _release(lock)
    return None


def _restore(out: Path) -> None:
    """Bring back an ``out`` that a killed process has moved aside."""
    for path in _private(out):
        lock = _held(path) if path.suffix == _OLD else None
        if lock is not None:
            _back(path, out)
            _release(lock)


def _back(old: Path, out: Path) -> None:
    if not os.path.lexists(out):
        with suppress(FileNotFoundError):
            old.rename(out)


def _remove_leftovers(out: Path, *, every: bool) -> None:
    """Clear what killed processes left beside ``out``; with ``every`` what was kept, too."""
    for path in _private(out):
        kept = path.suffix == _PARTIAL and path.name.split(".")[-3] != _NO_KEY
        lock = None if kept and not every else _held(path)
        if lock is not None:
            if path.suffix == _OLD:
                _back(path, out)
            shutil.rmtree(path, ignore_errors=True)
            _release(lock)


def _discard(old: Path) -> None:
    """Delete ``old`` under a name that nobody takes for a whole output."""
    dead = old.with_suffix(_DEAD)
    shutil.rmtree(dead, ignore_errors=True)
    with suppress(OSError):
        old.rename(dead)
    shutil.rmtree(dead, ignore_errors=True)
