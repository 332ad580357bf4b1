"""Trouble of the system, as real as it can be made here: disks, permissions, kills, races, pipes.

A full disk and a read-only one are small file systems of their own, mounted in a private
namespace of the child (`unshare`); where the system allows no namespace these tests are skipped
and say so.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mtu_export import bundle
from mtu_export.exporter import inspection

OURS = [sys.executable, "-m", "mtu_export"]
EXPORT = ("--task", "sr", "--components", "unet", "-m", "ATOM")
UPCYCLE = ("upcycle", "--arch", "atom", "--random")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def export(atom: Path) -> list[str]:
    """An export into `out`, whose toolchain is PyTorch alone."""
    return ["reference", *(argument.replace("ATOM", str(atom)) for argument in EXPORT), "-o", "out"]


def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OURS, *arguments], capture_output=True, text=True, check=False)


def last(text: str) -> str:
    """The last line of standard error; a traceback has no place in it."""
    assert "Traceback" not in text
    return text.splitlines()[-1] if text else ""


# --------------------------------------------------------------------------- disks and permissions


def mounted(
    folder: Path, options: str, then: str, arguments: Sequence[str]
) -> tuple[int, str, str]:
    """Run a command with a tmpfs of its own at ``folder``; what is in there afterwards.

    ``then`` is a shell command that runs before it, inside. Returns exit code, standard error
    and the listing.
    """
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o {options} tmpfs {folder} || exit 99\n{then}\n"
    script += f"{shlex.join(arguments)} >/dev/null\ncode=$?\nls -A {folder}\nexit $code\n"
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here: no private file system can be mounted")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no private file system can be mounted here: {last(done.stderr)}")
    return done.returncode, done.stderr, done.stdout.strip()


FILL = """
import os, sys
from mtu_export import cli
from mtu_export.cli import console

stage, (disk, moment, left) = console.Console.stage, sys.argv[1:4]
del sys.argv[1:4]

def fill(self, name):
    if name == moment:
        free = os.statvfs(disk)
        with open(os.path.join(disk, "filler"), "wb", buffering=0) as stream:
            stream.write(bytes(free.f_bavail * free.f_bsize - int(left)))
    return stage(self, name)

console.Console.stage = fill
cli.main()
"""
"""Our command, and somebody who fills the disk up to so many bytes when a stage begins."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "moment", "left"),
    [
        (("onnx", *EXPORT, "-o"), "import PyTorch", 100_000),  # full inside model.onnx
        (("reference", *EXPORT, "-o"), "lower to reference", 50_000),  # full behind it: goldens
        pytest.param(
            ("diffusers", "--task", "sr", "-m", "ATOM", "-o"),
            "save",
            100_000,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(UPCYCLE, "upcycle", 100_000, marks=pytest.mark.exhaustive),
    ],
)
def test_a_disk_that_fills_up(
    tmp_path: Path, atom: Path, template: tuple[str, ...], moment: str, left: int
) -> None:
    disk = tmp_path / "disk"
    arguments = [argument.replace("ATOM", str(atom)) for argument in template]
    command = [
        sys.executable,
        "-c",
        FILL,
        str(disk),
        moment,
        str(left),
        *arguments,
        str(disk / "out"),
    ]
    code, err, listing = mounted(disk, "size=16M", "", command)
    assert last(err).startswith("error: cannot write ")
    assert last(err).endswith("No space left on device")
    assert (code, listing) == (6, "filler")


def drafting(out: Path) -> list[str]:
    """A process that begins an output, as every command does, and says what it raises."""
    code = (
        "import sys; from pathlib import Path; from mtu_export.spec import ResourceError\n"
        "from mtu_export.storage.draft import CHECKPOINT, draft\n"
        "try:\n"
        "    with draft(Path(sys.argv[1]), force=False, marker=CHECKPOINT): pass\n"
        "except ResourceError as error: sys.exit(f'error: {error}')\n"
    )
    return [sys.executable, "-c", code, str(out)]


