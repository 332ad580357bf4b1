"""`java -jar mtu-cli.jar run|verify|bench` against `mtu-export` on the same bundles."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtu_export import bundle
from mtu_export.bench import record
from mtu_export.bundle import api, sampler
from tests.bundle.test_pictures import photo
from tests.cli.test_run import FILL, HERE, REQUESTS, SHAPE, TRANSLATE, bundles, here
from tests.phones import jar, maven
from tests.support import exports, tools

__all__ = ["bundles", "here"]
TESTDATA = maven.ROOT / "runtime" / "testdata"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one - other) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def python_run(folder: Path, out: str, **values: Any) -> None:
    """What `mtu-export run` writes."""
    api.save_image(api.run(folder, **values).image, out)


# ------------------------------------------------------------------------------------- pictures


def test_the_picture_of_the_test_data(record_property: Callable[[str, object], None]) -> None:
    request = json.loads((TESTDATA / "request.json").read_text("utf-8"))
    ended = jar.run(
        *("run", TESTDATA / request["bundle"], "-o", "out.png", "--task", request["task"]),
        *("--prompt", request["prompt"], "--image", TESTDATA / request["image"]),
        *("--noise", TESTDATA / request["noise"], "--steps", str(request["steps"])),
    )
    assert (ended.code, ended.err) == (0, "")
    made, expected = pixels("out.png"), pixels(TESTDATA / request["picture"])
    differing = int((made != expected).sum())
    record_property("differing bytes", differing)
    assert decibels(made, expected) >= 60
    assert differing == 0


@pytest.mark.parametrize("name", [*REQUESTS, "translate"])
def test_every_kind_of_task_makes_the_picture_of_python(
    bundles: dict[str, Path], name: str
) -> None:
    arguments = REQUESTS.get(name, TRANSLATE)
    seed = () if name == "translate" else ("--seed", "4294967295")
    ended = jar.run("run", bundles[name], "-o", "java.png", *arguments, *seed, "--json")
    assert ended.code == 0, ended.err
    words = list(zip(arguments[::2], arguments[1::2], strict=True))
    values: dict[str, Any] = {flag[2:]: value for flag, value in words if flag != "--input"}
    inputs = [value for flag, value in words if flag == "--input"]
    if seed:
        values["seed"] = int(seed[1])
    picture = api.run(bundles[name], **values, input=inputs)
    api.save_image(picture.image, "python.png")
    assert (pixels("java.png") == pixels("python.png")).all()
    result = json.loads(ended.out)
    assert result.pop("seconds") >= 0
    assert result.pop("runner").startswith("onnxruntime ")
    steps = {"steps": 4} if seed else {}
    assert result == {
        "picture": "java.png",
        "bundle": str(bundles[name]),
        "task": name,
        **steps,
        "passes": len(picture.latents),
    }


def test_all_flags_of_a_request(bundles: dict[str, Path]) -> None:
    values = {"prompt": "make it red", "negative_prompt": "blurred", "image": "in.png", "steps": 2}
    values |= {"guidance": 6.5, "image_guidance": 1.25, "seed": 7}
    words = [
        word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    assert jar.run("run", bundles["edit"], "-o", "java.png", *words).code == 0
    python_run(bundles["edit"], "python.png", **values)
    assert (pixels("java.png") == pixels("python.png")).all()
    ended = jar.run("run", bundles["img2img"], "-o", "s.png", *REQUESTS["img2img"], "--strength=1")
    assert ended.code == 0
    python_run(bundles["img2img"], "p.png", prompt="make it red", image="in.png", strength=1.0)
    assert (pixels("s.png") == pixels("p.png")).all()


@pytest.mark.parametrize("name", ["edit", "img2img"])
def test_noise_of_a_file(bundles: dict[str, Path], name: str) -> None:
    """Of a table whose passes draw none the first array alone is taken; also rows or columns."""
    noise = sampler.noise((3, *SHAPE[1:]), 7)
    np.save("c.npy", noise)
    np.save("fortran.npy", np.asfortranarray(noise))
    python_run(bundles[name], "python.png", prompt="make it red", image="in.png", noise="c.npy")
    for file in ("c.npy", "fortran.npy"):
        ended = jar.run(
            "run", bundles[name], "-o", "java.png", *REQUESTS[name], "--noise", file, "--force"
        )
        assert ended.code == 0, ended.err
        assert (pixels("java.png") == pixels("python.png")).all()


def modes() -> dict[str, Any]:
    """Pictures of every mode that PNG and JPEG have, by file name.

    The samples are at random: on a ramp some sums end on a half, which Pillow's whole numbers and
    the contract's floating point may round apart.
    """
    color = Image.fromarray(np.random.default_rng(9).integers(0, 256, (40, 61, 3), np.uint8))
    smooth = photo(61, 40)
    mask = Image.fromarray((np.mgrid[0:40, 0:61][1] * 4).astype(np.uint8))
    deep = np.asarray(color.convert("L")).astype(np.uint16) * 256 + 77
    turned = Image.Exif()
    turned[0x0112] = 6
    sharp = {"quality": 95, "subsampling": 0}
    return {
        "rgb.png": (color, {}),
        "rgba.png": (Image.merge("RGBA", (*color.split(), mask)), {}),
        "grey.png": (color.convert("L"), {}),
        "grey-alpha.png": (Image.merge("LA", (color.convert("L"), mask)), {}),
        "grey16.png": (Image.fromarray(deep), {}),
        "one-bit.png": (color.convert("1"), {}),
        "palette.png": (color.quantize(17), {}),
        "palette-clear.png": (color.quantize(17), {"transparency": 3}),
        "rgb-clear.png": (color, {"transparency": color.getpixel((5, 5))}),
        "turned.png": (color, {"exif": turned}),
        "grey.jpg": (smooth.convert("L"), sharp),
        "rgb.jpg": (smooth, sharp),
        "turned.jpg": (smooth, {**sharp, "exif": turned}),
        "progressive.jpg": (smooth, {**sharp, "progressive": True}),
    }


@pytest.mark.parametrize("name", list(modes()))
def test_pictures_of_every_mode_are_read_alike(bundles: dict[str, Path], name: str) -> None:
    picture, options = modes()[name]
    picture.save(name, **options)
    ended = jar.run("run", bundles["sr"], "-o", "java.png", "--image", name)
    assert ended.code == 0, ended.err
    python_run(bundles["sr"], "python.png", image=name)
    apart = np.abs(pixels("java.png") - pixels("python.png"))
    # Two decoders of JPEG may round a sample otherwise.
    assert apart.max() <= (2 if name.endswith(".jpg") else 0), apart.max()


def test_sixteen_bits_a_colour(bundles: dict[str, Path]) -> None:
    """Pillow writes none: by hand, each sample's upper byte is what counts."""
    import struct
    import zlib

    samples = np.random.default_rng(5).integers(0, 65_536, (40, 61, 3)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 61, 40, 16, 2, 0, 0, 0))
    data = head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    Path("deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert jar.run("run", bundles["sr"], "-o", "java.png", "--image", "deep.png").code == 0
    python_run(bundles["sr"], "python.png", image="deep.png")
    assert (pixels("java.png") == pixels("python.png")).all()


def test_jpegs_that_are_written(bundles: dict[str, Path]) -> None:
    """Whole chroma and quality 95, so both are near the PNG."""
    for name in ("java.jpg", "java.png"):
        assert jar.run("run", bundles["edit"], "-o", name, *REQUESTS["edit"]).code == 0
    written = Image.open("java.jpg")
    assert [layer[1:3] for layer in written.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    assert decibels(pixels("java.jpg"), pixels("java.png")) > 35


def test_a_prompt_beyond_ascii_in_a_bare_locale(bundles: dict[str, Path]) -> None:
    bare = {"LC_ALL": "C", "LANG": "C", "LANGUAGE": ""}
    words = ("--prompt", "le café 漢字", "--image", "in.png")
    ended = jar.run("run", bundles["edit"], "-o", "java.png", *words, environment=bare)
    assert ended.code == 0, ended.err
    python_run(bundles["edit"], "python.png", prompt="le café 漢字", image="in.png")
    assert (pixels("java.png") == pixels("python.png")).all()


def test_warnings_are_those_of_python(bundles: dict[str, Path]) -> None:
    Image.new("L", (30, 60)).save("tall.png")
    words: list[str] = [*FILL]
    words[words.index("m.png")] = "tall.png"
    words[words.index("--prompt") + 1] = "word " * 100
    ended = jar.run("run", bundles["fill"], "-o", "out.png", *words)
    assert ended.code == 0
    sizes, left_out = ended.err.splitlines()
    assert sizes == (
        "warning: the image has 48 x 32 pixels, the mask 30 x 60: each is cropped to fit by "
        "itself, so they do not match"
    )
    assert left_out.startswith(
        "warning: the prompt is longer than the text encoder reads; left out: 'word"
    )


# --------------------------------------------------------------------- the embedded model, exported


def words_of(task: bundle.TaskRecord) -> dict[str, Any]:
    values: dict[str, Any] = {"task": task.name}
    if task.takes_prompt:
        values["prompt"] = "a red circle on a blue ground"
    return {**values, **{name: f"{name}.png" for name in task.inputs.pictures}}


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_the_tasks_of_a_fresh_export(
    target: str, record_property: Callable[[str, object], None]
) -> None:
    folder = exports.all_tasks(target)
    photo(97, 120).save("image.png")
    Image.open("m.png").save("mask.png")
    sdk = ("--executorch-sdk", maven.library()) if target == "executorch" else ()
    tasks = bundle.read(folder).tasks
    assert len(tasks) == 4
    for task in tasks:
        values = {**words_of(task), **({"seed": 11} if task.flow.has_loop else {})}
        flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        ended = jar.run("run", folder, "-o", f"java-{task.name}.png", *flags, *sdk)
        assert ended.code == 0, ended.err
        python_run(folder, f"python-{task.name}.png", **values)
        made, expected = pixels(f"java-{task.name}.png"), pixels(f"python-{task.name}.png")
        record_property(f"{task.name}: differing bytes", int((made != expected).sum()))
        assert decibels(made, expected) >= 60, (task.name, decibels(made, expected))
        if target == "onnx":
            assert (made != expected).sum() == 0, task.name


def test_a_bundle_for_executorch_without_its_library() -> None:
    folder = exports.all_tasks("executorch")
    name = bundle.read(folder).tasks[0].name
    words = ("run", folder, "-o", "out.png", "--task", name)
    ended = jar.run(*words, environment={"MTU_EXECUTORCH": ""})
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: a bundle for ExecuTorch needs its library for Java: name")
    ended = jar.run(*words, "--executorch-sdk", ".")
    assert (ended.code, ended.err) == (4, "error: '.' has no libmtu_executorch_jni.so\n")


# --------------------------------------------------------------------------------- verify, bench


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_verify_says_what_python_says() -> None:
    folder = TESTDATA / "edit-onnx-int8"
    ended = jar.run("verify", folder, "--json")
    assert (ended.code, ended.err) == (0, "")
    (proof,) = json.loads(ended.out)
    mine = {(v["part"], v["task"], v["stage"]): v for v in proof["proof"]}
    theirs = {(v.part, v.task, v.stage): v for v in api.verify(folder)}
    assert mine.keys() <= theirs.keys()
    for key, verdict in mine.items():
        assert verdict["passed"] == theirs[key].passed
        assert verdict["psnr_db"] == pytest.approx(theirs[key].psnr_db, abs=1.0)
    ended = jar.run("verify", folder, "--min-psnr", "45")
    assert ended.code == 1
    assert ended.last_line.startswith("error: parity below the floor: unet of task 'edit' (quant")


def test_bench_writes_a_record_and_leaves_the_bundle_alone(tmp_path: Path) -> None:
    folder = TESTDATA / "edit-onnx-int8"
    before = hashes(folder)
    words = ("--rounds", "2", "--samples", "3", "--threads", "1", "--part", "unet")
    ended = jar.run("bench", folder, "-o", "r.json", *words)
    assert ended.code == 0, ended.err
    run = record.read(Path("r.json"))
    (measurement,) = run.measurements
    assert (measurement.status, measurement.task, measurement.part) == ("measured", "edit", "unet")
    assert [len(each.samples_s) for each in measurement.rounds] == [3, 3]
    assert measurement.threads == 1
    assert measurement.engine is not None
    assert measurement.engine.name == "onnxruntime"
    assert [check.name for check in measurement.checks] == [
        f"out_sample, case {n}" for n in range(3)
    ]
    assert all(check.passed for check in measurement.checks)
    assert measurement.bundle.bytes == bundle.read(folder).bytes
    assert hashes(folder) == before
    ended = jar.run("bench", folder, "-o", "r.json", *words)
    assert (ended.code, ended.last_line) == (
        2,
        "error: output 'r.json' exists; choose another -o or pass --force",
    )


def test_ctrl_c_leaves_nothing(bundles: dict[str, Path]) -> None:
    command = [tools.require("java"), "-jar", str(jar.jar()), "run", str(exports.all_tasks("onnx"))]
    task = next(t for t in bundle.read(exports.all_tasks("onnx")).tasks if t.flow.has_loop)
    photo(97, 120).save("image.png")
    Image.open("m.png").save("mask.png")
    steps = str(max(steps for steps, _ in bundle.read(exports.all_tasks("onnx")).schedules))
    flags = [word for key, value in words_of(task).items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(
        [*command, "-o", "out.png", *flags, "--steps", steps, "-v"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("pass 1 of "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert rest.splitlines()[-1] == "error: interrupted; nothing was written"
    assert {path.name for path in Path().iterdir()} == {*HERE, "image.png", "mask.png"}
