"""The loop of one picture: batches of branches, conditioning, constants, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export import bundle
from mtu_export.bundle import denoising, images, runner, sampler
from mtu_export.bundle.denoising import Request
from mtu_export.spec import BundleError, Guidance, PlanError, TensorSpec, ToolchainError
from tests.support import handmade

SIZE, CELLS = (handmade.HEIGHT, handmade.WIDTH), (2, 3)
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)
MASK = np.zeros((1, 1, *SIZE), np.float32)
MASK[..., 3:, 5:] = 1


def encode(image: np.ndarray) -> np.ndarray:
    """A stand-in for a VAE encoder: the mean of each cell's red, four times."""
    red = image[:, :1].reshape(1, 1, 2, 8, 3, 8).mean((3, 5))
    return np.repeat(red, 4, 1).astype(np.float32)


def request(name: str, **overrides: Any) -> Request:
    kinds = {entry.kind for entry in handmade.task(name).conditioning}
    fields = {
        "prompt": "a red cat",
        "noise": denoising.noise((1, 4, *CELLS), 1),
        "steps": 4,
        "image": IMAGE if kinds - {"mask"} else None,
        "mask": MASK if "mask" in kinds else None,
    }
    return Request(**{**fields, **overrides})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: handmade.write(root / name, name) for name in handmade.TASKS}


# ---------------------------------------------------------------------------------- conditioning


def test_conditioning_of_every_kind_in_the_order_of_the_task() -> None:
    fill = handmade.task("fill")
    full, without = denoising.conditioning(fill, request("fill"), encode, 0.5, CELLS)
    masked = encode(images.masked_image(IMAGE, MASK))
    np.testing.assert_array_equal(full[:, :1], MASK[..., ::8, ::8])
    np.testing.assert_allclose(full[:, 1:], masked * np.float32(0.5))
    np.testing.assert_array_equal(without[:, :1], full[:, :1])
    assert not without[:, 1:].any()

    sr = handmade.task("sr")
    full, without = denoising.conditioning(sr, request("sr"), encode, 0.5, CELLS)
    cells = IMAGE.reshape(1, 3, 2, 8, 3, 8).mean((3, 5))
    np.testing.assert_allclose(full, cells, atol=1e-6)
    assert not without.any()

    t2i = handmade.task("t2i")
    for channels in denoising.conditioning(t2i, request("t2i"), encode, 0.5, CELLS):
        assert channels.shape == (1, 0, *CELLS)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_latent_is_scaled_unless_the_task_says_no(scaled: bool) -> None:
    task = handmade.task("edit")
    entry = replace(task.conditioning[0], scaled=scaled)
    task = replace(task, conditioning=(entry,))
    full, without = denoising.conditioning(task, request("edit"), encode, 0.5, CELLS)
    np.testing.assert_allclose(full, encode(IMAGE) * (0.5 if scaled else 1), rtol=1e-6)
    assert not without.any()


@pytest.mark.parametrize(("name", "field"), [("edit", "image"), ("fill", "mask"), ("sr", "image")])
def test_what_a_task_needs(name: str, field: str) -> None:
    with pytest.raises(PlanError, match=f"task '{name}' needs --{field}"):
        denoising.conditioning(
            handmade.task(name), request(name, **{field: None}), encode, 0.5, CELLS
        )


