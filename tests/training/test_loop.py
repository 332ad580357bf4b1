"""Eq. 2 against a plain loop of diffusers' parts; what is trained and what stays; the rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel, CLIPTokenizer

from mtu_export import checkpoint, training
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import ParityError, PlanError
from mtu_export.testing import architectures
from mtu_export.training import model
from mtu_export.training.draws import Order, draws
from mtu_export.training.loop import learning_rate, slices, snr_weights
from mtu_export.training.recipe import Recipe
from tests.training.world import SIDE, World, four, recipe, rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    headers = checkpoint.headers(folder / "unet")
    return {name: checkpoint.tensor(headers, name) for name in headers}


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_step_is_eq_2(four_tasks: Path, tmp_path: Path, gamma: float | None) -> None:
    """A step written down with diffusers and transformers alone, sample by sample."""
    world = four()
    options = recipe(four_tasks, tmp_path, steps=1, snr_gamma=gamma, conditioning_dropout_prob=0.3)
    training.train(options, world)
    unet = mtu.MTUUNet2DConditionModel.from_pretrained(four_tasks, subfolder="unet")
    names = [n for n, _ in unet.named_parameters() if model.MTU_NAMES.fullmatch(n)]
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name in names)
    vae = AutoencoderKL.from_pretrained(four_tasks / "vae")
    scale = vae.config["scaling_factor"]
    noise_schedule: Any = DDPMScheduler.from_pretrained(four_tasks / "scheduler")
    tokens = CLIPTokenizer.from_pretrained(four_tasks / "tokenizer", model_max_length=77)
    text = CLIPTextModel.from_pretrained(four_tasks / "text_encoder")
    chosen = [dict(unet.named_parameters())[name] for name in names]
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, weight_decay=1e-2)
    losses = {}
    for number, task in enumerate(unet.tasks):
        drawn = draws(0, 0, task.name, 2, (4, SIDE // 8, SIDE // 8), 1000)
        samples = [world[4 * row + number] for row in Order(0, task.name, 5).indices(0, 2)]
        loss = torch.zeros(())
        for i, sample in enumerate(samples):
            u, t = float(drawn.dropout[i]), drawn.timesteps[i : i + 1]
            prompt = "" if task.prompt is not None else sample.prompt
            guided = task.guidance.kind
            prompt = "" if guided != "none" and u < 0.6 else prompt
            with torch.no_grad():
                ids = tokens(prompt, padding="max_length", truncation=True, return_tensors="pt")
                hidden = text(ids.input_ids).last_hidden_state
                posterior: Any = vae.encode(sample.image[None]).latent_dist  # type: ignore[union-attr]
                clean = (posterior.mean + posterior.std * drawn.posterior[i]) * scale
                noisy = noise_schedule.add_noise(clean, drawn.noise[i : i + 1], t)
                if sample.condition is not None:
                    condition = sample.condition[None]
                    if condition.shape[-1] != SIDE:
                        condition = torch.nn.functional.interpolate(
                            condition, (SIDE, SIDE), mode="bicubic", antialias=True
                        ).clamp(-1, 1)
                    latent = vae.encode(condition).latent_dist.mode() * scale  # type: ignore[union-attr]
                    gone = guided == "text_image" and 0.3 <= u < 0.9
                    noisy = torch.cat([noisy, latent * (not gone)], 1)
            predicted = unet(noisy, t, hidden, task=task.name).sample
            sample_loss = (predicted - drawn.noise[i]).square().mean()
            if gamma is not None:
                snr = compute_snr(noise_schedule, t)
                sample_loss = sample_loss * float(snr.clamp(max=gamma) / snr)
            loss = loss + sample_loss / len(samples)
        losses[task.name] = loss.item()
        loss.backward()
    for row in rows(tmp_path):
        assert float(row["loss"]) == pytest.approx(losses[row["task"]], rel=1e-4)
    torch.nn.utils.clip_grad_norm_(chosen, 1.0)
    optimizer.step()
    trained = weights(tmp_path / "out")
    for name, parameter in zip(names, chosen, strict=True):
        # Adam's first step is lr · sign(gradient): equal but where a gradient is nearly nothing
        apart = (trained[name] - parameter.detach()).abs() > 1e-5
        assert float(apart.float().mean()) < 2e-3, name


def test_the_rest_of_the_model_stays(four_tasks: Path, tmp_path: Path) -> None:
    training.train(recipe(four_tasks, tmp_path, steps=2, adam_weight_decay=0.1), four())
    before, after = weights(four_tasks), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if model.MTU_NAMES.fullmatch(name)}
    assert changed == expected
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for path in (four_tasks / part).iterdir():
            assert (tmp_path / "out" / part / path.name).read_bytes() == path.read_bytes()


def test_routers_have_a_rate_of_their_own(four_tasks: Path, tmp_path: Path) -> None:
    """Adam's first step is the rate times the gradient's sign, wherever there is a gradient."""
    options = recipe(four_tasks, tmp_path, steps=1, router_learning_rate=1e-5, adam_weight_decay=0)
    training.train(options, four())
    before, after = weights(four_tasks), weights(tmp_path / "out")
    most = {name: float((after[name] - before[name]).abs().max()) for name in before}
    routers = {name for name in most if "router" in name or name == "task_embedding.weight"}
    assert max(most[name] for name in routers) == pytest.approx(1e-5, rel=0.05)
    experts = max(most[name] for name in most if ".ff.experts." in name)
    assert experts == pytest.approx(options.learning_rate, rel=0.05)


def test_all_is_every_parameter(four_tasks: Path, tmp_path: Path) -> None:
    training.train(recipe(four_tasks, tmp_path, steps=1, train="all"), four())
    before, after = weights(four_tasks), weights(tmp_path / "out")
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("norm", ["replace", "stacked"])
def test_the_papers_list_in_sd15(norm: str) -> None:
    """The paper says 158 M of 869 M: experts and routers are 158.3 M, the whole list 158.5 M."""
    from mtu_export.authoring import upcycle
    from mtu_export.models.mtu import presets

    stock = architectures.ARCHITECTURES["sd15"]
    tasks = presets.resolve_tasks(["t2i", "edit", "sr", "inpaint"], stock)
    config = upcycle.mtu_config(stock, tasks, 4, (768, 768), norm)
    with torch.device("meta"):
        unet = mtu.MTUUNet2DConditionModel.from_config(config)
    names = model.trained(unet, "mtu")
    parameters = dict(unet.named_parameters())
    mixed = sum(parameters[name].numel() for name in names if ".ff." in name)
    own = sum(parameters[name].numel() for name in names if ".ff." not in name)
    assert (mixed, own) == (158_333_248, 3_072 + 99_840 + 81_920)
    assert round(sum(parameter.numel() for parameter in parameters.values()) / 1e6) == 869
    frozen = set(parameters) - set(names)
    kinds = ("attn1", "attn2", "resnets", "time_embedding", "norm1", "norm2", "proj_", "samplers")
    own = ("conv_out", "conv_norm_out", "attentions")  # "attentions.*.norm", the group norm
    assert all(any(kind in name for kind in (*kinds, *own)) for name in frozen)
    assert not any(".ff." in name or name.startswith(("conv_in", "task_emb")) for name in frozen)
    shared = {name for name in parameters if name.endswith((".norm3.weight", ".norm3.bias"))}
    assert (len(shared), shared & set(names)) == (32 if norm == "stacked" else 0, set())


@pytest.mark.slow
def test_two_samples_are_learnt_by_heart(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = make_tiny("tiny-half", whole=True, tasks=["t2i", "sr"])
    options = recipe(
        source,
        tmp_path,
        steps=40,
        train="all",
        batch_size=4,
        learning_rate=5e-3,
        cache_latents=True,
        conditioning_dropout_prob=0.0,
        log_every=10,
    )
    training.train(options, World(("t2i", "sr"), 1))
    losses = [float(entry["loss"]) for entry in rows(tmp_path)]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])


@pytest.mark.slow
def test_accumulation_equals_the_larger_batch(four_tasks: Path, tmp_path: Path) -> None:
    whole = recipe(four_tasks, tmp_path / "whole", steps=2, batch_size=4, train="all")
    parts = replace(
        recipe(four_tasks, tmp_path / "parts", steps=2, train="all"),
        gradient_accumulation_steps=2,
    )
    training.train(whole, four())
    training.train(parts, four())
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
    assert same_up_to(tmp_path / "whole" / "out", tmp_path / "parts" / "out")


def same_up_to(one: Path, other: Path) -> bool:
    """Equal but where Adam divides a gradient of nearly nothing by its own size."""
    a, b = weights(one), weights(other)
    apart = torch.cat([((a[name] - b[name]).abs() > 1e-4).flatten() for name in a])
    return float(apart.float().mean()) < 1e-2


def test_processes_and_forwards_share_a_step(tmp_path: Path) -> None:
    options = Recipe(
        model="m", output=tmp_path, steps=1, batch_size=5, gradient_accumulation_steps=2
    )
    taken = [
        place
        for process in range(3)
        for part in slices(options, process, 3)
        for place in range(part.start, part.stop)
    ]
    assert sorted(taken) == list(range(10))
    assert slices(options, 0, 1) == [slice(0, 5), slice(5, 10)]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_rates_are_diffusers(tmp_path: Path, kind: Literal["constant", "cosine"]) -> None:
    options = Recipe(
        model="m", output=tmp_path, steps=20, lr_scheduler=kind, lr_warmup_steps=4, learning_rate=2
    )
    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    for step in range(20):
        assert learning_rate(options, step) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_snr_weights_are_diffusers(kind: Any) -> None:
    schedule = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    times = torch.arange(1000)
    snr = compute_snr(schedule, times)
    expected = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    assert torch.allclose(snr_weights(schedule, times, 5.0), expected, rtol=1e-3)
    zero = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type=kind)
    weights_without_signal = snr_weights(zero, times, 5.0)
    assert bool(torch.isfinite(weights_without_signal).all())
    assert bool((weights_without_signal >= 0).all())
    assert float(weights_without_signal[-1]) == 0


@pytest.mark.slow
def test_averages_are_what_is_written(four_tasks: Path, tmp_path: Path) -> None:
    """diffusers' warm-up of the decay: (1 + n) / (10 + n), 0 at the first step."""
    folders = []
    for steps in (1, 2):
        run_folder = tmp_path / str(steps)
        training.train(recipe(four_tasks, run_folder, steps=steps), four())
        folders.append(weights(run_folder / "out"))
    training.train(recipe(four_tasks, tmp_path, steps=2, ema_decay=0.999), four())
    averages, (first, second) = weights(tmp_path / "out"), folders
    for name in averages:
        expected = first[name] * 2 / 11 + second[name] * 9 / 11
        assert torch.allclose(averages[name], expected, atol=1e-6), name


