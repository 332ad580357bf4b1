"""Dense to experts: slices as the format says, equal start with rescale, what is copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import UNet2DConditionModel

from mtu_export import checkpoint
from mtu_export.authoring import upcycle
from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.bundle.metrics import psnr
from mtu_export.graph import capture, quantize
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu.model import MTUModel
from mtu_export.models.pipeline import stock
from mtu_export.spec import (
    Arrays,
    CheckpointError,
    OutputExists,
    PlanError,
    TensorSpec,
    UnknownName,
    catalog,
)
from mtu_export.spec.flow import Value
from mtu_export.testing import architectures


def dense(folder: Path, in_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {**architectures.ARCHITECTURES["tiny"], "in_channels": in_channels}
    unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(folder)
    return unet.eval()


def predict(unet: torch.nn.Module, channels: int = 4, **arguments: object) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, channels, 16, 16, generator=random)
    text = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        return unet(x, torch.tensor([300.0]), text, **arguments).sample


@pytest.mark.slow
@pytest.mark.parametrize("experts", [1, 3, 4])
def test_rescale_starts_equal_to_the_dense_model(tmp_path: Path, experts: int) -> None:
    want = predict(dense(tmp_path / "dense"))
    settings = {"tasks": ["t2i", "edit"], "experts": experts, "sizes": (16, 16)}
    upcycle.upcycle(tmp_path / "dense", tmp_path / "equal", rescale=True, **settings)  # type: ignore[arg-type]
    upcycle.upcycle(tmp_path / "dense", tmp_path / "plain", **settings)  # type: ignore[arg-type]
    equal = mtu.load(tmp_path / "equal")
    upcycled = predict(equal, task="t2i")
    assert psnr(want.numpy(), upcycled.numpy()) > 110
    # channels that the dense model lacks start at zero: the condition does not count yet
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    x[:, :4] = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    folded = mtu.specialise(equal, [equal.task("t2i")])["t2i"].module
    assert psnr(want.numpy(), predict(folded).numpy()) > 110
    plain = predict(mtu.load(tmp_path / "plain"), task="t2i")
    assert (psnr(want.numpy(), plain.numpy()) > 110) == (experts == 1)


def test_experts_are_the_slices_of_the_format(tmp_path: Path) -> None:
    stock = dense(tmp_path / "dense").state_dict()
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["t2i"], sizes=(8, 8))
    headers = checkpoint.headers(tmp_path / "out" / "unet")
    path = "mid_block.attentions.0.transformer_blocks.0"
    width = stock[f"{path}.ff.net.2.weight"].shape[1]
    part = width // 4
    for i in range(4):
        indices = [*range(i * part, (i + 1) * part)]
        indices += [width + index for index in indices]
        proj = checkpoint.tensor(headers, f"{path}.ff.experts.{i}.proj.weight")
        assert torch.equal(proj, stock[f"{path}.ff.net.0.proj.weight"][indices])
        bias = checkpoint.tensor(headers, f"{path}.ff.experts.{i}.proj.bias")
        assert torch.equal(bias, stock[f"{path}.ff.net.0.proj.bias"][indices])
        out = checkpoint.tensor(headers, f"{path}.ff.experts.{i}.out.weight")
        assert torch.equal(out, stock[f"{path}.ff.net.2.weight"][:, i * part : (i + 1) * part])
        down = checkpoint.tensor(headers, f"{path}.ff.experts.{i}.out.bias")
        assert torch.equal(down, stock[f"{path}.ff.net.2.bias"])


def test_a_wide_source_keeps_its_channels_for_the_task_of_its_width(tmp_path: Path) -> None:
    want = predict(dense(tmp_path / "dense", 9), channels=9)
    upcycle.upcycle(
        tmp_path / "dense", tmp_path / "out", tasks=["t2i", "fill"], rescale=True, sizes=(8, 8)
    )
    unet = mtu.load(tmp_path / "out")
    assert unet.config["in_channels"] == 4
    assert psnr(want.numpy(), predict(unet, 9, task="fill").numpy()) > 110
    assert predict(unet, 4, task="t2i").shape == (1, 4, 16, 16)


def test_dropped_channels_are_named_with_the_preset_that_takes_them(tmp_path: Path) -> None:
    dense(tmp_path / "wide", 9)
    notes = upcycle.upcycle(tmp_path / "wide", tmp_path / "a", tasks=["inpaint", "t2i", "fill"])
    assert notes == [
        "the source has 9 input channels; inpaint, t2i drop its last 5: --task fill takes all"
    ]
    assert upcycle.upcycle(tmp_path / "wide", tmp_path / "b", tasks=["fill"]) == []
    dense(tmp_path / "edit", 8)
    (note,) = upcycle.upcycle(tmp_path / "edit", tmp_path / "c", tasks=["t2i"])
    assert note.endswith("t2i drops its last 4: --task edit or sr or inpaint takes all")
    dense(tmp_path / "plain")
    assert upcycle.upcycle(tmp_path / "plain", tmp_path / "d", tasks=["t2i", "edit"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("cosxl", [None, False, True])
def test_edit_of_instruct_pix2pix_takes_the_image_latent_of_diffusers(
    pipeline: Path, tmp_path: Path, cosxl: bool | None
) -> None:
    """Its own pipeline prepares the image; of SDXL's one, CosXL scales the latent."""
    source = Path(shutil.copytree(pipeline, tmp_path / "ip2p"))
    shutil.rmtree(source / "unet")
    dense(source / "unet", 8)
    size = "" if cosxl is None else "XL"
    path = source / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    index |= {"_class_name": f"StableDiffusion{size}InstructPix2PixPipeline"}
    index |= {} if cosxl is None else {"is_cosxl_edit": cosxl}
    path.write_text(json.dumps(index), "utf-8")
    notes = upcycle.upcycle(source, tmp_path / "ck", tasks=["edit"])
    vae = stock.load_vae(source)
    kind = getattr(diffusers, index["_class_name"])
    theirs = SimpleNamespace(vae=vae, is_cosxl_edit=cosxl)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    arguments = (image, 1, 1, torch.float32, "cpu", False)
    expected = kind.prepare_image_latents(theirs, *arguments)

    def encode(inputs: Arrays) -> dict[str, np.ndarray]:
        with torch.no_grad():
            posterior: Any = vae.encode(torch.from_numpy(inputs["sample"]))
        return {"latent": posterior.latent_dist.mode().numpy()}

    model = MTUModel(tmp_path / "ck")
    (task,) = model.tasks
    flow = model.flow(task)
    request = Request(prompt="", noise=None, steps=1, pictures={"image": image.numpy()})
    specs = {"vae_encoder": [TensorSpec(name="sample", shape=tuple(image.shape))]}
    evaluation = Evaluation(
        flow, model.inputs(task), specs, {}, task.guidance, request, lambda *_: np.zeros((1, 77))
    )
    evaluation.run_once(flow.call("vae_encoder"), encode)
    _, channels = flow.call("unet").inputs["sample"].sources
    ours = evaluation.value(Value(sources=(channels,)))
    assert psnr(expected.detach().numpy(), ours) > 100
    assert bool(notes) is (not cosxl)
    assert all("edit: image latents are not scaled" in note for note in notes)


