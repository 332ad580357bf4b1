"""Dense to experts: slices as the format says, equal start with rescale, what is copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from mtu_export import catalog, checkpoint, upcycle
from mtu_export.models import mtu
from mtu_export.spec import CheckpointError, OutputExists, PlanError, UnknownName
from mtu_export.verify import psnr


def dense(folder: Path, in_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {**catalog.ARCHITECTURES["tiny"], "in_channels": in_channels}
    unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(folder)
    return unet.eval()


def predict(unet: torch.nn.Module, channels: int = 4, **words: object) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, channels, 16, 16, generator=random)
    text = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        return unet(x, torch.tensor([300.0]), text, **words).sample


@pytest.mark.parametrize("experts", [1, 3, 4])
def test_rescale_starts_equal_to_the_dense_model(tmp_path: Path, experts: int) -> None:
    want = predict(dense(tmp_path / "dense"))
    words = {"tasks": ["t2i", "edit"], "experts": experts, "sizes": (16, 16)}
    upcycle.upcycle(tmp_path / "dense", tmp_path / "equal", rescale=True, **words)  # type: ignore[arg-type]
    upcycle.upcycle(tmp_path / "dense", tmp_path / "plain", **words)  # type: ignore[arg-type]
    equal = mtu.load(tmp_path / "equal")
    found = predict(equal.components["unet"], task="t2i")
    assert psnr(want.numpy(), found.numpy()) > 110
    # channels that the dense model lacks start at zero: the condition does not count yet
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    x[:, :4] = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    folded = mtu.specialise(equal, equal.components["unet"].task("t2i")).module
    assert psnr(want.numpy(), predict(folded).numpy()) > 110
    plain = predict(mtu.load(tmp_path / "plain").components["unet"], task="t2i")
    assert (psnr(want.numpy(), plain.numpy()) > 110) == (experts == 1)


def test_experts_are_the_slices_of_the_format(tmp_path: Path) -> None:
    stock = dense(tmp_path / "dense").state_dict()
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["t2i"], sizes=(8, 8))
    found = checkpoint.headers(tmp_path / "out" / "unet")
    path = "mid_block.attentions.0.transformer_blocks.0"
    width = stock[f"{path}.ff.net.2.weight"].shape[1]
    part = width // 4
    for i in range(4):
        rows = [*range(i * part, (i + 1) * part)]
        rows += [width + row for row in rows]
        proj = checkpoint.tensor(found, f"{path}.ff.experts.{i}.proj.weight")
        assert torch.equal(proj, stock[f"{path}.ff.net.0.proj.weight"][rows])
        bias = checkpoint.tensor(found, f"{path}.ff.experts.{i}.proj.bias")
        assert torch.equal(bias, stock[f"{path}.ff.net.0.proj.bias"][rows])
        out = checkpoint.tensor(found, f"{path}.ff.experts.{i}.out.weight")
        assert torch.equal(out, stock[f"{path}.ff.net.2.weight"][:, i * part : (i + 1) * part])
        down = checkpoint.tensor(found, f"{path}.ff.experts.{i}.out.bias")
        assert torch.equal(down, stock[f"{path}.ff.net.2.bias"])


def test_a_wide_source_keeps_its_channels_for_the_task_of_its_width(tmp_path: Path) -> None:
    want = predict(dense(tmp_path / "dense", 9), channels=9)
    upcycle.upcycle(
        tmp_path / "dense", tmp_path / "out", tasks=["t2i", "fill"], rescale=True, sizes=(8, 8)
    )
    unet = mtu.load(tmp_path / "out").components["unet"]
    assert unet.config["in_channels"] == 4
    assert psnr(want.numpy(), predict(unet, 9, task="fill").numpy()) > 110
    assert predict(unet, 4, task="t2i").shape == (1, 4, 16, 16)


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
    }
    (source / "model_index.json").write_text(json.dumps(index))
    upcycle.upcycle(source, tmp_path / "out", tasks=["sr"], sizes=(8, 8))
    found = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")
    )
    assert "scheduler/scheduler_config.json" in found
    assert "LICENSE.md" in found
    assert "scheduler/evil.bin" not in found
    made = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert made == {
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
    with pytest.raises(CheckpointError, match="num_experts is absurdly large"):
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
    words = {"tasks": ["sr"], "sizes": (8, 8)}
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        upcycle.upcycle(source, out, **words)  # type: ignore[arg-type]
    for name in ("../secret", ".", "unet/", "/etc"):
        (source / "model_index.json").write_text(json.dumps({name: ["a", "b"]}))
        with pytest.raises(CheckpointError, match="names no part"):
            upcycle.upcycle(source, out, **words)  # type: ignore[arg-type]
    (source / "vae").symlink_to(tmp_path / "secret")
    (source / "model_index.json").write_text(json.dumps({"vae": ["a", "b"]}))
    with pytest.raises(CheckpointError, match="link that leaves"):
        upcycle.upcycle(source, out, **words)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="lies inside the source"):
        upcycle.upcycle(source, source / "vae2" / "x", **words)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_source_of_an_impossible_config_is_one_line(tmp_path: Path) -> None:
    dense(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    for change in ({"norm_num_groups": 7}, {"act_fn": [1]}, {"cross_attention_dim": -1}):
        path.write_text(
            json.dumps(
                {**catalog.ARCHITECTURES["tiny"], **change, "_class_name": "UNet2DConditionModel"}
            )
        )
        with pytest.raises(CheckpointError):
            upcycle.upcycle(tmp_path / "dense", tmp_path / "out", tasks=["sr"])