@pytest.mark.slow
def test_preparing_ahead_and_bf16(
    four_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.training.loop import Trainer

    training.train(recipe(four_tasks, tmp_path / "plain"), four())
    training.train(recipe(four_tasks, tmp_path / "half", mixed_precision="bf16"), four())
    first = Trainer.__post_init__

    def ahead(self: Trainer) -> None:
        self.prefetch = True
        first(self)

    monkeypatch.setattr(Trainer, "__post_init__", ahead)
    training.train(recipe(four_tasks, tmp_path / "ahead", gradient_checkpointing=True), four())
    assert rows(tmp_path / "plain") == rows(tmp_path / "ahead")
    assert same(tmp_path / "plain" / "out", tmp_path / "ahead" / "out")
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "half"), strict=True):
        assert one["loss"] != other["loss"]
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)


def test_a_stale_prefetch_never_runs_beside_a_step() -> None:
    """Orders and the user's data are not made for two threads, also after a state is restored."""
    from mtu_export.training.loop import Trainer

    running, most = [], []

    def prepare(step: int) -> list[int]:
        running.append(step)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(step)
        return [step]

    trainer: Any = object.__new__(Trainer)
    trainer.prefetch, trainer._pool, trainer._next, trainer._prepare = True, None, None, prepare
    assert [trainer._inputs(step) for step in (0, 1, 7, 8)] == [[0], [1], [7], [8]]
    trainer.close()
    assert max(most) == 1


