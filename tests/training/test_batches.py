"""Inputs of a step against what the exported loop feeds its UNet; draws and dropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.graph import capture
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu.model import MTUModel
from mtu_export.models.pipeline import stock
from mtu_export.spec import Arrays, Guidance, Pass, Session, Task, TensorSpec
from mtu_export.training.batches import Encoder, Live, without_image
from mtu_export.training.draws import Order, draws, dropped
from mtu_export.training.text import Texts
from tests.training.world import SIDE, TASKS, World

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TASKS)
def test_channels_are_those_of_the_exported_loop(pipeline: Path, name: str) -> None:
    model = MTUModel(pipeline)
    task = next(task for task in model.tasks if task.name == name)
    encoder, world = Encoder(pipeline, CPU), World((name,), 3)
    live = Live(world, {name: [0, 1, 2]}, encoder, (SIDE, SIDE))
    batch = live.batch(task, [2, 0])
    graph = stock.vae_encoder_graph(stock.load_vae(pipeline), SIDE, SIDE)

    def encode(inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(capture.run(graph, [inputs])[0])

    for place, sample_index in enumerate((2, 0)):
        sample = world[sample_index]
        image = sample.image if sample.condition is None else sample.condition
        if image.shape[-1] != SIDE:
            image = torch.nn.functional.interpolate(
                image[None], (SIDE, SIDE), mode="bicubic", antialias=True
            )[0].clamp(-1, 1)
        pictures = {"image": image[None].numpy()}
        pictures |= {} if sample.mask is None else {"mask": sample.mask[None].numpy()}
        without, full = _channels(model, task, pictures, encode, live.latent)
        channels_ = batch.channels[place : place + 1]
        np.testing.assert_allclose(channels_.numpy(), full, rtol=0, atol=2e-6)
        bare = without_image(task, channels_, torch.tensor([True]))
        np.testing.assert_allclose(bare.numpy(), without, rtol=0, atol=2e-6)
        assert torch.equal(without_image(task, channels_, torch.tensor([False])), channels_)
        assert full.shape[1] == task.channels
    assert batch.prompts == (["", ""] if name == "sr" else [world[2].prompt, world[0].prompt])


def _channels(
    model: MTUModel,
    task: Task,
    pictures: dict[str, np.ndarray],
    encode: Session,
    latent: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """What the exported loop's UNet gets after the latent, without and with the image."""
    flow, empty = model.flow(task), np.zeros((1, 77, 8), np.float32)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "text_encoder": {"input_ids": (1, 77)},
        "vae_encoder": {"sample": (1, 3, SIDE, SIDE)},
        "unet": {
            "sample": (1, 4 + task.channels, *latent),
            "timestep": (1,),
            "encoder_hidden_states": empty.shape,
        },
    }
    specs = {
        part: [TensorSpec(name=name, shape=shape) for name, shape in inputs.items()]
        for part, inputs in shapes.items()
    }
    names = ("empty", f"prompt/{task.name}")
    evaluation = Evaluation(
        flow,
        model.inputs(task),
        specs,
        {f"{name}/encoder_hidden_states": empty for name in names},
        Guidance(kind="text_image", text=2.0, image=2.0),
        Request(prompt="", noise=None, steps=1, negative_prompt="", pictures=pictures),
        lambda *_: np.zeros((1, 77), np.int32),
    )
    for call in flow.of("once"):
        encoded = {"hidden_states": empty}
        evaluation.run_once(call, encode if call.part == "vae_encoder" else lambda _, e=encoded: e)
    samples: list[np.ndarray] = []

    def unet(inputs: Arrays) -> dict[str, np.ndarray]:
        samples.append(inputs["sample"])
        return {"out_sample": inputs["sample"][:, :4]}

    step = Pass(timestep=1.0, input_scale=1.0, x=(1, 0, 0, 0), m=(0, 0, 0, 0))
    evaluation.denoiser({"unet": unet})(np.zeros((1, 4, *latent), np.float32), step)
    neither, _, both = (sample[:, 4:] for sample in samples)
    return neither, both


def test_targets_are_the_scaled_posterior(pipeline: Path) -> None:
    task = mtu_config.tasks(mtu_config.read_config(pipeline))[0]
    live = Live(World(("t2i",), 3), {"t2i": [0, 1, 2]}, Encoder(pipeline, CPU), (SIDE, SIDE))
    batch = live.batch(task, [1])
    vae = AutoencoderKL.from_pretrained(pipeline / "vae")
    with torch.no_grad():
        expected = vae.encode(World(("t2i",), 3)[1].image[None]).latent_dist  # type: ignore[union-attr]
    scale = vae.config["scaling_factor"]
    assert torch.allclose(batch.mean, expected.mean * scale, atol=1e-6)
    assert torch.allclose(batch.std, expected.std * scale, atol=1e-6)


