"""The cache that all tests read from: made once, whole or not at all, and watched."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.shared import SharedFolders


def write(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").write_text("1")


def test_two_workers_make_one_folder(tmp_path: Path) -> None:
    calls: list[Path] = []

    def slowly(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        write(folder)

    workers = [SharedFolders(tmp_path) for _ in range(2)]
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda w=w: folders.append(w.folder("x", (1, "b"), slowly)))
        for w in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert folders[0] == folders[1]
    assert folders[0].name == "x"
    assert workers[0].folder("x", (2, "b"), write) != folders[0]


def test_what_failed_is_made_again(tmp_path: Path) -> None:
    folders = SharedFolders(tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise MemoryError

    with pytest.raises(MemoryError):
        folders.folder("x", 0, fail)
    assert (folders.folder("x", 0, write) / "a").read_text() == "1"


def test_a_test_that_changes_what_is_shared_is_found(tmp_path: Path) -> None:
    folders = SharedFolders(tmp_path)
    shared = folders.folder("x", 0, write)
    folders.require_unchanged()
    (shared / "a").write_text("2")
    with pytest.raises(AssertionError, match="copy it first"):
        folders.require_unchanged()
    (shared / "a").unlink()
    with pytest.raises(AssertionError, match="copy it first"):
        folders.require_unchanged()