def test_a_refiner_is_refused(pipeline_sdxl: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(pipeline_sdxl, tmp_path / "refiner"))
    path = source / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**index, "requires_aesthetics_score": True}), "utf-8")
    with pytest.raises(CheckpointError, match="SDXL's refiner is not supported"):
        upcycle.upcycle(source, tmp_path / "ck", tasks=["t2i"])


def test_a_pipeline_keeps_its_other_parts_but_no_pickles(tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    dense(source / "unet")
    (source / "scheduler").mkdir()
    (source / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (source / "scheduler" / "evil.bin").write_bytes(b"x")
    (source / "LICENSE.md").write_text("terms")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (source / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has no vae/, which its model_index\.json names"):
        upcycle.upcycle(source, tmp_path / "out", tasks=["sr"], sizes=(8, 8))
    del index["vae"]
    (source / "model_index.json").write_text(json.dumps(index))
    upcycle.upcycle(source, tmp_path / "out", tasks=["sr"], sizes=(8, 8))
    names = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")
    )
    assert "scheduler/scheduler_config.json" in names
    assert "LICENSE.md" in names
    assert "scheduler/evil.bin" not in names
    written = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert written == {
        "_class_name": "MTUPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["mtu_export", "MTUUNet2DConditionModel"],
    }


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        upcycle.write_random("tiny", tmp_path / name, tasks=["sr"], seed=seed)
    a, b, c = (
        (tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for n in "abc"
    )
    assert a == b != c


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    dense(tmp_path / "dense")
    with pytest.raises(UnknownName, match="unknown task preset 'paint'; choose from: t2i, edit"):
        upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["paint"])
    with pytest.raises(PlanError, match="different names"):
        upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["sr", "sr"])
    with pytest.raises(
        CheckpointError, match="num_experts: must be a positive integer, at most 128"
    ):
        upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["sr"], experts=500)
    with pytest.raises(UnknownName, match="architecture"):
        upcycle.write_random("sd3", tmp_path / "out", tasks=["sr"])
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]
    with pytest.raises(OutputExists):
        upcycle.write_random("tiny", tmp_path / "dense", tasks=["sr"])
    with pytest.raises(PlanError, match="replaces only what this command made"):
        upcycle.write_random("tiny", tmp_path / "dense", tasks=["sr"], force=True)


