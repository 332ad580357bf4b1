"""The runner's folder: complete, described, aligned for pages of 16 KB; it runs as on a phone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mtu_export.bench import builds
from mtu_export.spec import ToolchainError
from tests.bench import runners
from tests.support import qemu, tools

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def assemble() -> ModuleType:
    path = ROOT / builds.ASSEMBLE
    spec = importlib.util.spec_from_file_location("mtu_runner_assemble", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "x86_64" and platform.machine() != "x86_64":
        pytest.skip("no cross compiler for x86_64 is used")
    return runners.built(request.param)


@pytest.fixture(scope="module")
def phone() -> Path:
    return runners.built("aarch64")


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / builds.DESCRIPTION).read_text("utf-8"))


@pytest.mark.slow
def test_the_description_has_every_file(folder: Path, assemble: ModuleType) -> None:
    manifest = description(folder)
    assert manifest["arch"] == folder.name
    assert manifest["libc"].startswith("glibc 2.")
    assert manifest["versions"]["onnxruntime"] == assemble.pinned("onnxruntime")
    names = {path.name for path in folder.iterdir()} - {builds.DESCRIPTION}
    assert {entry["path"] for entry in manifest["files"]} == names
    for entry in manifest["files"]:
        data = (folder / entry["path"]).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.slow
def test_every_file_of_a_phone_is_aligned(phone: Path) -> None:
    """By readelf, not by the assembly's own reader."""
    readelf = tools.require("readelf")
    files = [path for path in phone.iterdir() if path.read_bytes()[:4] == b"\x7fELF"]
    assert len(files) > 10
    for path in files:
        lines = subprocess.run(
            [readelf, "-lW", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        alignments = [int(line.split()[-1], 16) for line in lines if line.strip()[:5] == "LOAD "]
        least = 65_536 if path.name.startswith(("mtu-bench", "libmtu_")) else 16_384
        assert alignments
        assert min(alignments) >= least, path.name


@pytest.mark.slow
def test_a_phone_needs_no_library_of_its_own(phone: Path, assemble: ModuleType) -> None:
    for path in phone.iterdir():
        elf = assemble.read_elf(path)
        for name in elf.needed if elf else ():
            assert (phone / name).is_file(), f"{path.name} needs {name}"


@pytest.mark.slow
def test_a_file_with_small_pages_is_refused(assemble: ModuleType) -> None:
    manifest = {"files": [{"path": "libother.so", "alignment": 4096}]}
    with pytest.raises(assemble.AssemblyError, match=r"^libother.so is aligned to 4096 bytes"):
        assemble.check_alignment(manifest, assemble.PAGE)
    assemble.check_alignment(manifest, 0)
    manifest["files"][0]["path"] = "libmtu_onnx.so"
    with pytest.raises(assemble.AssemblyError, match="65536 are needed"):
        assemble.check_alignment(manifest, 0)


@pytest.mark.slow
def test_a_folder_that_is_the_same_stays(assemble: ModuleType) -> None:
    """Others may run it while it is built again."""
    folder = runners.built()
    text = (folder / builds.DESCRIPTION).read_text("utf-8")
    before = (folder / "mtu-bench").stat().st_ino
    assert builds.build_runner(folder.name) == folder
    assert (folder / "mtu-bench").stat().st_ino == before
    assert assemble._is_same(folder, text)
    assert not assemble._is_same(folder, text.replace(folder.name, "other"))
    assert not assemble._is_same(folder.with_name("nowhere"), text)


@pytest.mark.slow
def test_the_start_runs_from_any_folder(tmp_path: Path) -> None:
    folder = runners.built()
    job = runners.golden_job(tmp_path, runners.TESTDATA, "unet", 0)
    link = tmp_path / "a b"
    link.symlink_to(folder)
    outcome = runners.run(link / "run.sh", job, prefix=("sh",))
    assert outcome.code == 0, outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "executorch"])
