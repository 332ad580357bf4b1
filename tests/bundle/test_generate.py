"""Whole pictures of whole bundles: what is asked counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle
from mtu_export.bundle import runner, sampler
from mtu_export.bundle.evaluation import Request
from mtu_export.spec import BundleError, Guidance, PlanError, ToolchainError
from tests.support import handmade

SIZE, CELLS = (handmade.HEIGHT, handmade.WIDTH), (2, 3)
RANDOM = np.random.default_rng(0)
PICTURES = {
    "image": RANDOM.uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32),
    "mask": np.zeros((1, 1, *SIZE), np.float32),
}
PICTURES["mask"][..., 3:, 5:] = 1
IMAGE, MASK = PICTURES.values()


def request(name: str, **overrides: Any) -> Request:
    """A request of a task of ``handmade``; at 4 steps, and with strength 0.5 where it has one."""
    spec = handmade.task(name)
    draws = 0 if spec.strength is None else round(spec.strength * overrides.get("steps", 4))
    names = handmade.pictures_of(name)
    fields = {
        "prompt": "a red cat",
        "noise": sampler.noise((1 + draws, 4, *CELLS), 1),
        "steps": 4,
        "strength": spec.strength,
        "pictures": {picture: PICTURES[picture] for picture in names},
    }
    return Request(**{**fields, **overrides})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    folders = {name: handmade.write(root / name, name) for name in handmade.TASKS}
    return {**folders, "translate": handmade.write_translator(root / "translate")}


def picture_of(folder: Path, asked: Request) -> np.ndarray:
    return runner.generate(runner.open_loop(bundle.read(folder)), asked).image


@pytest.mark.parametrize("name", list(handmade.TASKS))
def test_every_task_makes_a_picture(bundles: dict[str, Path], name: str) -> None:
    loop = runner.open_loop(bundle.read(bundles[name]))
    seen: list[tuple[int, int]] = []
    latents, image = runner.generate(
        loop, request(name), lambda number, count, x: seen.append((number, count))
    )
    count = 2 if name == "img2img" else 5
    assert seen == [(i, count) for i in range(1, count + 1)]
    assert (len(latents), image.shape) == (count, (1, 3, *SIZE))
    assert 0.05 < image.std() < 1
    np.testing.assert_array_equal(runner.preview(loop, request(name), latents[-1]), image)
    _, again = runner.generate(loop, request(name))
    np.testing.assert_array_equal(again, image)
    _, other = runner.generate(loop, request(name, steps=2))
    assert np.abs(other - image).max() > 1e-3


@pytest.mark.parametrize("negative", [None, "a blue dog"])
@pytest.mark.parametrize("batch", [2, 3, 4])
def test_the_batch_of_the_denoiser_does_not_change_the_picture(
    bundles: dict[str, Path], tmp_path: Path, batch: int, negative: str | None
) -> None:
    asked = request("edit", negative_prompt=negative)
    folder = handmade.write(tmp_path / "many", batch=batch)
    expected = picture_of(bundles["edit"], asked)
    np.testing.assert_allclose(picture_of(folder, asked), expected, atol=1e-5)


def test_what_is_asked_counts(bundles: dict[str, Path]) -> None:
    """Prompts, image, noise and both scales change the picture; a fixed prompt's words do not."""
    base = picture_of(bundles["edit"], request("edit"))
    for changes in (
        {"prompt": "a blue dog"},
        {"negative_prompt": "a blue dog"},
        {"negative_prompt": ""},
        {"pictures": {"image": -IMAGE}},
        {"noise": sampler.noise((1, 4, *CELLS), 2)},
        {"guidance": Guidance(kind="text_image", text=1.0, image=1.5)},
        {"guidance": Guidance(kind="text_image", text=3.0, image=4.0)},
    ):
        picture = picture_of(bundles["edit"], request("edit", **changes))
        assert np.abs(picture - base).max() > 1e-4, changes
    one, other = (picture_of(bundles["sr"], request("sr", prompt=p)) for p in ("a cat", ""))
    np.testing.assert_array_equal(one, other)
    sr = runner.open_loop(bundle.read(bundles["sr"]))
    assert runner.truncated_text(sr, "photo " * 99) == ""