def test_a_hostile_pipeline_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    dense(source / "unet")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("s")
    out = tmp_path / "out" / "deep"
    settings = {"tasks": ["sr"], "sizes": (8, 8)}
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        upcycle.upcycle(source, out, **settings)  # type: ignore[arg-type]
    for name in ("../secret", ".", "unet/", "/etc"):
        (source / "model_index.json").write_text(json.dumps({name: ["a", "b"]}))
        with pytest.raises(CheckpointError, match="is not a valid part name"):
            upcycle.upcycle(source, out, **settings)  # type: ignore[arg-type]
    (source / "vae").symlink_to(tmp_path / "secret")
    (source / "model_index.json").write_text(json.dumps({"vae": ["a", "b"]}))
    with pytest.raises(CheckpointError, match="link that leaves"):
        upcycle.upcycle(source, out, **settings)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="lies inside the source"):
        upcycle.upcycle(source, source / "vae2" / "x", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_source_of_an_impossible_config_is_one_line(tmp_path: Path) -> None:
    dense(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    for change in ({"norm_num_groups": 7}, {"act_fn": [1]}, {"cross_attention_dim": -1}):
        path.write_text(
            json.dumps(
                {
                    **architectures.ARCHITECTURES["tiny"],
                    **change,
                    "_class_name": "UNet2DConditionModel",
                }
            )
        )
        with pytest.raises(CheckpointError):
            upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["sr"])


# ------------------------------------------------------------------------------ random pipelines


@pytest.mark.parametrize("name", ["pipeline", "pipeline_sdxl"])
def test_random_pipelines_are_whole(name: str, request: pytest.FixtureRequest) -> None:
    """Every part loads as the class that the index names, and the parts fit one another."""
    folder: Path = request.getfixturevalue(name)
    index = json.loads((folder / "model_index.json").read_text())
    unet = mtu_config.read_config(folder)
    widths, xl = 0, name == "pipeline_sdxl"
    for part in ("text_encoder", "text_encoder_2") if xl else ("text_encoder",):
        library, kind = index[part]
        expected, report = getattr(transformers, kind).from_pretrained(
            folder / part, output_loading_info=True
        )
        assert library == "transformers"
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        loaded = stock.load_text_encoder(folder, part)
        clip_tokenizer = source_tokenizer.read(folder / part.replace("text_encoder", "tokenizer"))
        tokenizer.matches(clip_tokenizer, expected.config.to_dict())
        assert expected.config.pad_token_id == clip_tokenizer.pad
        ids, cut = clip_tokenizer.encode("a photo of a red circle")
        assert cut == ""
        graph = stock.text_encoder_graph(loaded, loaded.config, penultimate=xl, pooled=xl)
        (out,) = capture.run(graph, [{"input_ids": ids}])
        for value in out.values():
            assert 0.3 < value.std() < 3
        widths += out["hidden_states"].shape[2]
        if part == "text_encoder_2":
            total = unet["projection_class_embeddings_input_dim"]
            assert out["pooled"].shape[1] == total - 6 * unet["addition_time_embed_dim"]
    assert widths == unet["cross_attention_dim"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    vae = stock.load_vae(folder)
    assert vae.config["scaling_factor"] == (0.13025 if xl else 0.18215)
    assert bool(vae.config["force_upcast"]) or not xl
    random = np.random.default_rng(0)
    latent = random.standard_normal((1, 4, 16, 16), np.float32) / vae.config["scaling_factor"]
    (image,) = capture.run(stock.vae_decoder_graph(vae, 128, 128), [{"latent": latent}])
    assert image["sample"].shape == (1, 3, 128, 128)
    assert 0.2 < image["sample"].std() < np.abs(image["sample"]).max() < 3.2
    (back,) = capture.run(stock.vae_encoder_graph(vae, 128, 128), [image])
    assert 0.2 < back["latent"].std() < 3
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    kind = "EulerDiscreteScheduler" if xl else "PNDMScheduler"
    assert index["scheduler"] == ["diffusers", kind] == ["diffusers", config["_class_name"]]
    _, unused = getattr(diffusers, kind).from_config(config, return_unused_kwargs=True)
    others = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
    assert unused.keys() <= {"_class_name", *others}
    assert {name: config[name] for name in others} == others  # for the sake of --scheduler
    assert index.get("force_zeros_for_empty_prompt", False) is xl
    parts = [path for path in folder.rglob("*") if path.is_file() and "unet" not in path.parts]
    assert sum(path.stat().st_size for path in parts) < 1e6


def test_the_index_opens_as_a_stock_pipeline(pipeline: Path, tmp_path: Path) -> None:
    """With a folded UNet in its place, diffusers runs the random pipeline from text to picture."""
    index = json.loads((pipeline / "model_index.json").read_text())
    shutil.copytree(pipeline, tmp_path / "pipe", ignore=shutil.ignore_patterns("unet"))
    live = mtu.load(pipeline)
    folded: Any = mtu.specialise(live, [live.task("t2i")])["t2i"].module
    quantize.quantize([folded], catalog.SCHEMES["fp32"])
    folded.save_pretrained(tmp_path / "pipe" / "unet")
    stock_index = {
        **index,
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(stock_index))
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)
    assert image.std() > 0.05


def test_every_part_depends_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = {"tasks": ["sr"], "seed": seed, "dtype": "fp16"}
        upcycle.write_random("tiny-sdxl", tmp_path / name, **settings)  # type: ignore[arg-type]
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 18
    for file in files:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert (a == c) == (file.suffix != ".safetensors")
    for part, stem in (("text_encoder_2", "model"), ("vae", checkpoint.WEIGHTS)):
        headers = checkpoint.headers(tmp_path / "a" / part, stem)
        assert {header.dtype for header in headers.values()} == {"F16"}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_real_sizes_are_the_published_ones(name: str) -> None:
    """Parameters of CLIP ViT-L/14 text, OpenCLIP bigG text with its projection, and the VAE."""
    expected = {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863}
    parts = architectures.STOCK_PARTS[name]
    for part, count in expected.items():
        if part not in parts:
            continue
        with torch.device("meta"):
            config: dict[str, Any] = dict(parts[part])
            if part == "vae":
                module: Any = stock.AutoencoderKL(**config)
            else:
                kind = "CLIPTextModel" + ("WithProjection" if part.endswith("_2") else "")
                module = stock.TEXT_CLASSES[kind](stock.CLIPTextConfig(**config))
        assert sum(p.numel() for p in module.parameters()) == count
