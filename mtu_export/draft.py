"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtu_export.spec import MtuExportError, OutputExists, PlanError, ResourceError

_STOPPED = ".stopped"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ELOOP)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """By which a folder of our making is known: a JSON file with ``key`` (and ``value``)."""

    file: str
    key: str
    value: str | None = None

    def is_on(self, folder: Path) -> bool:
        """Whether ``folder`` carries the mark."""
        path = folder / self.file
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        if not isinstance(found, dict) or self.key not in found:
            return False
        return self.value is None or found[self.key] == self.value


BUNDLE = Mark(file="manifest.json", key="schema_version")
CHECKPOINT = Mark(file="model_index.json", key="_class_name", value="MTUPipeline")
FOLDED = Mark(file="config.json", key="_folded_by", value="mtu-export")


def refuse_existing(out: Path, force: bool, mark: Mark, source: Path | None = None) -> None:
    """Refuse an output that is there, or that ``force`` would not replace by its like.

    Only an empty folder or one with ``mark`` is replaced, and never one that is or holds
    ``source``. Raises ``OutputExists`` and ``PlanError``.
    """
    while True:
        before = _which(out)
        try:
            _look(out, force, mark, source)
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


def _look(out: Path, force: bool, mark: Mark, source: Path | None) -> None:
    there = out.is_symlink() or out.exists()
    real = out.resolve()
    if source is not None and (real == source.resolve() or real in source.resolve().parents):
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
    out: Path, *, force: bool, mark: Mark, source: Path | None = None, keep: bool = False
) -> Iterator[Path]:
    """A private folder beside ``out`` that takes its place at the end.

    After an error or an interruption nothing of it is left and an older ``out`` is untouched.
    Leftovers of a killed process are removed. With ``keep`` both stay, hidden beside ``out``, and
    the next draft with ``keep`` begins with them. Raises ``OutputExists``, ``PlanError`` and
    ``ResourceError`` (no space, no permission).
    """
    out = out.absolute()
    refuse_existing(out, force, mark, source)
    made = [parent for parent in out.parents if not parent.exists()]
    private: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        taken = _taken_up(out) if keep else None
        _remove_leftovers(out)
        prefix = f".{out.name[:80]}.{os.getpid()}."
        private = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=out.parent))
        if taken is not None:
            private.rmdir()
            taken.rename(private)
        try:
            yield private
        except BaseException:
            if keep and any(private.iterdir()):
                private.rename(private.with_suffix(_STOPPED))
                made = []
            raise
        _open_modes(private)
        refuse_existing(out, force, mark, source)
        _replace(private, out, force, mark)
        made = []
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
    old = private.with_suffix(".old")
    try:
        while not _renamed(private, out):
            refuse_existing(out, force, mark)
            shutil.rmtree(old, ignore_errors=True)  # of a turn before: what replaced it was whole
            with suppress(FileNotFoundError):  # the other process is at it too
                out.rename(old)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


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


def _taken_up(out: Path) -> Path | None:
    """The newest draft of a stopped or killed process, out of :func:`_remove_leftovers`' reach."""
    found = [
        path
        for path in out.parent.glob(f".{glob.escape(out.name[:80])}.*.*")
        if path.suffix == _STOPPED or (path.suffix == ".partial" and not _alive(_maker(path)))
    ]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    return newest.rename(newest.with_suffix(".taken"))


def _maker(path: Path) -> int:
    """Number of the process that made a private folder; 0 where the name says none."""
    pid = path.name.split(".")[-3] if path.name.count(".") >= 4 else ""
    return int(pid) if pid.isdecimal() else 0


def _remove_leftovers(out: Path) -> None:
    """Clear what killed processes left beside ``out``; an old ``out`` that they moved returns."""
    for path in out.parent.glob(f".{glob.escape(out.name[:80])}.*.*"):
        pid = _maker(path)
        if path.suffix not in (".partial", ".old", _STOPPED) or not pid:
            continue
        if _alive(pid) and path.suffix != _STOPPED:
            continue
        if path.suffix == ".old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
