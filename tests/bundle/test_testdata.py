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
from mtu_export.bundle import denoising, images, runner, verification
from mtu_export.bundle.metrics import psnr

HERE = Path(__file__).parents[2] / "runtime" / "testdata"
FLOOR_DB = 60.0


@pytest.fixture(scope="module")
def request_() -> dict[str, Any]:
    return json.loads((HERE / "request.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def found(request_: dict[str, Any]) -> bundle.Bundle:
    return bundle.read(HERE / request_["bundle"])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float32)


def test_it_is_small_and_whole(found: bundle.Bundle) -> None:
    files = [path for path in HERE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert found.manifest.schema_version == ".".join(map(str, bundle.SCHEMA))
    assert [task.guidance.kind for task in found.tasks] == ["text_image"]
    assert found.manifest.image.height != found.manifest.image.width


def test_it_verifies(found: bundle.Bundle) -> None:
    verdicts = verification.verify_bundle(found)
    assert [v.component for v in verdicts] == [*found.needs("edit"), "pipeline", "pipeline"]
    assert [v.stage for v in verdicts if not v.passed] == ["loop"]  # a figure


def test_run_makes_the_expected_picture(
    request_: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", str(HERE / request_["bundle"]), "--prompt", request_["prompt"]]
    words += ["--image", str(HERE / request_["image"]), "--steps", str(request_["steps"])]
    for name, noise in (
        ("file.png", ["--noise", str(HERE / request_["noise"])]),
        ("seed.png", ["--seed", str(request_["seed"])]),
    ):
        line = ["mtu-export", *words, *noise, "-o", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert psnr(pixels(HERE / request_["picture"]), pixels(tmp_path / name)) >= FLOOR_DB


def test_the_arrays_on_the_way_are_those_of_the_request(
    request_: dict[str, Any], found: bundle.Bundle
) -> None:
    rows = load_file(HERE / request_["tensors"])
    loop = runner.open_loop(found)
    height, width = loop.size
    fitted = images.fit(images.read(HERE / request_["image"]), width, height)
    np.testing.assert_allclose(rows["image"], fitted, atol=2.1 / 127.5)
    np.testing.assert_array_equal(rows["noise"], np.load(HERE / request_["noise"]))
    np.testing.assert_array_equal(
        rows["noise"], denoising.noise((1, *loop.latent), request_["seed"])
    )
    latents, made = runner.generate(
        loop,
        denoising.Request(
            prompt=request_["prompt"],
            noise=rows["noise"],
            steps=request_["steps"],
            image=rows["image"],
        ),
    )
    assert len(latents) == sum(name.startswith("latents/") for name in rows)
    for i, x in enumerate(latents):
        assert psnr(rows[f"latents/{i}"], x) >= FLOOR_DB
    assert psnr(rows["picture"], made) >= FLOOR_DB
    assert np.abs(rows["picture"]).max() < 3
    assert np.mean(np.abs(rows["picture"]) > 1) < 0.1, "hardly anything is clipped"


def test_one_ulp_of_noise_moves_nothing(request_: dict[str, Any], found: bundle.Bundle) -> None:
    """Activations are float32; by ONNX Runtime's default they were int8, and this 53 dB."""
    rows, loop = load_file(HERE / request_["tensors"]), runner.open_loop(found)
    words = {name: request_[name] for name in ("prompt", "steps")}
    noise = np.nextafter(rows["noise"], np.float32(9))
    request = denoising.Request(**words, image=rows["image"], noise=noise)
    assert psnr(rows["picture"], runner.generate(loop, request)[1]) > 80


def test_tokens_are_those_of_transformers(request_: dict[str, Any]) -> None:
    reference = CLIPTokenizer.from_pretrained(HERE / request_["bundle"] / "tokenizer")
    rows = json.loads((HERE / request_["tokens"]).read_text("utf-8"))
    for row in rows:
        words = {"padding": "max_length", "max_length": 77, "truncation": True}
        assert row["ids"] == reference(row["text"], **words).input_ids
        assert row["text"].endswith(row["cut"])
    ids = load_file(HERE / request_["tensors"])["ids"]
    (prompt,) = (row["ids"] for row in rows if row["text"] == request_["prompt"])
    assert ids.tolist() == [prompt]
    assert any(row["cut"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "name", "value"),
    [("guidance", "text", 0.0), ("guidance", "image", 0.0), ("latent", "scaling_factor", 1e-3)],
)
def test_a_changed_recipe_fails_its_golden(
    key: str, name: str, value: float, found: bundle.Bundle, tmp_path: Path
) -> None:
    """An int8 pass's own floor may let these pass; the figure of the export does not."""
    folder = tmp_path / "b"
    shutil.copytree(found.folder, folder)
    said = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
    row = said["tasks"][0]["guidance"] if key == "guidance" else said[key]
    row[name] = value
    (folder / bundle.MANIFEST).write_text(json.dumps(said), "utf-8")
    rows = verification.verify_bundle(bundle.read(folder))
    assert next(row.passed for row in rows if row.stage == "passes") is False
