"""Locks, the order of what reaches the disk, and single files that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mtu_export.spec import ResourceError
from mtu_export.storage import atomic_file, files, locks
from mtu_export.storage import draft as storage_draft
from mtu_export.storage.draft import OutputMarker, draft

MARKER = OutputMarker(file="m", key="ours")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """("sync", path) and ("rename", target) in the order of the calls."""
    calls: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def logged_fsync(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_rename(self: Path, target: Path) -> Path:
        calls.append(("rename", str(target)))
        return rename(self, target)

    def logged_replace(self: Path, target: Path) -> Path:
        calls.append(("rename", str(target)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    monkeypatch.setattr(Path, "replace", logged_replace)
    return calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")


@needs_proc
def test_a_draft_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    """Every file, the folders from the inside out, the rename, the folder that holds the name."""
    out = tmp_path / "b"
    with draft(out, force=False, marker=MARKER) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("1")
        (folder / "m").write_text("1")
        (folder / storage_draft.SCRATCH).mkdir()
        (folder / storage_draft.SCRATCH / "x").write_text("1")
    before = events[: events.index(("rename", str(out)))]
    assert sorted(before) == sorted(
        ("sync", str(folder / name)) for name in ("part/weights", "part", "m", "")
    )
    assert before[-1] == ("sync", str(folder))
    assert before.index(("sync", str(folder / "part/weights"))) < before.index(
        ("sync", str(folder / "part"))
    )
    assert events[len(before) : len(before) + 2] == [("rename", str(out)), ("sync", str(tmp_path))]


@needs_proc
def test_a_file_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    with atomic_file(tmp_path / "a") as private:
        private.write_text("1")
    assert events == [
        ("sync", str(private)),
        ("rename", str(tmp_path / "a")),
        ("sync", str(tmp_path)),
    ]


def test_a_disk_that_fails_at_the_end_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space is taken late (delayed allocation), it is `fsync` that says the disk is full."""

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(ResourceError, match="No space left"),
        draft(tmp_path / "b", force=False, marker=MARKER) as folder,
    ):
        (folder / "m").write_text("1")
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "a") as private:
        private.write_text("1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / ("é" * 100)  # its private name must not be too long
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as private:
            private.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_of_other_threads_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.umask` sets it for the whole process: a file that another thread makes would be open."""
    before = os.umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    try:
        assert files.umask(tmp_path) == 0o027
        with draft(tmp_path / "b", force=False, marker=MARKER) as folder:
            (folder / "m").write_text("1")
            (folder / "m").chmod(0o600)
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "b" / "m").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["m"]


def test_a_kept_draft_that_another_process_takes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was listed, and is gone when its age is read."""
    gone, listed = tmp_path / ".b.0000000a.01234567.partial", Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([*listed(folder), gone]))
    with draft(tmp_path / "b", force=False, marker=MARKER, keep="0000000a") as folder:
        (folder / "m").write_text("1")
    assert os.listdir(tmp_path) == ["b"]


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    elsewhere: list[object] = []
    thread = threading.Thread(target=lambda: elsewhere.append(locks.acquire(tmp_path / "lock")))
    thread.start()
    thread.join()
    assert elsewhere == [None]
    locks.remove(lock)
    assert list(tmp_path.iterdir()) == []


def test_kill_9_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from mtu_export.storage import locks;"
        "lock = locks.acquire(Path(sys.argv[1])); assert lock; os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "lock"
    child = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert path.exists()
    lock = locks.acquire(path)
    assert lock is not None
    locks.remove(lock)


@pytest.mark.parametrize("number", [38, 95, 37])  # ENOSYS, ENOTSUP, ENOLCK
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The draft is made without one; what others left stays, as whoever made it may live."""
    import fcntl

    def none(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    other = tmp_path / ".b.none.01234567.partial"
    other.mkdir()
    with draft(tmp_path / "b", force=False, marker=MARKER) as folder:
        (folder / "m").write_text("1")
    assert {path.name for path in tmp_path.iterdir()} == {"b", other.name}