def test_a_phones_runner_runs_under_qemu(
    phone: Path, tmp_path: Path, bundles: Callable[..., Path], engine: str
) -> None:
    """Emulated: it shows that the folder is complete and right, and nothing about speed."""
    if platform.machine() == "aarch64":
        emulator: tuple[str, ...] = ()
    else:
        emulator = (str(qemu.qemu_aarch64()), "-cpu", qemu.CPU)
    options = {"session.qdq_matmulnbits_accuracy_level": "1"}
    if engine == "onnx":
        job = runners.golden_job(tmp_path, runners.TESTDATA, "unet", 1, options=options)
    else:
        bundle = bundles("executorch", "int8", ("edit",))
        job = runners.golden_job(tmp_path, bundle, "unet", 1)
    command = json.loads((phone / builds.DESCRIPTION).read_text("utf-8"))["start"]
    assert command == builds.START
    loader = (str(phone / "ld-linux-aarch64.so.1"), "--library-path", str(phone))
    outcome = runners.run(phone / "mtu-bench", job, prefix=(*emulator, *loader))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result is not None
    assert outcome.result.machine is not None
    assert outcome.result.machine.arch == "aarch64"
    assert outcome.result.psnr_db["out_sample"] > 30


# ------------------------------------------------------------------------------ finding, building


def placed(folder: Path, arch: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "runner.json").write_text(json.dumps({"arch": arch}), "utf-8")
    (folder / "run.sh").touch()
    return folder


def test_a_runner_is_found_by_its_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MTU_RUNNER", raising=False)
    assert builds.find_runner("aarch64") is None
    cached = placed(tmp_path / "cache" / "mtu-export" / "runner" / "aarch64", "aarch64")
    assert builds.find_runner("aarch64") == cached
    built = placed(tmp_path / "checkout" / "build" / "runner" / "aarch64", "aarch64")
    assert builds.find_runner("aarch64") == built
    named = placed(tmp_path / "named", "x86_64")
    monkeypatch.setenv("MTU_RUNNER", str(named))
    assert builds.find_runner("aarch64") == built
    assert builds.find_runner("x86_64") == named
    (named / "runner.json").write_text("[]", "utf-8")
    assert builds.find_runner("x86_64") is None


def test_without_a_checkout_no_runner_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "CHECKOUT", tmp_path)
    with pytest.raises(ToolchainError, match="is built from a checkout"):
        builds.build_runner("aarch64")


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("cmake", "cmake is missing; install it with: apt-get install cmake"),
        (
            "aarch64-linux-gnu-g++",
            "aarch64-linux-gnu-g++ is missing; install it with: "
            "apt-get install g++-aarch64-linux-gnu",
        ),
    ],
)
def test_a_missing_tool_is_named(
    assemble: ModuleType, monkeypatch: pytest.MonkeyPatch, hidden: str, message: str
) -> None:
    which = assemble.shutil.which
    monkeypatch.setattr(
        assemble.shutil,
        "which",
        lambda name: None if name == hidden else (which(name) or f"/usr/bin/{name}"),
    )
    monkeypatch.setattr(assemble, "_run", lambda *_: "cmake version 3.25.1")
    monkeypatch.setattr(assemble.sys, "executable", "/nowhere/python")
    with pytest.raises(assemble.AssemblyError) as caught:
        assemble.configure("aarch64-linux-gnu", "aarch64", Path("headers"), Path("wheel"))
    assert str(caught.value) == message


def test_an_old_cmake_is_refused(assemble: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(assemble.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(assemble, "_run", lambda *_: "cmake version 3.18.4")
    with pytest.raises(assemble.AssemblyError, match=r"older than 3\.21; get one with: pip"):
        assemble.configure("host", "x86_64", Path("headers"), Path("wheel"))


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("URIs: http://mirror.example/debian\n", "http://mirror.example/debian"),
        ("deb [arch=amd64] http://mirror.example/debian/ stable main\n", None),
        ("# http://mirror.example/debian\n", None),
    ],
)
def test_the_mirror_is_that_of_the_machine(
    assemble: ModuleType, tmp_path: Path, line: str, address: str | None
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    deb822 = line.startswith(("URIs", "#"))
    name = "sources.list.d/debian.sources" if deb822 else "sources.list"
    (tmp_path / name).write_text(line, "utf-8")
    if line.startswith("#"):
        with pytest.raises(assemble.debian.DebianError, match="is Debian's archive"):
            assemble.debian.mirror(tmp_path)
    else:
        wanted = address or "http://mirror.example/debian/"
        assert assemble.debian.mirror(tmp_path) == wanted
