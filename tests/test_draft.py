"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mtu_export import draft as room
from mtu_export.draft import Mark, draft
from mtu_export.spec import OutputExists, PlanError, ResourceError

MARK = Mark(file="m", key="ours")
OURS = '{"ours": 1}'


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with draft(out, force=False, mark=MARK) as folder:
        (folder / "m").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "m").write_text(OURS)

    def write() -> None:
        with draft(out, force=True, mark=MARK) as folder:
            (folder / "m").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert (out / "m").read_text() == OURS
    assert len(list(tmp_path.iterdir())) == 1


def test_force_replaces_only_its_like(tmp_path: Path) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "photos").write_text("x")
    with pytest.raises(PlanError, match="replaces only"), draft(out, force=True, mark=MARK):
        pass
    (out / "m").write_text('{"manifest_version": 3, "name": "somebody else\'s"}')
    with pytest.raises(PlanError, match="replaces only"), draft(out, force=True, mark=MARK):
        pass
    (out / "m").write_text(OURS)
    with pytest.raises(OutputExists), draft(out, force=False, mark=MARK):
        pass
    with draft(out, force=True, mark=MARK) as folder:
        (folder / "m").write_text("new")
    assert [p.name for p in out.iterdir()] == ["m"]
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(PlanError), draft(link, force=True, mark=MARK):
        pass


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    dead = tmp_path / ".b.999999999.x1.partial"
    huge = tmp_path / f".b.{10**30}.x1.partial"
    alive = tmp_path / f".b.{os.getppid()}.x1.partial"
    same = tmp_path / f".b.{os.getpid()}.x1.partial"
    for folder in (dead, huge, alive, same):
        folder.mkdir()
    with draft(tmp_path / "b", force=False, mark=MARK):
        pass
    assert not dead.exists()
    assert not huge.exists()
    assert alive.exists()


def test_disk_and_permission_are_resource_errors(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"cannot write .*No space left"),
        draft(tmp_path / "b", force=False, mark=MARK),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "b" / "x"))
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_place(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with pytest.raises(OutputExists), draft(out, force=False, mark=MARK):
        out.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_two_drafts_in_one_process_do_not_touch_each_other(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with draft(out, force=False, mark=MARK) as first:
        (first / "m").write_text("1")
        with pytest.raises(ValueError, match="x"), draft(out, force=False, mark=MARK):
            raise ValueError("x")
        assert (first / "m").exists()
    assert (out / "m").read_text() == "1"


def test_an_interruption_between_the_renames_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "m").write_text(OURS)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), draft(out, force=True, mark=MARK):
        pass
    assert (out / "m").read_text() == OURS
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_between_the_renames_left_returns(tmp_path: Path) -> None:
    old = tmp_path / ".b.999999999.x1.old"
    old.mkdir()
    (old / "m").write_text(OURS)
    with pytest.raises(OutputExists), draft(tmp_path / "b", force=False, mark=MARK):
        pass
    assert (tmp_path / "b" / "m").read_text() == OURS


def test_a_failure_leaves_no_parents_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), draft(tmp_path / "a/b/c", force=False, mark=MARK):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/x", "n" * 300])
def test_impossible_paths_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PlanError), draft(tmp_path / name, force=False, mark=MARK):
        pass


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "a" / "source"
    source.mkdir(parents=True)
    for out in (source, tmp_path / "a"):
        with pytest.raises(PlanError, match="is or holds the source"):
            room.refuse_existing(out, True, MARK, source)


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with draft(tmp_path / "b", force=False, mark=MARK) as folder:
            (folder / "m").write_text("1")
            (folder / "m").chmod(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "b" / "m").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_a_full_disk_in_a_library_of_rust_is_a_resource_error(tmp_path: Path) -> None:
    """Safetensors has an error class of its own for what the system says."""
    from safetensors import SafetensorError

    with (
        pytest.raises(ResourceError, match="No space left on device"),
        draft(tmp_path / "b", force=False, mark=MARK),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), draft(tmp_path / "b", force=False, mark=MARK):
        raise SafetensorError("something else")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_another_writer_between_the_last_look_and_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Without --force it is theirs, with it ours; nothing of either is left beside."""
    out = tmp_path / "b"
    look = room.refuse_existing

    def late(*words: object) -> None:
        look(*words)  # type: ignore[arg-type]
        if not out.exists() and list(tmp_path.glob(".b.*/m")):
            out.mkdir()
            (out / "m").write_text(OURS)

    monkeypatch.setattr(room, "refuse_existing", late)
    try:
        with draft(out, force=force, mark=MARK) as folder:
            (folder / "m").write_text("new")
    except OutputExists:
        assert not force
    assert (out / "m").read_text() == ("new" if force else OURS)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