def test_a_negative_prompt_that_is_the_prompt_is_no_guidance(bundles: dict[str, Path]) -> None:
    """Both branches are the same, so the sum is either, whatever the scale."""
    same = request("t2i", negative_prompt="a red cat")
    unguided = request("t2i", guidance=Guidance(kind="text", text=1.0))
    expected = picture_of(bundles["t2i"], unguided)
    np.testing.assert_allclose(picture_of(bundles["t2i"], same), expected, atol=1e-6)


def test_a_negative_prompt_is_refused_where_guidance_is_none(bundles: dict[str, Path]) -> None:
    for name in ("sr", "translate"):
        loop = runner.open_loop(bundle.read(bundles[name]))
        asked = request("sr", negative_prompt="x")
        with pytest.raises(PlanError, match=f"task '{name}' takes no negative prompt"):
            runner.generate(loop, asked)


def test_a_start_from_a_picture_is_the_formula_by_hand(bundles: dict[str, Path]) -> None:
    """x_0 of picture and noise, and fresh noise after every pass, from the manifest's numbers."""
    folder = bundles["img2img"]
    manifest = json.loads((folder / "manifest.json").read_text())
    loop = runner.open_loop(bundle.read(folder))
    for strength, count in ((0.5, 2), (1.0, 4)):
        noise = sampler.noise((1 + count, 4, *CELLS), 5)
        asked = request("img2img", strength=strength, noise=noise)
        evaluation = runner.prepare(loop, asked)
        denoise = runner.open_denoiser(loop, evaluation)
        (latent,) = [outputs for (name, _), outputs in evaluation.outputs.items() if "vae" in name]
        (table,) = [
            table
            for table in manifest["loop"]["schedules"]
            if (table["steps"], table["strength"]) == (4, strength)
        ]
        start = table["start"]
        x = start["noise"] * noise[:1].astype(np.float64)
        x += np.float32(start["picture"]) * (latent["latent_sample"] * handmade.SCALING)
        for i, row in enumerate(table["passes"]):
            x = x.astype(np.float32)
            m = denoise(np.float32(row["input_scale"]) * x, loop.schedules[4, strength].passes[i])
            x = row["x"][0] * x.astype(np.float64) + row["m"][0] * m
            x = x + row["noise"] * noise[i + 1 : i + 2]
        made = runner.generate(loop, asked).latents
        assert len(made) == count
        np.testing.assert_allclose(made[-1], x, atol=1e-6)


@pytest.mark.parametrize("drawn", [0, 1])
def test_the_noise_of_every_pass_counts(bundles: dict[str, Path], drawn: int) -> None:
    base = request("img2img")
    assert base.noise is not None
    noise = base.noise.copy()
    noise[1 + drawn] += 1
    one, other = (
        picture_of(bundles["img2img"], asked) for asked in (base, request("img2img", noise=noise))
    )
    assert np.abs(one - other).max() > 1e-4


def translation(**overrides: Any) -> Request:
    fields = {
        "prompt": "",
        "noise": None,
        "steps": 1,
        "pictures": {"image": IMAGE / 2 + np.float32(0.5), "hint": IMAGE[:, :1]},
        "tensors": {"labels": IMAGE[:, 1:]},
    }
    return Request(**{**fields, **overrides})


def test_a_flow_without_a_loop_is_one_pass(bundles: dict[str, Path]) -> None:
    """Neither noise nor table; picture, hint, labels and number are those of the request."""
    loop = runner.open_loop(bundle.read(bundles["translate"]))
    assert (loop.latent, loop.schedules) == (None, {})
    seen: list[int] = []
    latents, image = runner.generate(loop, translation(), lambda number, *_: seen.append(number))
    assert (latents, seen) == ([], [])
    weights = np.random.default_rng(1).standard_normal((3, 6), np.float32)
    channels = np.concatenate([IMAGE / 2 + 0.5, IMAGE], 1)
    for amount in (0.5, 2.0):
        image = runner.generate(loop, translation(numbers={"amount": amount})).image
        expected = np.tanh(amount * np.einsum("oc,bchw->bohw", weights, channels))
        np.testing.assert_allclose(image, expected, atol=1e-5)
    default = runner.generate(loop, translation()).image
    np.testing.assert_array_equal(
        default, runner.generate(loop, translation(numbers={"amount": 0.5})).image
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pictures": {}}, "the request has no 'image', which the task needs"),
        ({"tensors": {}}, "the request has no 'labels', which the task needs"),
        ({"tensors": {"labels": IMAGE}}, r"labels must be float32 \[1, 2, 16, 24\]"),
        ({"tensors": {"depth": IMAGE}}, "task 'translate' takes no 'depth'"),
        ({"numbers": {"amount": 2.5}}, "amount must be 0 to 2"),
        ({"numbers": {"amount": float("nan")}}, "amount must be 0 to 2"),
        ({"numbers": {"much": 1.0}}, "task 'translate' takes no 'much'"),
    ],
)
def test_requests_without_a_loop_that_are_refused(
    bundles: dict[str, Path], overrides: dict[str, Any], message: str
) -> None:
    loop = runner.open_loop(bundle.read(bundles["translate"]))
    with pytest.raises(PlanError, match=message):
        runner.generate(loop, translation(**overrides))