# ------------------------------------------------------------------------------------- branches


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    guidance=st.sampled_from(
        [
            Guidance(kind="none"),
            Guidance(kind="text", text=7.5),
            Guidance(kind="text_image", text=7.5, image=1.5),
        ]
    ),
)
def test_any_batch_gives_what_one_branch_after_the_other_gives(
    batch: int, guidance: Guidance
) -> None:
    shapes: list[tuple[int, ...]] = []

    def session(inputs: Any) -> dict[str, np.ndarray]:
        shapes.append(inputs["sample"].shape)
        assert inputs["timestep"].tolist() == [981]
        mean = inputs["words"].mean((1, 2)).reshape(-1, 1, 1, 1)
        return {"out_sample": inputs["sample"][:, :4] + inputs["sample"][:, 4:].sum() * 0 + mean}

    specs = [
        TensorSpec(name="sample", shape=(batch, 6, *CELLS)),
        TensorSpec(name="timestep", shape=(1,)),
        TensorSpec(name="words", shape=(batch, 5, 7)),
    ]
    text_inputs = tuple({"words": np.full((1, 5, 7), v, np.float32)} for v in (0.25, -1.0))
    channels = (np.ones((1, 2, *CELLS), np.float32), np.zeros((1, 2, *CELLS), np.float32))
    x = denoising.noise((1, 4, *CELLS), 3)
    actual = denoising.denoiser(session, specs, guidance, text_inputs, channels)(x, 981.0)  # type: ignore[arg-type]
    offsets = [0.25 if branch.text else -1.0 for branch in sampler.branches(guidance)]
    expected = sampler.guide(guidance, [x + np.float32(v) for v in offsets])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert shapes == [(batch, 6, *CELLS)] * -(-guidance.passes // batch)


# ------------------------------------------------------------------------------------ whole loops


@pytest.mark.parametrize("name", list(handmade.TASKS))
def test_every_task_makes_a_picture(bundles: dict[str, Path], name: str) -> None:
    loop = runner.open_loop(bundle.read(bundles[name]))
    seen: list[tuple[int, int]] = []
    latents, image = runner.generate(
        loop, request(name), lambda number, count, x: seen.append((number, count))
    )
    assert seen == [(i, 5) for i in range(1, 6)]
    assert (len(latents), image.shape) == (5, (1, 3, *SIZE))
    assert 0.05 < image.std() < 1
    np.testing.assert_array_equal(runner.preview(loop, latents[-1]), image)
    _, again = runner.generate(loop, request(name))
    np.testing.assert_array_equal(again, image)
    _, other = runner.generate(loop, request(name, steps=2))
    assert np.abs(other - image).max() > 1e-3


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_the_batch_of_the_denoiser_does_not_change_the_picture(
    bundles: dict[str, Path], tmp_path: Path, batch: int
) -> None:
    one = runner.generate(runner.open_loop(bundle.read(bundles["edit"])), request("edit"))[1]
    folder = handmade.write(tmp_path / "many", batch=batch)
    many = runner.generate(runner.open_loop(bundle.read(folder)), request("edit"))[1]
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_what_is_asked_counts(bundles: dict[str, Path]) -> None:
    """Prompt, image, noise and both scales change the picture; a fixed prompt's words do not."""
    loop = runner.open_loop(bundle.read(bundles["edit"]))
    base = runner.generate(loop, request("edit"))[1]
    for changes in (
        {"prompt": "a blue dog"},
        {"image": -IMAGE},
        {"noise": denoising.noise((1, 4, *CELLS), 2)},
        {"guidance": Guidance(kind="text_image", text=1.0, image=1.5)},
        {"guidance": Guidance(kind="text_image", text=3.0, image=4.0)},
    ):
        assert np.abs(runner.generate(loop, request("edit", **changes))[1] - base).max() > 1e-4
    sr = runner.open_loop(bundle.read(bundles["sr"]))
    one, other = (runner.generate(sr, request("sr", prompt=p))[1] for p in ("a cat", ""))
    np.testing.assert_array_equal(one, other)
    assert runner.truncated_text(sr, "photo " * 99) == ""


def test_the_loop_is_the_formula_by_hand(bundles: dict[str, Path]) -> None:
    """With onnxruntime and numpy alone, from the manifest, as an app would do it."""
    import onnxruntime

    folder = bundles["t2i"]
    manifest = json.loads((folder / "manifest.json").read_text())
    sessions: dict[str, Any] = {
        row["component"]: onnxruntime.InferenceSession(folder / row["path"] / "model.onnx")
        for row in manifest["parts"]
    }
    loop = runner.open_loop(bundle.read(folder))
    from mtu_export.bundle import tokenizer

    ids, _ = tokenizer.load(folder / "tokenizer").encode("a red cat")
    (embeddings,) = sessions["text_encoder"].run(None, {"input_ids": ids})
    empty = loop.constants["empty/encoder_hidden_states"]
    x = request("t2i").noise
    for row in manifest["loop"]["schedules"]["4"]["passes"]:
        outputs = [
            sessions["unet"].run(
                None,
                {
                    "sample": x * np.float32(row["input_scale"]),
                    "timestep": np.array([row["timestep"]], np.float32),
                    "encoder_hidden_states": text,
                },
            )[0]
            for text in (empty, embeddings)
        ]
        m = outputs[0] + 4.0 * (outputs[1] - outputs[0])
        x = (row["x"][0] * x + row["m"][0] * m).astype(np.float32)
    scaled = x / np.float32(handmade.SCALING)
    (image,) = sessions["vae_decoder"].run(None, {"latent_sample": scaled})
    np.testing.assert_allclose(runner.generate(loop, request("t2i"))[1], image, atol=1e-5)


def test_a_long_prompt_says_what_is_cut(bundles: dict[str, Path]) -> None:
    loop = runner.open_loop(bundle.read(bundles["edit"]))
    assert runner.truncated_text(loop, "photo " * 75) == ""
    assert runner.truncated_text(loop, "photo " * 75 + "of a Cat") == "of a Cat"
    with pytest.raises(PlanError, match="half a character"):
        runner.truncated_text(loop, "\ud800")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 3}, "no table for 3 steps; it has: 2, 4"),
        ({"steps": 0}, "no table for 0 steps"),
        ({"noise": np.zeros((1, 4, 3, 2), np.float32)}, r"noise must be float32 \[1, 4, 2, 3\]"),
        ({"noise": np.zeros((1, 4, 2, 3))}, "got float64"),
        ({"image": IMAGE[..., 1:]}, "image must be float32"),
        ({"mask": MASK[0]}, "mask must be float32"),
    ],
)
def test_requests_that_are_refused(
    bundles: dict[str, Path], overrides: dict[str, Any], message: str
) -> None:
    loop = runner.open_loop(bundle.read(bundles["fill"]))
    with pytest.raises(PlanError, match=message):
        runner.generate(loop, request("fill", **overrides))


def test_the_task_is_named_where_it_must_be(bundles: dict[str, Path]) -> None:
    exported = bundle.read(bundles["edit"])
    assert runner.open_loop(exported, "edit").task.name == "edit"
    with pytest.raises(PlanError, match="unknown task 'x'; choose from: edit"):
        runner.open_loop(exported, "x")


def test_a_file_that_is_not_what_the_manifest_says(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Another task's UNet under a right hash: its width shows before anything runs."""
    folder = handmade.write(tmp_path / "b", "t2i")
    (folder / "unet" / "model.onnx").write_bytes(
        (bundles["edit"] / "unet" / "model.onnx").read_bytes()
    )
    handmade.reseal(folder)
    loop = runner.open_loop(bundle.read(folder))
    with pytest.raises(BundleError, match="not those of the manifest"):
        runner.generate(loop, request("t2i"))


def test_a_target_that_does_not_run_here_says_so(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.targets.onnx import running as target

    monkeypatch.setattr(target, "runner", lambda: (None, "no runtime here"))
    loop = runner.open_loop(bundle.read(bundles["t2i"]))
    assert loop.runner == "no runtime here"
    with pytest.raises(ToolchainError, match="cannot run here: no runtime here"):
        runner.generate(loop, request("t2i"))