def test_texts_are_those_of_the_exported_encoders(pipeline: Path, pipeline_sdxl: Path) -> None:
    prompts = ["a red circle", "", "make it blue " * 40, "a red circle"]
    for folder, xl in ((pipeline, False), (pipeline_sdxl, True)):
        texts = Texts(folder, mtu_config.read_config(folder), CPU)
        lost = [False, False, False, True]
        text_embeddings = texts.of(prompts, lost)
        for number_of_prompt, prompt in enumerate(prompts[:3]):
            hidden = []
            for number, (clip_tokenizer, module) in enumerate(texts.encoders):
                graph = stock.text_encoder_graph(
                    module, module.config, penultimate=xl, pooled=xl and number == 1
                )
                out = capture.run(graph, [{"input_ids": clip_tokenizer.encode(prompt)[0]}])[0]
                hidden.append(out["hidden_states"])
                if xl and number == 1:
                    embedding = text_embeddings["text_embeds"][number_of_prompt].numpy()
                    np.testing.assert_allclose(embedding, out["pooled"][0], atol=2e-5)
            embedding = text_embeddings["encoder_hidden_states"][number_of_prompt].numpy()
            np.testing.assert_allclose(embedding, np.concatenate(hidden, -1)[0], atol=2e-5)
        gone = text_embeddings["encoder_hidden_states"][3]
        assert torch.equal(gone, gone * 0 if xl else text_embeddings["encoder_hidden_states"][1])
        assert set(text_embeddings) == {"encoder_hidden_states", *(["text_embeds"] if xl else [])}


def test_the_memory_of_prompts_is_bounded(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtu_export.training import text

    texts = Texts(pipeline, mtu_config.read_config(pipeline), CPU)
    embedding_bytes = 77 * 32 * 4
    monkeypatch.setattr(text, "_KEPT_BYTES", 3 * embedding_bytes)
    before = texts.of(["p0", "p1", "p2", "p3", "p4"])["encoder_hidden_states"]
    assert (len(texts.kept), texts.bytes) == (3, 3 * embedding_bytes)
    assert torch.equal(texts.of(["p0"])["encoder_hidden_states"][0], before[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_has_every_sample_once(count: int, number: int, seed: int) -> None:
    order = Order(seed, "edit", count)
    steps = range(-(-3 * count // number))
    places = [place for step in steps for place in order.indices(step, number)]
    for epoch in range(3):
        assert sorted(places[epoch * count : (epoch + 1) * count]) == list(range(count))
    late = Order(seed, "edit", count).indices(len(steps) - 1, number)
    assert late == places[-number:]


def test_draws_depend_on_seed_step_and_task_alone() -> None:
    first = draws(1, 2, "sr", 4, (4, 2, 2), 1000)
    again = draws(1, 2, "sr", 4, (4, 2, 2), 1000)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.timesteps, again.timesteps)
    for key in ((2, 2, "sr"), (1, 3, "sr"), (1, 2, "edit")):
        assert not torch.equal(draws(*key, 4, (4, 2, 2), 1000).noise, first.noise)
    many = draws(0, 0, "sr", 20_000, (1, 1, 1), 1000)
    assert (int(many.timesteps.min()), int(many.timesteps.max())) == (0, 999)
    assert abs(float(many.noise.mean())) < 0.03
    assert abs(float(many.posterior.std()) - 1) < 0.03
    assert (
        abs(float(torch.corrcoef(torch.cat([many.noise, many.posterior], 1)[:, :, 0, 0].T)[0, 1]))
        < 0.03
    )


@pytest.mark.parametrize(
    ("kind", "scales", "expected"),
    [
        ("none", {}, (0.0, 0.0, 0.0)),
        ("text", {"text": 1.0}, (0.2, 0.0, 0.0)),
        ("text_image", {"text": 1.0, "image": 1.0}, (0.1, 0.1, 0.1)),
    ],
)
def test_dropout_is_instruct_pix2pix(
    kind: str, scales: dict[str, float], expected: tuple[float, float, float]
) -> None:
    guidance = Guidance(kind=kind, **scales)
    task = Task(name="x", index=0, conditioning=(), guidance=guidance, steps=1)
    u = draws(0, 0, "x", 100_000, (1, 1, 1), 10).dropout
    prompt, image = dropped(task, u, 0.1)
    masks = ((prompt & ~image), (image & ~prompt), (prompt & image))
    for mask, share in zip(masks, expected, strict=True):
        assert abs(float(mask.float().mean()) - share) < 0.005
    assert not any(bool(m.any()) for m in dropped(task, u, 0.0))
