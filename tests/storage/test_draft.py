"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtu_export.spec import OutputExists, PlanError, ResourceError
from mtu_export.storage import draft as storage_draft
from mtu_export.storage.draft import OutputMarker, draft

MARKER = OutputMarker(file="m", key="ours")
OURS = '{"ours": 1}'


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with draft(out, force=False, marker=MARKER) as folder:
        (folder / "m").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "m").write_text(OURS)

    def write() -> None:
        with draft(out, force=True, marker=MARKER) as folder:
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
    with pytest.raises(PlanError, match="replaces only"), draft(out, force=True, marker=MARKER):
        pass
    (out / "m").write_text('{"manifest_version": 3, "name": "somebody else\'s"}')
    with pytest.raises(PlanError, match="replaces only"), draft(out, force=True, marker=MARKER):
        pass
    (out / "m").write_text(OURS)
    with pytest.raises(OutputExists), draft(out, force=False, marker=MARKER):
        pass
    with draft(out, force=True, marker=MARKER) as folder:
        (folder / "m").write_text("new")
    assert [p.name for p in out.iterdir()] == ["m"]
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(PlanError), draft(link, force=True, marker=MARKER):
        pass


CHILD = """
import os, signal, sys
from pathlib import Path
from mtu_export.storage import draft
from tests.storage.test_draft import MARKER

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

out, keep, when = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3]
true = Path.rename

def rename(path, target):
    if when == "old" and Path(target).suffix == ".dead" and path.exists():
        kill()
    if when == "renames" and Path(target) == out and not out.exists():
        kill()
    return true(path, target)

Path.rename = rename
with draft.draft(out, force=True, marker=MARKER, keep=keep) as folder:
    (folder / "m").write_text("half")
    if when == "inside":
        kill()
"""
"""A draft that is killed inside, between the renames, or when the older output is to go."""


def killed(out: Path, keep: str = "", when: str = "inside") -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(out), keep, when],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    out = tmp_path / "b"
    killed(out)
    assert {Path(name).suffix for name in names(tmp_path)} == {".partial", ".lock"}
    assert storage_draft.leftover_bytes(out) == len("half")
    with draft(out, force=False, marker=MARKER) as folder:
        assert names(tmp_path) == {folder.name, folder.with_suffix(".lock").name}
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize("when", ["renames", "old"])
def test_a_kill_at_the_end_loses_no_output(tmp_path: Path, when: str) -> None:
    out = tmp_path / "b"
    out.mkdir()
    (out / "m").write_text(OURS)
    killed(out, when=when)
    assert out.exists() == (when == "old")
    with pytest.raises(OutputExists), draft(out, force=False, marker=MARKER):
        pass
    assert (out / "m").read_text() == (OURS if when == "renames" else "half")
    storage_draft.tidy(out)
    assert names(tmp_path) == {"b"}


def test_other_outputs_drafts_are_not_its_own(tmp_path: Path) -> None:
    """Names that begin alike, and long ones that differ at their ends."""
    long = "text-to-image+instruction-edit+super-resolution+inpainting+outpainting+colorization"
    for one, other in (("edit.v2", "edit"), (f"{long}-onnx-int8", f"{long}-onnx-fp16")):
        folder = tmp_path / one[:7]
        folder.mkdir()
        killed(folder / one, keep="0123abcd")
        before = names(folder)
        with draft(folder / other, force=False, marker=MARKER, keep="0123abcd") as private:
            assert not list(private.iterdir())
        assert names(folder) == {*before, other}


def test_what_is_kept_waits_for_its_like(tmp_path: Path) -> None:
    out = tmp_path / "b"

    def stop(keep: str, text: str | None) -> None:
        with draft(out, force=False, marker=MARKER, keep=keep) as folder:
            assert (folder / "m").exists() == (text is None)
            if text is not None:
                (folder / "m").write_text(text)
            raise KeyboardInterrupt

    for keep, text in (("0000000a", "first"), ("0000000b", "second"), ("0000000a", None)):
        with pytest.raises(KeyboardInterrupt):
            stop(keep, text)
    killed(out, keep="0000000c")
    assert len([name for name in names(tmp_path) if name.endswith(".partial")]) == 3
    with draft(out, force=False, marker=MARKER, keep="0000000b") as folder:
        assert (folder / "m").read_text() == "second"
    assert names(tmp_path) == {"b"}


def test_what_is_kept_survives_a_refusal_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "b"
    drafts: list[Path] = []

    def lose() -> None:
        with draft(out, force=False, marker=MARKER, keep="0000000a") as folder:
            (folder / storage_draft.SCRATCH).mkdir()
            drafts.append(folder)
            out.mkdir()

    with pytest.raises(OutputExists):
        lose()
    out.rmdir()
    with draft(out, force=False, marker=MARKER, keep="0000000a") as again:
        assert [again] == drafts
        assert (again / storage_draft.SCRATCH).is_dir()
    assert names(tmp_path) == {"b"}
    assert names(out) == set()


def test_disk_and_permission_are_resource_errors(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"cannot write .*No space left"),
        draft(tmp_path / "b", force=False, marker=MARKER),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "b" / "x"))
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_place(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with pytest.raises(OutputExists), draft(out, force=False, marker=MARKER):
        out.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_two_drafts_in_one_process_do_not_touch_each_other(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with draft(out, force=False, marker=MARKER) as first:
        (first / "m").write_text("1")
        with pytest.raises(ValueError, match="x"), draft(out, force=False, marker=MARKER):
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
    with pytest.raises(KeyboardInterrupt), draft(out, force=True, marker=MARKER):
        pass
    assert (out / "m").read_text() == OURS
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_between_the_renames_left_returns(tmp_path: Path) -> None:
    old = tmp_path / ".b.none.01234567.old"
    old.mkdir()
    (old / "m").write_text(OURS)
    with pytest.raises(OutputExists), draft(tmp_path / "b", force=False, marker=MARKER):
        pass
    assert (tmp_path / "b" / "m").read_text() == OURS


def test_a_failure_leaves_no_parents_either(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="x"),
        draft(tmp_path / "a/b/c", force=False, marker=MARKER),
    ):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/x", "n" * 300])
def test_impossible_paths_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PlanError), draft(tmp_path / name, force=False, marker=MARKER):
        pass


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "a" / "source"
    source.mkdir(parents=True)
    for out in (source, tmp_path / "a"):
        with pytest.raises(PlanError, match="is or holds the source"):
            storage_draft.refuse_existing(out, True, MARKER, [source])


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with draft(tmp_path / "b", force=False, marker=MARKER) as folder:
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
        draft(tmp_path / "b", force=False, marker=MARKER),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), draft(tmp_path / "b", force=False, marker=MARKER):
        raise SafetensorError("something else")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_another_writer_between_the_last_look_and_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Without --force it is theirs, with it ours; nothing of either is left beside."""
    out = tmp_path / "b"
    look = storage_draft.refuse_existing

    def late(*arguments: object) -> None:
        look(*arguments)  # type: ignore[arg-type]
        if not out.exists() and list(tmp_path.glob(".b.*/m")):
            out.mkdir()
            (out / "m").write_text(OURS)

    monkeypatch.setattr(storage_draft, "refuse_existing", late)
    try:
        with draft(out, force=force, marker=MARKER) as folder:
            (folder / "m").write_text("new")
    except OutputExists:
        assert not force
    assert (out / "m").read_text() == ("new" if force else OURS)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
