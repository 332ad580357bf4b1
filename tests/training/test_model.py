"""What comes in and what goes out: dense, upcycled and MTU models, read by others' code."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from mtu_export import checkpoint, training
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import CheckpointError, OutputExists, PlanError, Unsupported
from mtu_export.training import Upcycling, model
from tests.training.world import World, four, recipe

SMALL = Upcycling(experts=2, rescale=True, task_embedding_dim=16, router_hidden_dim=16)


@pytest.mark.slow
def test_a_dense_unet_is_widened_and_stays_stock(dense: Path, tmp_path: Path) -> None:
    options = recipe(dense, tmp_path, steps=1, tasks=("edit",), train="all", learning_rate=1e-12)
    training.train(options, four())
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    before = UNet2DConditionModel.from_pretrained(dense, subfolder="unet")
    assert (before.config["in_channels"], unet.config["in_channels"]) == (4, 8)
    x, text = torch.randn(1, 8, 4, 4), torch.randn(1, 77, 32)
    with torch.no_grad():
        after = unet(x, 5, text).sample
        assert torch.allclose(before(x[:, :4], 5, text).sample, after, atol=1e-5)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    # a second round begins with the wider one, and replaces only what was made here
    again = recipe(tmp_path / "out", tmp_path / "b", steps=1, tasks=("edit",), train="all")
    training.train(again, four())
    with pytest.raises(OutputExists):
        training.train(again, four())
    training.train(again, four(), force=True)
    shutil.copytree(dense, tmp_path / "theirs")
    with pytest.raises(PlanError, match="--force replaces only what this command made"):
        training.train(replace(again, output=tmp_path / "theirs"), four(), force=True)
    with pytest.raises(CheckpointError, match=r"the UNet takes 8 channels, task 'fill' needs 9"):
        training.train(
            recipe(tmp_path / "out", tmp_path / "c", tasks=("fill",), train="all"), four()
        )


def test_a_dense_pipeline_loads_in_diffusers(dense: Path, tmp_path: Path) -> None:
    options = recipe(dense, tmp_path, steps=1, tasks=("t2i",), train="all", output_dtype="fp16")
    training.train(options, four())
    extra: Any = {"safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", **extra)
    picture = pipe("a square", num_inference_steps=2, height=32, width=32, output_type="np")
    assert picture.images.shape == (1, 32, 32, 3)  # type: ignore[union-attr]
    headers = checkpoint.headers(tmp_path / "out" / "unet")
    assert {header.dtype for header in headers.values()} == {"F16"}


def test_a_dense_unet_is_upcycled_first(dense: Path, tmp_path: Path) -> None:
    options = recipe(dense, tmp_path, steps=1, tasks=("t2i", "edit"), upcycle=SMALL)
    training.train(options, four())
    unet = mtu.load(tmp_path / "out")
    assert [task.name for task in unet.tasks] == ["t2i", "edit"]
    assert unet.config["num_experts"] == 2
    assert unet.config["_rescale"] == 2
    start = checkpoint.headers(tmp_path / "state" / "upcycled" / "unet")
    after = checkpoint.headers(tmp_path / "out" / "unet")
    for name, value in start.items():
        assert value.shape == after[name].shape
        kept = torch.equal(checkpoint.tensor(start, name), checkpoint.tensor(after, name))
        # behind a second layer of zeros the router's first has no gradient, and its bias no decay
        still = name.endswith("router.fc1.bias") or not model.MTU_NAMES.fullmatch(name)
        assert kept == still, name


def test_experts_of_other_options_are_made_anew_or_refused(dense: Path, tmp_path: Path) -> None:
    """A dry run leaves experts in the state folder; the config is changed; then it is trained."""
    source = Path(shutil.copytree(dense, tmp_path / "source"))
    options = recipe(source, tmp_path, steps=1, batch_size=1, tasks=("t2i", "edit"), upcycle=SMALL)
    training.rehearse(options, four(), seconds=0.0)
    other = replace(options, tasks=("t2i", "sr"), upcycle=replace(SMALL, experts=4))
    training.train(other, four())
    config = mtu_config.read_config(tmp_path / "out")
    assert config["num_experts"] == 4
    assert [task.name for task in mtu_config.tasks(config)] == ["t2i", "sr"]
    with pytest.raises(PlanError, match=r"of another run: tasks is .* name another folder"):
        training.train(options, four(), force=True)
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({n: v * 2 for n, v in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(PlanError, match="of another run: weights of the model is"):
        training.train(other, four(), force=True)


def test_an_output_is_no_home_of_what_the_run_needs(four_tasks: Path, tmp_path: Path) -> None:
    options = recipe(four_tasks, tmp_path, steps=1)
    shutil.copytree(four_tasks, tmp_path / "run")
    (tmp_path / "run" / "set").mkdir()
    for change, key in (
        ({"state": tmp_path / "run" / "state"}, "state"),
        ({"state": tmp_path / "run"}, "state"),
        ({"latents": tmp_path / "run" / "a" / "b"}, "latents"),
        ({"data_folder": tmp_path / "run" / "set"}, "data_folder"),
    ):
        changed = replace(options, output=tmp_path / "run", **change)
        with pytest.raises(PlanError, match=f"is or holds {key} "):
            training.train(changed, four(), force=True)
    for key in ("state", "latents", "data_folder"):
        inside = replace(options, **{key: tmp_path / "run", "output": tmp_path / "run" / "a"})
        with pytest.raises(PlanError, match=f"lies inside {key} "):
            training.train(inside, four(), force=True)
    assert (tmp_path / "run" / "set").is_dir()
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.slow
def test_what_is_trained_is_inspected_and_folds(
    four_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export import exporter
    from mtu_export.exporter import inspection, options

    training.train(recipe(four_tasks, tmp_path, steps=1, ema_decay=0.9), four())
    summary = inspection.of_checkpoint(tmp_path / "out")
    assert [entry["task"] for entry in summary["tasks"]] == ["t2i", "edit", "sr", "inpaint"]
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} == set(summary["parts"])
    out = tmp_path / "folded"
    exporter.save_folded(
        options.resolve(target="diffusers", model=tmp_path / "out", task="sr", out=out)
    )
    folded = UNet2DConditionModel.from_pretrained(out)
    live = mtu.load(tmp_path / "out")
    x, text = torch.randn(1, 8, 4, 4), torch.randn(1, 77, 32)
    with torch.no_grad():
        assert torch.allclose(
            folded(x, 5, text).sample, live(x, 5, text, task="sr").sample, atol=1e-4
        )


@pytest.mark.slow
def test_sdxl_and_all_kinds_of_conditioning(
    pipeline: Path, pipeline_sdxl: Path, tmp_path: Path
) -> None:
    for number, source in enumerate((pipeline, pipeline_sdxl)):
        run_folder = tmp_path / str(number)
        training.train(recipe(source, run_folder, steps=1, batch_size=1, ema_decay=0.9), World())
        mtu.load(run_folder / "out")


def test_schedulers(tmp_path: Path) -> None:
    scheduler_folder = tmp_path / "scheduler"
    scheduler_folder.mkdir()
    assert model.noise_schedule(tmp_path / "none").config["beta_end"] == 0.012
    path = scheduler_folder / "scheduler_config.json"
    path.write_text('{"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}')
    assert model.noise_schedule(tmp_path).config["prediction_type"] == "v_prediction"
    for text, message in (
        ('{"prediction_type": "sample"}', "prediction_type 'sample' cannot be trained"),
        ('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "flow matching cannot be trained"),
    ):
        path.write_text(text)
        with pytest.raises(Unsupported, match=message):
            model.noise_schedule(tmp_path)
    path.write_text('{"beta_schedule": "wavy"}')
    with pytest.raises(CheckpointError, match="does not describe a noise schedule"):
        model.noise_schedule(tmp_path)


def test_v_prediction_is_the_velocity(four_tasks: Path, tmp_path: Path) -> None:
    """With zero weights the prediction is the bias of the last layer: the loss says the target."""
    from diffusers import DDPMScheduler

    from mtu_export.training.draws import draws
    from tests.training.world import SIDE, rows

    source = Path(shutil.copytree(four_tasks, tmp_path / "source"))
    path = source / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    state |= {n: v * 0 for n, v in state.items() if n.startswith("conv_out")}
    save_file(state, file, metadata={"format": "pt"})
    training.train(recipe(source, tmp_path, steps=1, batch_size=1, cache_latents=True), four())
    drawn = draws(0, 0, "t2i", 1, (4, SIDE // 8, SIDE // 8), 1000)
    from mtu_export.training.draws import Order

    (index,) = Order(0, "t2i", 5).indices(0, 1)
    latents = load_file(tmp_path / "state" / "latents" / "t2i" / "000000.safetensors")
    clean = latents["mean"][index] + latents["std"][index] * drawn.posterior[0]
    schedule: Any = DDPMScheduler.from_pretrained(source / "scheduler")
    velocity = schedule.get_velocity(clean[None], drawn.noise, drawn.timesteps)
    assert float(rows(tmp_path)[0]["loss"]) == pytest.approx(float(velocity.square().mean()))
