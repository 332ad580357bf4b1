"""`mtu-export run`: the command as a user types it, odd pictures and prompts, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtu_export import cli
from mtu_export.bundle import api, images, runner, sampler, verification
from mtu_export.spec.options import RunOptions
from tests.bundle.test_pictures import photo
from tests.support import handmade

SHAPE = (1, 4, 2, 3)
LABELS = (1, 2, handmade.HEIGHT, handmade.WIDTH)
HERE = {"in.png", "m.png", "l.npy"}
"""Files that are there before a picture is made."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("run")
    folders = {name: handmade.write(root / name, name) for name in handmade.TASKS}
    return {**folders, "translate": handmade.write_translator(root / "translate")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(48, 32).save("in.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (10, 4, 30, 20))
    mask.save("m.png")
    np.save("l.npy", np.random.default_rng(3).standard_normal(LABELS).astype(np.float32))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """`run` of the bundle of a task in this process: exit code, standard output and error."""

    def call(name: str | Path, *arguments: str, out: str = "out.png") -> tuple[int, str, str]:
        folder = bundles[name] if isinstance(name, str) else name
        monkeypatch.setattr(sys, "argv", ["mtu-export", "run", str(folder), "-o", out, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed, err = capfd.readouterr()
        return int(stop.value.code or 0), printed, err

    return call


EDIT = ("--prompt", "make it red", "--image", "in.png")
FILL = (*EDIT, "--mask", "m.png")
TRANSLATE = ("--image", "in.png", "--input", "hint=m.png", "--input", "labels=l.npy")
REQUESTS = {"t2i": EDIT[:2], "edit": EDIT, "fill": FILL, "img2img": EDIT, "sr": EDIT[2:]}


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


# ------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("name", list(REQUESTS))
def test_every_task_writes_its_picture(run: Run, name: str) -> None:
    code, printed, err = run(name, *REQUESTS[name])
    assert code == 0
    assert printed.startswith(f"out.png: {name}, 4 steps, ")
    assert [line for line in err.splitlines() if not line.startswith("✓")] == []
    assert Image.open("out.png").size == (handmade.WIDTH, handmade.HEIGHT)
    assert {path.name for path in Path().iterdir()} == {*HERE, "out.png"}


def test_a_flow_without_a_loop_has_no_steps(run: Run) -> None:
    code, printed, err = run("translate", *TRANSLATE)
    assert (code, "steps" in printed, "warning" in err) == (0, False, False), (printed, err)
    assert printed.startswith("out.png: translate, ")
    code, printed, _ = run("translate", *TRANSLATE, "--input", "amount=2", "--json", out="b.png")
    result = json.loads(printed)
    assert (code, result["passes"], "steps" in result) == (0, 0, False)
    assert (pixels("out.png") != pixels("b.png")).any()


def test_a_negative_prompt_leads_away(run: Run) -> None:
    assert run("edit", *EDIT, out="a.png")[0] == 0
    assert run("edit", *EDIT, "--negative-prompt", "blurred", out="b.png")[0] == 0
    assert (pixels("a.png") != pixels("b.png")).any()


def test_strength_is_a_share_of_the_steps(run: Run) -> None:
    for strength, passes in (("0.5", 2), ("1", 4)):
        arguments = ("--strength", strength, "--json")
        code, printed, _ = run("img2img", *EDIT, *arguments, out=f"{strength}.png")
        assert (code, json.loads(printed)["passes"]) == (0, passes)
    assert run("img2img", *EDIT)[0] == 0
    assert (pixels("out.png") == pixels("0.5.png")).all()
    assert (pixels("0.5.png") != pixels("1.png")).any()


def test_json_alone(run: Run, bundles: dict[str, Path]) -> None:
    code, printed, _ = run("edit", *EDIT, "--steps", "2", "--json")
    result = json.loads(printed)
    assert code == 0
    assert result.pop("seconds") >= 0
    assert result.pop("runner").startswith("onnxruntime ")
    assert result == {
        "picture": "out.png",
        "bundle": str(bundles["edit"]),
        "task": "edit",
        "steps": 2,
        "passes": 3,
    }


def test_a_seed_is_a_picture(run: Run) -> None:
    for out, arguments in (("a", ("--seed", "7")), ("b", ("--seed", "7")), ("c", ("--seed", "8"))):
        assert run("edit", *EDIT, *arguments, out=f"{out}.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_noise_of_a_file_is_that_of_the_seed(run: Run) -> None:
    np.save("n.npy", sampler.noise(SHAPE, 7))
    assert run("edit", *EDIT, "--seed", "7", out="a.png")[0] == 0
    assert run("edit", *EDIT, "--noise", "n.npy", out="b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_noise_of_every_pass_in_a_file_is_that_of_the_seed(run: Run) -> None:
    """Two passes draw; a task whose passes draw none takes the first array alone."""
    np.save("n.npy", sampler.noise((3, *SHAPE[1:]), 7))
    for name in ("img2img", "edit"):
        assert run(name, *EDIT, "--seed", "7", out=f"{name}-a.png")[0] == 0
        assert run(name, *EDIT, "--noise", "n.npy", out=f"{name}-b.png")[0] == 0
        assert Path(f"{name}-a.png").read_bytes() == Path(f"{name}-b.png").read_bytes()


def test_guidance_is_that_of_the_words(run: Run) -> None:
    run("edit", *EDIT, out="a.png")
    run("edit", *EDIT, "--guidance", "3", "--image-guidance", "1.5", out="same.png")
    run("edit", *EDIT, "--guidance", "9", out="text.png")
    run("edit", *EDIT, "--image-guidance", "-2", out="image.png")
    assert (pixels("a.png") == pixels("same.png")).all()
    assert (pixels("a.png") != pixels("text.png")).any()
    assert (pixels("a.png") != pixels("image.png")).any()


def test_previews(run: Run) -> None:
    assert run("edit", *EDIT, "--save-every", "2")[0] == 0
    names = {path.name for path in Path().glob("out*")}
    assert names == {"out.png", "out-002.png", "out-004.png"}
    assert (pixels("out-002.png") != pixels("out-004.png")).any()
    Path("out.png").unlink()
    code, _, err = run("edit", *EDIT, "--save-every", "4")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: output 'out-004.png' exists; choose another -o or pass --force",
    )
    assert run("edit", *EDIT, "--save-every", "4", "--force")[0] == 0
    assert run("edit", *EDIT, "--save-every", "99", out="b.png")[0] == 0
    assert {path.name for path in Path().glob("b*")} == {"b.png"}


def test_the_mask_is_where_it_is_repainted(run: Run) -> None:
    """Under a black mask the picture does not depend on what is masked, for nothing is."""
    Image.new("L", (48, 32)).save("none.png")
    assert run("fill", *EDIT, "--mask", "m.png", out="a.png")[0] == 0
    assert run("fill", *EDIT, "--mask", "none.png", out="b.png")[0] == 0
    assert (pixels("a.png") != pixels("b.png")).any()


@pytest.mark.parametrize("names", [("t2i", "EDIT"), ("fill", "FILL")])
def test_neither_torch_nor_a_toolchain_is_imported(
    bundles: dict[str, Path], names: tuple[str, str]
) -> None:
    """A whole `run`, in a process of its own; modules are counted at its end."""
    code = (
        "import sys, atexit\n"
        "bad = {'torch', 'diffusers', 'transformers', 'coremltools', 'executorch', 'onnxscript',\n"
        "       'accelerate', 'torchao', 'huggingface_hub'}\n"
        "atexit.register(lambda: print(sorted(bad & set(sys.modules))))\n"
        f"sys.argv = ['mtu-export', 'run', {str(bundles[names[0]])!r}, '-o', 'out.png',\n"
        f"            *{REQUESTS[names[0]]!r}]\n"
        "from mtu_export import cli\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert Path("out.png").is_file()


@pytest.mark.slow
def test_an_export_with_a_mask_runs(
    atom_pipeline: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real bundle, wider than high, whose denoiser takes both branches at once."""
    from mtu_export import exporter
    from mtu_export.exporter import options

    settings: dict[str, Any] = {
        "height": 16,
        "width": 24,
        "batch": 2,
        "bake_steps": [2],
        "scheme": "int8",
    }
    exported = exporter.export(
        options.resolve(
            target="onnx", model=atom_pipeline, task="fill", out=tmp_path / "b", **settings
        )
    )
    assert exported.part("unet").inputs[0].shape == (2, 9, 8, 12)
    assert all(
        verdict.passed
        for verdict in verification.verify_bundle(exported)
        if verdict.stage != "loop"
    )
    assert run(exported.folder, *FILL, "--steps", "2", "--seed", "3", "--save-every", "1")[0] == 0
    assert Image.open("out.png").size == Image.open("out-001.png").size == (24, 16)
    loop = runner.open_loop(exported)
    arguments = dict(zip(("prompt", "image", "mask"), FILL[1::2], strict=True))
    request = api.make_request(loop, RunOptions(**arguments, steps=2, seed=3))
    assert request.noise is not None
    np.testing.assert_array_equal(request.noise, sampler.noise((1, 4, 8, 12), 3))
    expected = np.asarray(images.to_image(runner.generate(loop, request)[1]))
    np.testing.assert_array_equal(pixels("out.png"), expected)
    assert exported.tasks[0].steps == 2
    code, _, err = run(exported.folder, *FILL, "--steps", "20", out="more.png")
    assert (code, "no table for 20 steps; it has: 2" in err) == (2, True)


# ---------------------------------------------------------------------------------- odd input


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000)])
@pytest.mark.parametrize("mode", ["RGB", "1", "LA", "P", "CMYK", "I;16"])
def test_pictures_of_any_size_and_mode_go_in(run: Run, size: tuple[int, int], mode: str) -> None:
    name = "in.tiff" if mode in ("CMYK", "LA") else "odd.png"
    Image.new(mode, size, None if mode == "LA" else 1).save(name)
    code, _, err = run("fill", "--prompt", "x", "--image", name, "--mask", name)
    assert code == 0, err
    assert "warning" not in err


def test_a_picture_is_turned_upright_as_its_mask_is(run: Run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(32, 48).transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    photo(32, 48).save("upright.png")
    Image.new("L", (32, 48), 255).save("white.png")
    for name in ("turned", "upright"):
        arguments = ("--prompt", "x", "--image", f"{name}.png", "--mask", "white.png")
        code, _, err = run("fill", *arguments, out=f"{name}-out.png")
        assert (code, "warning" in err) == (0, False)
    assert (pixels("turned-out.png") == pixels("upright-out.png")).all()


def test_a_mask_of_another_size_is_cut_to_fit_and_of_another_shape_warned_of(run: Run) -> None:
    Image.open("m.png").resize((480, 320), Image.Resampling.NEAREST).save("large.png")
    run("fill", *FILL, out="a.png")
    code, _, err = run("fill", *EDIT, "--mask", "large.png", out="b.png")
    assert (code, "warning" in err) == (0, False)
    assert (pixels("a.png") == pixels("b.png")).all()
    Image.new("L", (32, 48)).save("tall.png")
    code, _, err = run("fill", *EDIT, "--mask", "tall.png", out="c.png")
    assert code == 0
    assert "warning: the image has 48 x 32 pixels, the mask 32 x 48: each is cropped to fit" in err


def test_a_long_prompt_is_cut_and_says_where(run: Run) -> None:
    arguments = ("--image", "in.png", "--prompt")
    code, _, err = run("edit", *arguments, "photo " * 75 + "of a [red]Cat\x1b[2J", out="a.png")
    assert code == 0
    assert "the prompt is longer than the text encoder reads; left out: 'of a [red]Cat" in err
    assert "\x1b" not in err
    assert run("edit", *arguments, "photo " * 75, out="b.png")[2].count("warning") == 0
    _, _, err = run("edit", *arguments, "photo " * 9_000, out="c.png")
    (line,) = [line_ for line_ in err.splitlines() if "warning" in line_]
    assert len(line) < 200
    assert (pixels("a.png") == pixels("b.png")).all()


# --------------------------------------------------------------------------------------- stopping

SLOW = """
import sys, time
from mtu_export import cli
from mtu_export.bundle import sampler
true = sampler.guide
def guide(*words):
    open("started", "w").close()
    time.sleep(0.3)
    return true(*words)
sampler.guide = guide
sys.argv = ["mtu-export", "run", *sys.argv[1:]]
cli.main()
"""
"""`run`, but a pass takes 0.3 s."""


@pytest.mark.slow
@pytest.mark.parametrize("previews", [False, True])
def test_ctrl_c_leaves_no_half_picture(bundles: dict[str, Path], previews: bool) -> None:
    more = ["--save-every", "1"] if previews else []
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(bundles["edit"]), "-o", "out.png", *EDIT, *more],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stderr is not None
    assert child.stderr.readline().startswith("✓ read")
    waited, end = Path("out-002.png" if previews else "started"), time.monotonic() + 60
    while not waited.exists() and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(60) == 130, rest
    assert "Traceback" not in rest
    left = sorted(path.name for path in Path().iterdir() if path.name != "started")
    if previews:
        assert "error: interrupted; no out.png, the previews up to out-0" in rest
        assert {"out-001.png", "out-002.png"} <= {*left}
        assert not any("partial" in name for name in left)
        for path in Path().glob("out-*"):
            Image.open(path).load()
    else:
        assert rest.splitlines()[-1] == "error: interrupted; nothing was written"
        assert left == sorted(HERE)


def test_ctrl_c_while_a_runtime_is_imported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension module makes an ImportError of it."""
    from mtu_export.spec import ToolchainMissing
    from mtu_export.targets.onnx import running as target

    def open(path: Path, entry: str) -> None:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error
        except ImportError as error:
            raise ToolchainMissing("onnxruntime", "onnx") from error

    monkeypatch.setattr(target, "open", open)
    code, _, err = run("t2i", *EDIT[:2])
    assert (code, err.splitlines()[-1]) == (130, "error: interrupted; nothing was written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run: Run) -> None:
    Path("shut").mkdir(mode=0o500)
    code, _, err = run("edit", *EDIT, out="shut/out.png")
    assert (code, "no permission" in err) == (6, True)


def test_the_disk_is_full_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, target: Path, *arguments: object, **named: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    code, _, err = run("edit", *EDIT)
    assert (code, "No space left" in err) == (6, True)
    assert {path.name for path in Path().iterdir()} == HERE


def test_sizes_are_those_of_the_picture_upright() -> None:
    assert images.same_shape((48, 32), (480, 321))
    assert not images.same_shape((48, 32), (480, 340))
