"""``support.independent_loop``, a newcomer's work from runtime/README.md alone, against `run`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtu_export import exporter, targets
from mtu_export.bundle import Bundle, runner, sampler, tokenizer
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from tests.support import independent_loop, vectors

SCRIPT = Path(independent_loop.__file__)
TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata"
FLOOR_DB = 60.0
PATCH = {
    "name": "patch",
    "conditioning": [
        {"kind": "image", "channels": 3},
        {"kind": "mask", "channels": 1},
        {"kind": "masked_image_latent", "channels": 4},
        {"kind": "image_latent", "channels": 4, "scaled": False},
    ],
    "guidance": {"kind": "none"},
    "steps": 4,
    "prompt": "a photo of a red circle",
}
"""Every kind of conditioning, one pass a step, a prompt of its own."""
BLEND = {**PATCH, "name": "blend", "prompt": None} | {
    "guidance": {"kind": "text_image", "text": 3.0, "image": 1.5}
}


@pytest.fixture
def request_() -> dict[str, Any]:
    return json.loads((TESTDATA / "request.json").read_text("utf-8"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float32)


def alone(folder: Path, out: Path, *arguments: str) -> np.ndarray:
    """The script's picture; it runs where no module of ours can be found."""
    command = [sys.executable, "-I", str(SCRIPT), str(folder), "-o", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return pixels(out)


def ours(folder: Path, out: Path, *arguments: str) -> np.ndarray:
    command = [sys.executable, "-m", "mtu_export", "run", str(folder), "-o", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return pixels(out)


def test_the_script_imports_nothing_of_ours() -> None:
    tree = ast.parse(SCRIPT.read_text("utf-8"))
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    third = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert third == {"numpy", "onnxruntime", "PIL", "regex"}


def test_it_makes_the_picture_of_run(request_: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["--prompt", request_["prompt"], "--image", str(TESTDATA / request_["image"])]
    arguments += ["--noise", str(TESTDATA / request_["noise"]), "--steps", str(request_["steps"])]
    folder = TESTDATA / request_["bundle"]
    picture = alone(folder, tmp_path / "alone.png", *arguments)
    assert psnr(ours(folder, tmp_path / "ours.png", *arguments), picture) >= FLOOR_DB
    assert psnr(pixels(TESTDATA / request_["picture"]), picture) >= FLOOR_DB


def test_a_negative_prompt_makes_the_picture_of_run(
    request_: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["--prompt", request_["prompt"], "--negative-prompt", "a dark photo, BLURRED"]
    arguments += ["--input", f"image={TESTDATA / request_['image']}"]
    arguments += ["--noise", str(TESTDATA / request_["noise"]), "--steps", str(request_["steps"])]
    folder = TESTDATA / request_["bundle"]
    picture = alone(folder, tmp_path / "alone.png", *arguments)
    assert psnr(ours(folder, tmp_path / "ours.png", *arguments), picture) >= FLOOR_DB
    assert psnr(pixels(TESTDATA / request_["picture"]), picture) < FLOOR_DB


def test_every_word_of_a_request_matters(request_: dict[str, Any]) -> None:
    """Otherwise an equal picture would prove little."""
    exported = independent_loop.Bundle(TESTDATA / request_["bundle"], None)
    pictures = exported.read_inputs([("image", str(TESTDATA / request_["image"]))])["pictures"]
    noise = np.load(TESTDATA / request_["noise"])
    fields = {name: request_[name] for name in ("prompt", "steps")}
    request = independent_loop.Request(**fields, pictures=pictures, noise=noise)
    _, expected = exported.loop(request).picture()
    others: dict[str, Any] = {"prompt": "a dog", "noise": noise[..., ::-1]}
    others |= {"pictures": {"image": pictures["image"][..., ::-1]}}
    others |= {"negative_prompt": "a yellow square"}
    for name, value in others.items():
        _, picture = exported.loop(replace(request, **{name: value})).picture()
        assert psnr(expected, picture) < 40, name
    for scale in ("text", "image"):
        guidance = {**exported.task["guidance"], scale: 0.0}
        changed = independent_loop.Bundle(TESTDATA / request_["bundle"], None)
        changed.task = {**changed.task, "guidance": guidance}
        assert psnr(expected, changed.loop(request).picture()[1]) < 40, scale


def test_its_ids_are_those_of_the_tokenizer(request_: dict[str, Any]) -> None:
    folder = TESTDATA / request_["bundle"]
    (record,) = json.loads((folder / "manifest.json").read_text("utf-8"))["tokenizers"]
    theirs = independent_loop.Tokenizer(folder / record["path"], record)
    random, loaded = np.random.default_rng(0), tokenizer.load(folder / record["path"])
    letters = [*"aÉ½²!'<|> \t_中😀\u0301\u00a0\x1c", "<|endoftext|>", "<|ENDOFTEXT|>", "'S", "'ll"]
    for _ in range(2000):
        text = "".join(random.choice(letters, random.integers(1, 12)))
        assert theirs(text).tolist() == loaded.encode(text)[0].tolist(), repr(text)


def test_an_app_checks_itself_on_first_start(request_: dict[str, Any]) -> None:
    """The goldens against the floors of the proof, by the contract's section of that name."""
    exported = independent_loop.Bundle(TESTDATA / request_["bundle"], None)
    tensors = independent_loop.read_safetensors(exported.root / "goldens.safetensors")
    floors = {
        entry["part"]: entry["floor_db"]
        for entry in exported.m["proof"]
        if entry["stage"] in ("exported", "quantised", "passes")
    }
    for part in exported.m["parts"]:
        name, inputs = part["name"], part["inputs"]
        for case in range(3):
            prefix = f"{name}/edit/{case}/"
            got = exported.run(name, {s["name"]: tensors[prefix + s["name"]] for s in inputs})
            assert len(got) == len(part["outputs"])
            for output, value in got.items():
                assert psnr(tensors[prefix + output], value) >= floors[name]
    for expected, actual in passes(exported, tensors):
        assert psnr(expected, actual) >= floors["pipeline"]


def passes(
    exported: independent_loop.Bundle, tensors: dict[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(reference's, ours): x after each pass from the reference's states, and the picture."""
    golden = {k.removeprefix("loop/edit/"): v for k, v in tensors.items() if "loop/" in k}
    request = independent_loop.Request(
        **{name: exported.m["golden"][name] for name in ("prompt", "steps")},
        pictures={"image": golden["request/image"]},
        noise=golden["noise"],
    )
    loop = exported.loop(request)
    loop.run_once()
    table = loop.table()
    first = np.float32(table["start"]["noise"]) * golden["noise"][:1]
    starts = [first, *(golden[f"latents/{i}"] for i in range(len(table["passes"])))]
    pairs = []
    for i, step in enumerate(table["passes"]):
        states = [(starts[k], golden[f"outputs/{k}"]) for k in range(i)][::-1]
        states = [(starts[i], loop.guided_sum(step, starts[i])), *states]
        terms = zip(step["x"], step["m"], states, strict=False)
        total = sum(a * x.astype("f8") + b * m.astype("f8") for a, b, (x, m) in terms)
        pairs.append((starts[i + 1], np.asarray(total, np.float32)))
    end = loop.run_stage("end", independent_loop.Pass(starts[-1]))
    name = loop.flow["picture"]
    return [*pairs, (golden["picture"], end[name["call"]][name["name"]])]


def test_it_refuses_in_one_line(request_: dict[str, Any], tmp_path: Path) -> None:
    folder = vectors.edited(
        {"edits": [{"op": "set", "path": ["schema_version"], "value": "1.3"}]}, tmp_path
    )
    command = [sys.executable, "-I", str(SCRIPT), str(folder), "-o", str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    expected = (
        "independent_loop.py: refused by rule 2: schema 1.3: of another version; export it again"
    )
    assert (done.returncode, done.stderr.splitlines()) == (1, [expected])
    assert not (tmp_path / "x.png").exists()


# ------------------------------------------------------------------------------- fresh bundles


def export(folder: Path, task: str | list[str], out: Path, batch: int) -> Bundle:
    settings: dict[str, Any] = {"target": "onnx", "scheme": "fp32", "bake_steps": (4,)}
    settings |= {"height": 48, "width": 32, "batch": batch}
    return exporter.export(options.resolve(model=folder, task=task, out=out, **settings))


def latent_of(exported: Bundle, task: str | None = None) -> tuple[int, int, int]:
    latent = runner.open_loop(exported, task).latent
    assert latent is not None
    return latent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "task", "batch"),
    [("atom", PATCH, 1), pytest.param("tiny-sdxl", BLEND, 2, marks=pytest.mark.exhaustive)],
)
def test_fresh_bundles_with_a_mask(
    architecture: str,
    task: dict[str, Any],
    batch: int,
    make_tiny: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Without guidance; and SDXL, Euler's scaled inputs, three branches in batches of two."""
    assert targets.runtime(targets.load("onnx")).runner()[0]
    (tmp_path / "task.json").write_text(json.dumps(task), "utf-8")
    source = make_tiny(architecture, whole=True, tasks=[str(tmp_path / "task.json")])
    exported = export(source, task["name"], tmp_path / "bundle", batch)
    y, x = np.mgrid[0:71, 0:97]
    disc = 255 * np.exp(-((x - 50) ** 2 + (y - 30) ** 2) / 400)
    alpha = np.where(x < 12, 0, 255)
    mask = np.stack([disc, disc * 0.8, disc, alpha], -1)
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "mask.png")
    np.save(tmp_path / "noise.npy", sampler.noise((1, *latent_of(exported)), 3))
    arguments = ["--image", str(TESTDATA / "input.png"), "--mask", str(tmp_path / "mask.png")]
    arguments += ["--noise", str(tmp_path / "noise.npy"), "--steps", "4"]
    arguments += [] if task["prompt"] is not None else ["--prompt", "Two RED dogs, it's a photo!"]
    expected = ours(exported.folder, tmp_path / "ours.png", *arguments)
    assert psnr(expected, alone(exported.folder, tmp_path / "alone.png", *arguments)) >= FLOOR_DB


@pytest.mark.slow
def test_a_bundle_of_several_tasks(atom_pipeline: Path, tmp_path: Path) -> None:
    exported = export(atom_pipeline, ["t2i", "edit", "sr"], tmp_path / "bundle", 1)
    assert not (exported.folder / "model_index.json").exists()  # it would name one UNet
    np.save(tmp_path / "noise.npy", sampler.noise((1, *latent_of(exported, "t2i")), 3))
    for task in ("t2i", "edit", "sr"):
        arguments = ["--task", task, "--noise", str(tmp_path / "noise.npy"), "--steps", "4"]
        arguments += ["--image", str(TESTDATA / "input.png")] if task != "t2i" else []
        arguments += ["--prompt", "a green star"] if task != "sr" else []
        expected = ours(exported.folder, tmp_path / f"{task}.png", *arguments)
        picture = alone(exported.folder, tmp_path / f"{task}-alone.png", *arguments)
        assert psnr(expected, picture) >= FLOOR_DB