def test_a_loss_that_is_not_finite_stops(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=9, learning_rate=1e9, checkpointing_steps=1)
    with pytest.raises(
        ParityError,
        match=r"step \d: .* is (nan|inf); .*lower learning_rate.*; the state of step \d is in",
    ):
        training.train(options, four())
    assert not (tmp_path / "out").exists()
    (kept,) = (tmp_path / "state").glob("step-*")
    from safetensors.torch import load_file

    assert all(
        bool(torch.isfinite(t).all()) for t in load_file(kept / "state.safetensors").values()
    )


def test_what_cannot_be_trained(
    four_tasks: Path, dense: Path, tmp_path: Path, make_tiny: Callable[..., Path]
) -> None:
    world, steps = four(), {"steps": 1}
    for source, options, message in (
        (four_tasks, {"height": 40}, "height must be a multiple of 16, got 40"),
        (four_tasks, {"tasks": ("sr",)}, "MTU checkpoint with tasks of its own; drop tasks"),
        (dense, {}, "dense UNet; name the tasks to train"),
        (dense, {"tasks": ("sr",)}, "one task and train = 'all', got 1 tasks and train = 'mtu'"),
        (dense, {"tasks": ("sr", "edit"), "train": "all"}, "got 2 tasks"),
        (dense, {"tasks": ("paint",)}, "unknown task preset 'paint'"),
        (
            dense,
            {"tasks": ("t2i",), "train": "all", "router_learning_rate": 1e-4},
            "router_learning_rate: what is trained has no router",
        ),
        (dense, {"output": dense / "x"}, "name the tasks"),
        (four_tasks, {"output": four_tasks / "x"}, "lies inside the model"),
        (four_tasks, {"output": four_tasks}, "is or holds the source"),
    ):
        with pytest.raises(PlanError, match=message):
            training.train(replace(recipe(source, tmp_path, **steps), **options), world)
    with pytest.raises(PlanError, match="name the training set"):
        training.train(recipe(four_tasks, tmp_path), None)
    assert not (tmp_path / "out").exists()
