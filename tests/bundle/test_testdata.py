"""runtime/testdata: whole, small, and what `run` makes of it today is what was committed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from transformers import CLIPTokenizer

from mtu_export import bundle, cli
from mtu_export.bundle import images, runner, sampler, verification
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.metrics import psnr

HERE = Path(__file__).parents[2] / "runtime" / "testdata"
FLOOR_DB = 60.0


@pytest.fixture(scope="module")
def request_() -> dict[str, Any]:
    return json.loads((HERE / "request.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def exported(request_: dict[str, Any]) -> bundle.Bundle:
    return bundle.read(HERE / request_["bundle"])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float32)


def test_it_is_small_and_whole(exported: bundle.Bundle) -> None:
    files = [path for path in HERE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert exported.manifest.schema_version == ".".join(map(str, bundle.SCHEMA))
    assert [task.guidance.kind for task in exported.tasks] == ["text_image"]
    assert exported.manifest.image.height != exported.manifest.image.width


def test_it_verifies(exported: bundle.Bundle) -> None:
    verdicts = verification.verify_bundle(exported)
    parts = exported.task("edit").flow.parts
    assert [v.part for v in verdicts] == [*parts, "pipeline", "pipeline"]
    assert [v.stage for v in verdicts if not v.passed] == ["loop"]  # a figure


def test_run_makes_the_expected_picture(
    request_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", str(HERE / request_["bundle"]), "--prompt", request_["prompt"]]
    arguments += ["--image", str(HERE / request_["image"]), "--steps", str(request_["steps"])]
    for name, noise in (
        ("file.png", ["--noise", str(HERE / request_["noise"])]),
        ("seed.png", ["--seed", str(request_["seed"])]),
    ):
        line = ["mtu-export", *arguments, *noise, "-o", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert psnr(pixels(HERE / request_["picture"]), pixels(tmp_path / name)) >= FLOOR_DB


def test_the_arrays_on_the_way_are_those_of_the_request(
    request_: dict[str, Any], exported: bundle.Bundle
) -> None:
    tensors = load_file(HERE / request_["tensors"])
    loop = runner.open_loop(exported)
    height, width = loop.size
    fitted = images.fit(images.read(HERE / request_["image"]), width, height)
    np.testing.assert_allclose(tensors["image"], fitted, atol=2.1 / 127.5)
    np.testing.assert_array_equal(tensors["noise"], np.load(HERE / request_["noise"]))
    assert loop.latent is not None
    np.testing.assert_array_equal(
        tensors["noise"], sampler.noise((1, *loop.latent), request_["seed"])
    )
    latents, picture = runner.generate(
        loop,
        Request(
            prompt=request_["prompt"],
            noise=tensors["noise"],
            steps=request_["steps"],
            pictures={"image": tensors["image"]},
        ),
    )
    assert len(latents) == sum(name.startswith("latents/") for name in tensors)
    for i, x in enumerate(latents):
        assert psnr(tensors[f"latents/{i}"], x) >= FLOOR_DB
    assert psnr(tensors["picture"], picture) >= FLOOR_DB
    assert np.abs(tensors["picture"]).max() < 3
    assert np.mean(np.abs(tensors["picture"]) > 1) < 0.1, "hardly anything is clipped"


def test_one_ulp_of_noise_moves_nothing(request_: dict[str, Any], exported: bundle.Bundle) -> None:
    """Activations are float32; by ONNX Runtime's default they were int8, and this 53 dB."""
    tensors, loop = load_file(HERE / request_["tensors"]), runner.open_loop(exported)
    fields = {name: request_[name] for name in ("prompt", "steps")}
    noise = np.nextafter(tensors["noise"], np.float32(9))
    request = Request(**fields, pictures={"image": tensors["image"]}, noise=noise)
    assert psnr(tensors["picture"], runner.generate(loop, request)[1]) > 80


def test_tokens_are_those_of_transformers(request_: dict[str, Any]) -> None:
    reference = CLIPTokenizer.from_pretrained(HERE / request_["bundle"] / "tokenizer")
    cases = json.loads((HERE / "tokens.json").read_text("utf-8"))["texts"]
    for case in cases:
        options = {"padding": "max_length", "max_length": 77, "truncation": True}
        assert case["ids"] == reference(case["text"], **options).input_ids
        assert case["text"].endswith(case["cut"])
    ids = load_file(HERE / request_["tensors"])["ids"]
    (prompt,) = (case["ids"] for case in cases if case["text"] == request_["prompt"])
    assert ids.tolist() == [prompt]
    assert any(case["cut"] for case in cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("guidance", "text"), 0.0),
        (("guidance", "image"), 0.0),
        (("flow", "calls", 3, "inputs", "latent_sample", "sources", 0, "divide"), 1e-3),
        (("flow", "calls", 2, "inputs", "sample", "sources", 1, "multiply"), 3.0),
    ],
)
def test_a_changed_recipe_fails_its_golden(
    path: tuple[str | int, ...], value: float, exported: bundle.Bundle, tmp_path: Path
) -> None:
    """An int8 pass's own floor may let these pass; the figure of the export does not."""
    folder = tmp_path / "b"
    shutil.copytree(exported.folder, folder)
    manifest = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
    node = manifest["tasks"][0]
    for step in path[:-1]:
        node = node[step]
    assert path[-1] in node
    node[path[-1]] = value
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    verdicts = verification.verify_bundle(bundle.read(folder))
    assert next(row.passed for row in verdicts if row.stage == "passes") is False
