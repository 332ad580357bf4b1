"""`java -jar mtu-cli.jar` on damaged pictures and bundles that lack something, and when it ends."""

from __future__ import annotations

import io
import json
import shutil
import signal
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundle.test_pictures import photo
from tests.cli.test_run import EDIT, Run, bundles, here, run
from tests.phones import jar, maven
from tests.support import tools

__all__ = ["bundles", "here", "run"]
BUNDLE = maven.ROOT / "runtime" / "testdata" / "edit-onnx-int8"
pytestmark = pytest.mark.slow


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(*extra: bytes) -> bytes:
    """A picture with these chunks before its pixels."""
    stream = io.BytesIO()
    photo(61, 40).save(stream, "PNG")
    data = stream.getvalue()
    first = 8 + 25
    return data[:first] + b"".join(extra) + data[first:]


def test_what_is_no_pixel_of_a_png_is_not_read(bundles: dict[str, Path]) -> None:
    """Java's decoder would refuse damaged text, and make a string of text of any size."""
    Path("plain.png").write_bytes(png())
    Path("odd.png").write_bytes(
        png(
            chunk(b"tIME", b"\0"),
            chunk(b"zTXt", b"Comment\0\0garbage"),
        )
    )
    for name in ("plain", "odd"):
        words = ("run", bundles["sr"], "-o", f"{name}-out.png", "--image", f"{name}.png")
        assert (ended := jar.run(*words)).code == 0, ended.err
    plain, odd = (np.asarray(Image.open(f"{name}-out.png")) for name in ("plain", "odd"))
    assert (plain == odd).all()


@pytest.mark.parametrize("keeps", [0.66, 0.98])
def test_half_a_jpeg_is_none(run: Run, bundles: dict[str, Path], keeps: float) -> None:
    stream = io.BytesIO()
    photo(61, 40).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    Path("cut.jpg").write_bytes(data[: int(keeps * len(data))])
    code, _, _ = run("sr", "--image", "cut.jpg")
    java = jar.run("run", bundles["sr"], "-o", "out.png", "--image", "cut.jpg")
    assert (java.code, java.out, java.err.count("\n")) == (code, "", 1)
    assert java.err.startswith("error: 'cut.jpg' cannot be read as an image: ")
    assert not Path("out.png").exists()


@pytest.mark.parametrize("words", [("-o", ".png"), ("-vo", "out.gif"), ("--steps", "3.0")])
def test_words_that_are_read_alike(
    run: Run, bundles: dict[str, Path], words: tuple[str, ...]
) -> None:
    code, _, err = run("edit", *EDIT, *words)
    java = jar.run("run", bundles["edit"], "-o", "out.png", *EDIT, *words)
    last = err.splitlines()[-1].replace(", .webp", "")
    assert (java.code, java.last_line) == (code, last)
    assert code == 2


@pytest.mark.parametrize("folder", ["nothing", "", "in.png"])
def test_folders_that_are_no_bundle(run: Run, folder: str) -> None:
    code, _, err = run(Path(folder), *EDIT)
    java = jar.run("run", folder, "-o", "out.png", *EDIT)
    assert (java.code, java.last_line) == (code, err.splitlines()[-1])


# -------------------------------------------------------------------- bundles that lack something


def without(folder: Path, key: str, *names: str) -> Path:
    """A copy of the test bundle without these parts or files."""
    shutil.copytree(BUNDLE, folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest[key] = [
        each for each in manifest[key] if not {each["path"], each.get("name")} & set(names)
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    for name in names:
        if (folder / name).is_file():
            (folder / name).unlink()
    return folder


def test_a_bundle_of_which_no_task_runs_is_not_verified(tmp_path: Path) -> None:
    folder = without(tmp_path / "b", "parts", "vae_decoder")
    ended = jar.run("verify", folder)
    line = f"'{folder}' cannot be verified here: task 'edit' needs vae_decoder, which it has not"
    assert (ended.code, ended.out, ended.err) == (3, "", f"error: {line}\n")


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_bundle_without_goldens(tmp_path: Path, command: str) -> None:
    folder = without(tmp_path / "b", "files", "goldens.safetensors")
    ended = jar.run(command, folder)
    assert (ended.code, ended.out, ended.err) == (3, "", "error: the bundle has no goldens\n")


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    Path("job.json").write_text("{}")
    ended = jar.run("job", "job.json", "-o", "none/r.json")
    line = "error: cannot write 'none/r.json': No such file or directory\n"
    assert (ended.code, ended.err) == (2, line)


# --------------------------------------------------------------------------------- an ended bench


def test_a_bench_says_how_many_parts_it_measured() -> None:
    words = ("--rounds", "1", "--samples", "1", "--part", "vae_decoder")
    ended = jar.run("bench", BUNDLE, "-o", "r.json", *words)
    assert (ended.code, ended.out) == (0, "r.json: 1 parts\n"), ended.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_bench_that_is_ended_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [tools.require("java"), f"-Djava.io.tmpdir={scratch}", "-jar", str(jar.jar())]
    words = ["bench", str(BUNDLE), "-o", "r.json", "-v", "--samples", "10000", "--part", "unet"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "round 1 of 3" in process.stderr.readline()
    while not list(scratch.rglob("log")):
        assert process.poll() is None
    process.send_signal(number)
    assert process.stderr.read().endswith("error: interrupted; nothing was written\n")
    assert process.wait(timeout=60) == code
    assert list(scratch.iterdir()) == []
    assert not Path("r.json").exists()
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not any(str(scratch).encode() in line for line in lines)
