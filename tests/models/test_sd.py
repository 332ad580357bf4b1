"""Dense pipelines: what is claimed, what its input channels make of it, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtu_export import export, models
from mtu_export.exporter.options import resolve
from mtu_export.spec import CheckpointError, Unsupported
from mtu_export.testing.architectures import ARCHITECTURES, STOCK_PARTS
from mtu_export.testing.dense import write_dense

SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
EDIT, XL_EDIT = "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"
EULER = "EulerDiscreteScheduler"


@pytest.fixture
def configs(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the JSON of a dense pipeline, without weights."""

    def write(
        pipeline: str = SD,
        architecture: str = "tiny",
        scheduler: dict[str, Any] | None = None,
        flags: dict[str, Any] | None = None,
        **unet: Any,
    ) -> Path:
        stock = STOCK_PARTS[architecture]
        index = {"_class_name": pipeline, "unet": ["diffusers", "UNet2DConditionModel"]}
        files: dict[str, dict[str, Any]] = {
            "model_index.json": {**index, **(flags or {})},
            "unet/config.json": {
                "_class_name": "UNet2DConditionModel",
                **ARCHITECTURES[architecture],
                **unet,
            },
            "vae/config.json": {"_class_name": "AutoencoderKL", **stock["vae"]},
            "scheduler/scheduler_config.json": {**stock["scheduler"], **(scheduler or {})},
        }
        for name, value in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(value), "utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("channels", "tasks", "guidance"),
    [
        (4, ["t2i", "img2img"], ("text", 7.5, None)),
        (8, ["edit"], ("text_image", 7.5, 1.5)),
        (9, ["fill"], ("text", 7.5, None)),
    ],
)
@pytest.mark.parametrize("pipeline", [SD, "StableDiffusionImg2ImgPipeline"])
def test_input_channels_say_what_it_does_whatever_the_class(
    configs: Callable[..., Path],
    pipeline: str,
    channels: int,
    tasks: list[str],
    guidance: tuple[str, float, float | None],
) -> None:
    model = models.open(configs(pipeline, in_channels=channels))
    assert (model.family, [task.name for task in model.tasks]) == ("sd", tasks)
    assert model.default_tasks == (tasks[0],)
    chosen = model.tasks[0].guidance
    assert (chosen.kind, chosen.text, chosen.image) == guidance
    assert model.tasks[0].steps == 20
    assert model.tasks[-1].strength == (0.8 if channels == 4 else None)


def test_other_channels_are_refused_with_those_that_mean_something(
    configs: Callable[..., Path],
) -> None:
    with pytest.raises(CheckpointError, match=r"in_channels 5 .* legal: 4 \(t2i, img2img\), 8"):
        models.open(configs(in_channels=5))


@pytest.mark.parametrize(
    ("pipeline", "flags", "scaled"),
    [
        (EDIT, {}, False),
        (XL_EDIT, {}, False),
        (XL_EDIT, {"is_cosxl_edit": True}, True),
        (SD, {}, True),
    ],
)
def test_the_latent_of_the_image_is_scaled_as_the_pipeline_does(
    configs: Callable[..., Path], pipeline: str, flags: dict[str, Any], scaled: bool
) -> None:
    (task,) = models.open(configs(pipeline, flags=flags, in_channels=8)).tasks
    assert task.conditioning[0].scaled is scaled


@pytest.mark.parametrize(
    ("scheduler", "unet"),
    [
        ({"_class_name": "LCMScheduler"}, {}),
        ({"_class_name": "TCDScheduler"}, {}),
        ({"_class_name": EULER, "timestep_spacing": "trailing"}, {}),
        ({}, {"time_cond_proj_dim": 32}),
    ],
)
def test_distilled_models_run_few_steps_without_guidance(
    configs: Callable[..., Path], scheduler: dict[str, Any], unet: dict[str, Any]
) -> None:
    model = models.open(configs(scheduler=scheduler, **unet))
    assert {(task.guidance.kind, task.steps) for task in model.tasks} == {("none", 4)}
    numbers = model.inputs(model.tasks[0]).numbers
    assert list(numbers) == (["guidance_scale"] if unet else [])


def test_a_zero_terminal_snr_is_no_sign_of_few_steps(configs: Callable[..., Path]) -> None:
    scheduler = {"_class_name": EULER, "timestep_spacing": "trailing"}
    model = models.open(configs(scheduler={**scheduler, "prediction_type": "v_prediction"}))
    assert {(task.guidance.kind, task.steps) for task in model.tasks} == {("text", 20)}


def test_few_steps_are_baked_for_a_model_that_runs_few(configs: Callable[..., Path]) -> None:
    folder = configs()
    plan = resolve(target="onnx", model=folder, components=["unet"], out=folder / "out")
    assert plan.steps == (4, 8, 12, 20, 25, 30, 50)
    configs(scheduler={"_class_name": EULER, "timestep_spacing": "trailing"})
    plan = resolve(target="onnx", model=folder, components=["unet"], out=folder / "out")
    assert plan.steps == (1, 2, 4, 8)