def test_a_disk_without_room_for_a_folder(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    code, err, listing = mounted(disk, "nr_inodes=1", "", drafting(disk / "a" / "out"))
    assert last(err) == f"error: cannot write {disk / 'a'}: No space left on device"
    assert (code, listing) == (1, "")


def test_a_read_only_disk(tmp_path: Path) -> None:
    """Permissions do not bind root, this does."""
    disk = tmp_path / "disk"
    remount = f"mount -o remount,ro {disk}"
    code, err, listing = mounted(disk, "size=1M", remount, drafting(disk / "out"))
    assert last(err).startswith(f"error: cannot write {disk}/.out.")
    assert last(err).endswith("Read-only file system")
    assert (code, listing) == (1, "")


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    """As another user where the tests run as root."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code = f"""if True:
        import os
        from pathlib import Path
        from mtu_export.storage.draft import CHECKPOINT, draft
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with draft(Path({str(closed / "out")!r}), force=False, marker=CHECKPOINT):
            pass
    """
    for parent in tmp_path.parents:
        if parent != Path("/") and os.access(parent, os.W_OK):
            mode = parent.stat().st_mode
            if not mode & 0o001 and parent.stat().st_uid == os.getuid():
                parent.chmod(mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("mtu_export.spec.errors.ResourceError: cannot write ")
    assert line.endswith("Permission denied")


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"]])
def test_an_output_that_takes_nothing(arguments: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*OURS, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    (line,) = done.stderr.decode().splitlines()
    assert line.endswith("No space left on device")
    assert done.returncode == 6


# -------------------------------------------------------------------------------------------- pipes


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"], ["doctor"]])
def test_a_reader_that_goes_away(arguments: list[str]) -> None:
    """As in `mtu-export list | head`: quiet, and the exit code of any Unix tool."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*OURS, *arguments], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(OURS)} list >&- 2>&- <&-"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# -------------------------------------------------------------------------------------------- kills

STAGES = (
    "import PyTorch",
    "load",
    "run in PyTorch",
    "specialise",
    "prove the fold",
    "rewrite and quantise",
    "capture",
    "lower to reference",
    "verify",
)
RUN = """
import contextlib, os, signal, sys
from pathlib import Path
from mtu_export import exporter
from mtu_export.exporter import options as plan

@contextlib.contextmanager
def watch(stage):
    if (stage, sys.argv[2]) == (sys.argv[1], "begin"):
        os.kill(os.getpid(), signal.SIGKILL)
    yield
    if (stage, sys.argv[2]) == (sys.argv[1], "end"):
        os.kill(os.getpid(), signal.SIGKILL)

words = {"target": "reference", "model": sys.argv[3], "task": "sr", "components": ["unet"]}
exporter.export(plan.resolve(**words, out="out"), watch)
"""
"""An export that kills itself with -9 at the begin or the end of a stage."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "stages",
    [STAGES[-1:], pytest.param(STAGES, marks=pytest.mark.exhaustive)],
    ids=["last", "every"],
)
def test_kill_9_at_the_end_of_stages(
    stages: Sequence[str], atom: Path, tmp_path: Path, export: list[str]
) -> None:
    """Nothing at the final place after any of them; the next run works and clears all leftovers."""
    moments = [(stage, "end") for stage in stages] + [("import PyTorch", "begin")]
    for begin in range(0, len(moments), 2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", RUN, *moment, str(atom)], stderr=subprocess.DEVNULL
            )
            for moment in moments[begin : begin + 2]
        ]
        for child, moment in zip(children, moments[begin:], strict=False):
            assert child.wait(900) == -signal.SIGKILL, f"{moment} is no stage of an export"
            assert not (tmp_path / "out").exists(), moment
    left = {path.name for path in tmp_path.iterdir()}
    assert any(name.endswith(".partial") for name in left)
    assert all(name.startswith(".out.") and name.endswith((".partial", ".lock")) for name in left)
    assert ours(*export).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(verdict.passed for verdict in bundle.read(tmp_path / "out").proof)


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts", [(1,), pytest.param((0, 2), marks=pytest.mark.exhaustive)], ids=["one", "more"]
)
def test_kill_9_while_a_checkpoint_is_written(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """By the files it has, as `upcycle` has no stages: none while it imports, then some."""

    def drafted() -> set[str]:
        return {  # os.walk, as what is read may be cleared meanwhile
            f"{top}/{name}"
            for top, _, names in os.walk(tmp_path)
            for name in names
            if ".partial" in top
        }

    seen = []
    for files in counts:
        before = drafted()
        child = subprocess.Popen([*OURS, *UPCYCLE, "out"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            if len(drafted() - before) >= files:
                break
            time.sleep(0.001)
        child.kill()
        seen.append(child.wait(60))
        assert not (tmp_path / "out").exists() or seen[-1] == 0
        if (tmp_path / "out").exists():  # it was faster than we
            (tmp_path / "out").rename(tmp_path / "whole")
    assert -signal.SIGKILL in seen
    assert ours(*UPCYCLE, "out").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "whole"}
    assert inspection.inspect(tmp_path / "out")


# -------------------------------------------------------------------------------------------- races


def together(*arguments: str) -> list[tuple[int, str]]:
    """Exit code and last line of two processes that are started at the same moment."""
    children = [
        subprocess.Popen([*OURS, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [child.communicate(timeout=900)[1].decode() for child in children]
    return [(child.returncode, last(e)) for child, e in zip(children, errors, strict=True)]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_two_exports_into_one_place(tmp_path: Path, export: list[str]) -> None:
    ends = sorted(together(*export))
    assert [code for code, _ in ends] == [0, 2]
    assert ends[1][1].endswith("exists; choose another -o or pass --force")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(verdict.passed for verdict in bundle.read(tmp_path / "out").proof)
    ends = together(*export, "--force")
    assert [code for code, _ in ends] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(verdict.passed for verdict in bundle.read(tmp_path / "out").proof)


RACE = """
import json, sys
from pathlib import Path
from mtu_export.storage.draft import BUNDLE, draft
from mtu_export.spec import OutputExists

ends = [0, 0]
for number in range(150):
    try:
        with draft(Path("out"), force=sys.argv[1] == "force", marker=BUNDLE) as folder:
            said = {"schema_version": sys.argv[2], "source": 0, "parts": 0, "proof": 0}
            (folder / "manifest.json").write_text(json.dumps(said))
            (folder / "also").write_text(sys.argv[2])
        ends[0] += 1
    except OutputExists:
        ends[1] += 1
print(json.dumps(ends))
"""
"""Many drafts of one place in a row."""


@pytest.mark.parametrize("force", ["force", "refuse"])
def test_many_drafts_of_one_place(tmp_path: Path, force: str) -> None:
    """The renames alone, often enough that they do meet: one wins, or all do in turn."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, force, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [error for _, error in outputs] == ["", "", ""]
    ends = [json.loads(out) for out, _ in outputs]
    assert sum(done for done, _ in ends) == (450 if force == "force" else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    version = json.loads((tmp_path / "out" / "manifest.json").read_text())["schema_version"]
    assert (tmp_path / "out" / "also").read_text() == version
