"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mtu_export.draft import draft
from mtu_export.spec import OutputExists, PlanError, ResourceError


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with draft(out, force=False, marker="m") as folder:
        (folder / "m").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "m").write_text("old")

    def write() -> None:
        with draft(out, force=True, marker="m") as folder:
            (folder / "m").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert (out / "m").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_force_replaces_only_its_like(tmp_path: Path) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "photos").write_text("x")
    with pytest.raises(PlanError, match="replaces only"), draft(out, force=True, marker="m"):
        pass
    (out / "m").write_text("x")
    with pytest.raises(OutputExists), draft(out, force=False, marker="m"):
        pass
    with draft(out, force=True, marker="m") as folder:
        (folder / "m").write_text("new")
    assert [p.name for p in out.iterdir()] == ["m"]
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(PlanError), draft(link, force=True, marker="m"):
        pass


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    dead = tmp_path / ".b.999999999.partial"
    alive = tmp_path / f".b.{os.getppid()}.partial"
    for folder in (dead, alive):
        folder.mkdir()
    with draft(tmp_path / "b", force=False, marker="m"):
        pass
    assert not dead.exists()
    assert alive.exists()


def test_disk_and_permission_are_resource_errors(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"cannot write .*No space left"),
        draft(tmp_path / "b", force=False, marker="m"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "b" / "x"))
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_place(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with pytest.raises(OutputExists), draft(out, force=False, marker="m"):
        out.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