def test_a_preview_whose_decoder_takes_what_was_made_once(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """The picture's latent is a legal input of an end call: it is made again."""
    folder = handmade.write(tmp_path / "b", "img2img")
    sources = [{"kind": "output", "call": "vae_encoder", "name": "latent_sample"}]
    handmade.edit(
        folder,
        *("tasks", 0, "flow", "calls", 3, "inputs", "latent_sample", "sources"),
        value=sources,
    )
    loop = runner.open_loop(bundle.read(folder))
    latents, image = runner.generate(loop, request("img2img"))
    np.testing.assert_array_equal(runner.preview(loop, request("img2img"), latents[0]), image)


def test_the_loop_is_the_formula_by_hand(bundles: dict[str, Path]) -> None:
    """With onnxruntime and numpy alone, from the manifest, as an app would do it."""
    import onnxruntime

    folder = bundles["t2i"]
    manifest = json.loads((folder / "manifest.json").read_text())
    sessions: dict[str, Any] = {
        row["name"]: onnxruntime.InferenceSession(folder / row["path"] / "model.onnx")
        for row in manifest["parts"]
    }
    loop = runner.open_loop(bundle.read(folder))
    from mtu_export.bundle import tokenizer

    ids, _ = tokenizer.load(folder / "tokenizer").encode("a red cat")
    (embeddings,) = sessions["text_encoder"].run(None, {"input_ids": ids})
    empty = loop.constants["empty/encoder_hidden_states"]
    x = np.asarray(request("t2i").noise)
    (table,) = [table for table in manifest["loop"]["schedules"] if table["steps"] == 4]
    for row in table["passes"]:
        outputs = [
            sessions["unet"].run(
                None,
                {
                    "sample": x * np.float32(row["input_scale"]),
                    "timestep": np.array([row["columns"]["timestep"]], np.float32),
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
        ({"noise": None}, "task 'fill' needs noise"),
        ({"noise": np.zeros((2, 4, 2, 3), np.float32)}, r"noise must be float32 \[1, 4, 2, 3\]"),
        ({"strength": 0.5}, "no table for strength 0.5 at 4 steps; it has: none"),
        ({"pictures": {**PICTURES, "image": IMAGE[..., 1:]}}, "image must be float32"),
        ({"pictures": {**PICTURES, "mask": MASK[0]}}, "mask must be float32"),
        ({"pictures": {**PICTURES, "hint": MASK}}, "task 'fill' takes no 'hint'"),
        ({"pictures": {"image": IMAGE}}, "the request has no 'mask', which the task needs"),
    ],
)
def test_requests_that_are_refused(
    bundles: dict[str, Path], overrides: dict[str, Any], message: str
) -> None:
    loop = runner.open_loop(bundle.read(bundles["fill"]))
    with pytest.raises(PlanError, match=message):
        runner.generate(loop, request("fill", **overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strength": 0.75}, "no table for strength 0.75 at 4 steps; it has: 0.5, 1"),
        ({"strength": None}, "no table for strength None at 4 steps; it has: 0.5, 1"),
        ({"noise": sampler.noise((1, 4, *CELLS), 1)}, r"noise must be float32 \[3, 4, 2, 3\]"),
    ],
)
def test_requests_of_a_start_that_are_refused(
    bundles: dict[str, Path], overrides: dict[str, Any], message: str
) -> None:
    loop = runner.open_loop(bundle.read(bundles["img2img"]))
    with pytest.raises(PlanError, match=message):
        runner.generate(loop, request("img2img", **overrides))


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