@pytest.mark.parametrize("width", [32, 33])
def test_the_guidance_scale_is_embedded_as_diffusers_does(width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
    from torch import nn

    from mtu_export.models.pipeline.unet import GuidedUNetGraph

    unet = UNet2DConditionModel.from_config({**ARCHITECTURES["atom"], "time_cond_proj_dim": width})
    assert isinstance(unet, nn.Module)
    scale = torch.tensor([8.5])
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None,  # type: ignore[arg-type]
        scale - 1,
        width,
    )
    torch.testing.assert_close(GuidedUNetGraph(unet)._embedding(scale, 1), expected)


def test_the_card_says_what_is_not_in_it(configs: Callable[..., Path]) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    notes = models.open(configs(flags={"safety_checker": checker})).notes
    assert any("nothing was folded" in note for note in notes)
    assert any("safety checker is left out" in note for note in notes)
    assert len(models.open(configs(flags={"safety_checker": [None, None]})).notes) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type.*timestep"),
        ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type.*ip_image_proj"),
        ({"addition_embed_type": "image"}, "addition_embed_type.*image"),
        ({"num_class_embeds": 10}, "num_class_embeds.*10"),
        ({"dual_cross_attention": True}, "dual_cross_attention.*[Tt]rue"),
        ({"attention_type": "gated"}, "attention_type.*gated"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat.*[Tt]rue"),
        ({"time_cond_proj_dim": 2}, "time_cond_proj_dim.*2"),
        ({"something_new": 1}, "unknown key 'something_new'"),
    ],
)
def test_options_that_no_graph_holds_are_refused_by_key_and_value(
    configs: Callable[..., Path], option: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        models.open(configs(**option))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("StableDiffusion3Pipeline", r"'StableDiffusion3Pipeline' \(planned\); legal: .*MTUUNet"),
        ("StableDiffusionControlNetPipeline", r"\(planned\); legal: "),
        ("KandinskyV22Pipeline", r"'KandinskyV22Pipeline' \(not planned\); legal: "),
        ("SomebodysPipeline", r"model_index.json says 'SomebodysPipeline'; legal: "),
    ],
)
def test_pipelines_of_no_family_are_named(
    configs: Callable[..., Path], pipeline: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        models.open(configs(pipeline))


def test_a_unet_of_another_class_and_one_that_is_missing_are_told_apart(
    configs: Callable[..., Path],
) -> None:
    folder = configs()
    unet = folder / "unet" / "config.json"
    unet.write_text('{"_class_name": "UNet2DModel"}', "utf-8")
    with pytest.raises(CheckpointError, match=r"unet/config.json says 'UNet2DModel'; legal: "):
        models.open(folder)
    unet.unlink()
    with pytest.raises(CheckpointError, match=r"has no unet/config.json, which its model_index"):
        models.open(folder)


def test_the_refiner_is_refused_by_name(configs: Callable[..., Path]) -> None:
    folder = configs(
        "StableDiffusionXLImg2ImgPipeline",
        "tiny-sdxl",
        flags={"requires_aesthetics_score": True},
    )
    with pytest.raises(CheckpointError, match="refiner is not supported"):
        models.open(folder).require_compatible(())


def test_a_dense_checkpoint_has_nothing_to_fold(configs: Callable[..., Path]) -> None:
    folder = configs()
    with pytest.raises(Unsupported, match="has nothing to fold: its UNet is a stock one"):
        resolve(target="diffusers", model=folder, out=folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("pipeline", models.load("sd").classes[:-1])
def test_every_class_of_its_list_is_claimed_by_it_alone(
    configs: Callable[..., Path], pipeline: str
) -> None:
    folder = configs(pipeline)
    assert [name for name in models.names() if models.load(name).claims(folder)] == ["sd"]
    (folder / "model_index.json").unlink()
    assert models.open(folder).family == "sd"


@pytest.mark.parametrize("channels", [4, 8, 9])
def test_the_folder_of_a_unet_alone_is_a_checkpoint(
    configs: Callable[..., Path], channels: int
) -> None:
    """Its class says what it is; nothing else of a pipeline is there."""
    unet = configs(in_channels=channels) / "unet"
    plan = resolve(target="onnx", model=unet, out=unet / "out")
    assert (plan.model.family, plan.parts) == ("sd", ("unet",))
    assert plan.latent_shape == (1, 4, 16, 16)
    assert plan.tasks[0].name == {4: "t2i", 8: "edit", 9: "fill"}[channels]


@pytest.mark.slow
def test_a_unet_alone_is_exported_from_its_own_folder(tmp_path: Path) -> None:
    unet = write_dense("atom", tmp_path / "whole") / "unet"
    exported = export(resolve(target="reference", model=unet, out=tmp_path / "out"))
    assert [part.name for part in exported.parts] == ["unet"]
    assert all(verdict.passed for verdict in exported.proof)
