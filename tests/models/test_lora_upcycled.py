"""A LoRA of the dense model on an upcycled one, and the algebra of folding."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtu_export.authoring import upcycle
from mtu_export.bundle.metrics import psnr
from mtu_export.models import lora
from mtu_export.models.lora.model import Target
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import CheckpointError, MtuExportWarning
from mtu_export.testing import architectures, loras

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: diffusers cannot fuse a LoRA to compare with",
)
TASKS_AND_SIZES: dict[str, Any] = {"tasks": ["t2i", "edit", "fill"], "sizes": (8, 8)}


def dense(folder: Path, in_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {**architectures.ARCHITECTURES["tiny"], "in_channels": in_channels}
    unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(folder)
    return unet.eval()


def live(folder: Path) -> mtu.MTUUNet2DConditionModel:
    return mtu.load(folder)


def predict(unet: Any, task: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    channels = unet.config.in_channels + unet.task(task).channels
    x = torch.randn(1, channels, 16, 16, generator=random)
    text = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        return unet(x, torch.tensor([300.0]), text, task=task).sample


def fuse_by_diffusers(unet: Any, files: Sequence[tuple[Path, float]], folder: Path) -> None:
    """W + Σ scale · Δ as PEFT merges it into the dense model, saved."""
    names = [f"a{number}" for number in range(len(files))]
    for name, (file, _) in zip(names, files, strict=True):
        unet.load_lora_adapter(file, prefix="unet", adapter_name=name, use_safetensors=True)
    unet.set_adapters(names, [scale for _, scale in files])
    unet.fuse_lora(adapter_names=names)
    unet.unload_lora()
    unet.save_pretrained(folder)


@pytest.mark.slow
@needs_peft
@pytest.mark.parametrize("rescale", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize("experts", [1, 3, 12])
@pytest.mark.parametrize("channels", [4, 9])
def test_upcycled_then_folded_is_fused_then_upcycled(
    tmp_path: Path, experts: int, channels: int, rescale: bool
) -> None:
    """Every tensor of both ways, every layer in the LoRA; 3 and 12 experts have unequal shares."""
    unet = dense(tmp_path / "dense", channels)
    paths = loras.layers(unet)
    adapters = [(loras.pairs(unet, paths), 0.5), (loras.pairs(unet, paths[::3], 2, 1), -1.5)]
    files = [
        (loras.write(tmp_path / f"{i}.safetensors", loras.peft(pairs)), scale)
        for i, (pairs, scale) in enumerate(adapters)
    ]
    options = {**TASKS_AND_SIZES, "experts": experts, "rescale": rescale}
    upcycle.upcycle(tmp_path / "dense", tmp_path / "ours", **options)
    fuse_by_diffusers(unet, files, tmp_path / "fused")
    upcycle.upcycle(tmp_path / "fused", tmp_path / "theirs", **options)
    ours, theirs = live(tmp_path / "ours"), live(tmp_path / "theirs")
    before = copy.deepcopy(ours.state_dict())
    report = lora.apply({"unet": ours}, [(lora.read(file), scale) for file, scale in files])
    assert report.folded[0].layers == {"unet": len(paths)}
    want = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-6, msg=name)
        same = ".norm3." in name or "router" in name or "norm" in name or name.endswith("bias")
        assert torch.equal(tensor, before[name]) == (same or name == "task_embedding.weight"), name
    for task in ("t2i", "edit", "fill"):
        likeness = psnr(predict(theirs, task).numpy(), predict(ours, task).numpy())
        print(f"{task} {likeness:.1f} dB")
        assert likeness >= 90


@needs_peft
def test_a_rescaled_model_feels_a_lora_as_the_dense_one_does(tmp_path: Path) -> None:
    """Against the dense model with the LoRA that diffusers loaded, and every other way to store."""
    unet = dense(tmp_path / "dense")
    paths = [path for path in loras.layers(unet) if ".ff." in path]
    file = loras.write(tmp_path / "ff.safetensors", loras.peft(loras.pairs(unet, paths)))
    upcycle.upcycle(
        tmp_path / "dense", tmp_path / "out", experts=4, rescale=True, **TASKS_AND_SIZES
    )
    saved = mtu.MTUUNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    saved.save_pretrained(tmp_path / "saved" / "unet")
    before = predict_dense(unet)
    unet.load_lora_adapter(file, prefix="unet", use_safetensors=True)
    expected = predict_dense(unet)
    assert psnr(expected.numpy(), before.numpy()) < 60
    for folder in ("out", "saved"):
        model = live(tmp_path / folder)
        assert psnr(before.numpy(), predict(model, "t2i").numpy()) >= 90
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lora.apply({"unet": model}, [(lora.read(file), 1.0)])
        assert psnr(expected.numpy(), predict(model, "t2i").numpy()) >= 90


def predict_dense(unet: Any) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=random)
    text = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        return unet(x, torch.tensor([300.0]), text).sample


def test_a_checkpoint_that_does_not_say_warns(tmp_path: Path) -> None:
    unet = dense(tmp_path / "dense")
    path = "mid_block.attentions.0.transformer_blocks.0"
    both = {
        name: loras.write(
            tmp_path / f"{name}.safetensors", loras.kohya(loras.pairs(unet, [f"{path}.{name}"]))
        )
        for name in ("ff.net.0.proj", "ff.net.2", "attn1.to_q")
    }
    for experts, rescale in ((1, False), (4, True), (4, False)):
        out = tmp_path / f"{experts}-{rescale}"
        upcycle.upcycle(
            tmp_path / "dense", out, experts=experts, rescale=rescale, **TASKS_AND_SIZES
        )
        config = json.loads((out / "unet" / "config.json").read_text())
        assert config.pop("_rescale") == (experts if rescale else 1)
        (out / "unet" / "config.json").write_text(json.dumps(config), "utf-8")
        for name, file in both.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                lora.apply({"unet": live(out)}, [(lora.read(file), 1.0)])
            lines = [str(w.message) for w in caught if w.category is MtuExportWarning]
            assert len(lines) == (experts > 1 and name == "ff.net.0.proj")
            assert all("--rescale" in line and "\n" not in line for line in lines)


@pytest.mark.parametrize("value", [2, 5, 0, -4, 1.5, "4", True, [4]])
def test_a_factor_that_no_upcycle_writes_is_refused(tmp_path: Path, value: object) -> None:
    dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS_AND_SIZES)
    path = tmp_path / "out" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_rescale": value}), "utf-8")
    with pytest.raises(CheckpointError, match=r"_rescale:? must be 1 or num_experts.*, got"):
        live(tmp_path / "out")


def test_kohya_names_reach_the_experts_and_the_fold_stays_exact(tmp_path: Path) -> None:
    stock = dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS_AND_SIZES)
    paths = [path for path in loras.layers(stock) if ".ff." in path]
    file = loras.write(tmp_path / "k.safetensors", loras.kohya(loras.pairs(stock, paths), alpha=2))
    unet = mtu.load(tmp_path / "out")
    plain = predict(unet, "edit")
    report = lora.apply({"unet": unet}, [(lora.read(file), 1.0)])
    assert report.folded[0].layers == {"unet": len(paths)}
    assert report.changed == {"unet": 4 * len(paths)}
    want = predict(unet, "edit")
    assert psnr(want.numpy(), plain.numpy()) < 60
    folded = mtu.specialise(unet, [unet.task("edit")])["edit"].module
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 8, 16, 16, generator=random)
    text = torch.randn(1, 77, 32, generator=random)
    with torch.no_grad():
        actual = folded(x, torch.tensor([300.0]), text).sample
    assert psnr(want.numpy(), actual.numpy()) >= 90


def test_a_lora_of_the_upcycled_model_itself(tmp_path: Path) -> None:
    """Its own names: single experts, the convolution of one task, the router."""
    dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS_AND_SIZES)
    unet = live(tmp_path / "out")
    block = "mid_block.attentions.0.transformer_blocks.0.ff"
    paths = [f"{block}.experts.2.proj", f"{block}.router.fc1", "conv_in.edit"]
    pairs = loras.pairs(unet, paths)
    before = copy.deepcopy(unet.state_dict())
    file = loras.write(tmp_path / "own.safetensors", loras.peft(pairs))
    lora.apply({"unet": unet}, [(lora.read(file), 2.0)])
    for name, tensor in unet.state_dict().items():
        path = name.removesuffix(".weight")
        if path in pairs:
            down, up = pairs[path]
            delta = 2.0 * (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
            torch.testing.assert_close(tensor, before[name] + delta)
        else:
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("width", [3, 5])
def test_a_first_convolution_of_another_width_is_refused(tmp_path: Path, width: int) -> None:
    dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS_AND_SIZES)
    pairs = {"conv_in": (torch.ones(2, width, 3, 3), torch.ones(32, 2, 1, 1))}
    file = loras.write(tmp_path / "w.safetensors", loras.peft(pairs))
    with pytest.raises(
        CheckpointError, match=r"conv_in is of \[32, \d, .* \[32, 4, 3, 3\] or \[32, 8"
    ):
        lora.apply({"unet": live(tmp_path / "out")}, [(lora.read(file), 1.0)])


def test_experts_of_another_total_width_are_refused(tmp_path: Path) -> None:
    stock = dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS_AND_SIZES)
    unet = live(tmp_path / "out")
    path = "mid_block.attentions.0.transformer_blocks.0"
    block: Any = unet.get_submodule(path)
    block.ff = mtu.MTUFeedForward(unet.active, 64, (64, 64, 64, 63), 8, 8)
    pairs = loras.pairs(stock, [f"{path}.attn1.to_q", f"{path}.ff.net.0.proj", f"{path}.ff.net.2"])
    file = loras.write(tmp_path / "w.safetensors", loras.kohya(pairs))
    before = copy.deepcopy(unet.state_dict())
    with pytest.raises(CheckpointError) as caught:
        lora.apply({"unet": unet}, [(lora.read(file), 1.0)])
    assert "ff_net_0_proj is of [512, 64], the model's of [510, 64]" in str(caught.value)
    assert "ff_net_2 is of [64, 256], the model's of [64, 255]" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


# ------------------------------------------------------------------------------------- algebra


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    dim=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_slices_of_delta_are_the_experts_of_the_sum(widths: list[int], dim: int, seed: int) -> None:
    """upcycle(W) + slices of Δ = upcycle(W + Δ), by the rows that docs/checkpoint.md names."""
    random = torch.Generator().manual_seed(seed)
    total = sum(widths)
    w_up, d_up = torch.randn(2, 2 * total, dim, generator=random)
    w_down, d_down = torch.randn(2, dim, total, generator=random)
    experts_ = [(str(i), n) for i, n in enumerate(widths)]
    proj = Target(
        name="p.weight", weights=tuple((i, (2 * n, dim)) for i, n in experts_), axis=0, halves=2
    )
    out = Target(name="o.weight", weights=tuple((i, (dim, n)) for i, n in experts_), axis=1)
    begin = 0
    parts = proj.parts((2 * total, dim)), out.parts((dim, total))
    for width, up, down in zip(widths, *parts, strict=True):
        values = torch.arange(begin, begin + width)
        both = torch.cat([values, total + values])
        assert torch.equal(w_up[both] + up.of(d_up), (w_up + d_up)[both])
        assert torch.equal(w_down[:, values] + down.of(d_down), (w_down + d_down)[:, values])
        begin += width
    assert not proj.parts((2 * total + 2, dim))
    assert not out.parts((dim, total + 1))


def small() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))


def random_lora(folder: Path, seed: int) -> lora.Lora:
    pairs = loras.pairs(small(), ["0", "1", "2"], rank=1 + seed % 4, seed=seed)
    file = loras.write(folder / f"{seed}.safetensors", loras.peft(pairs, "text_encoder"))
    return lora.read(file)


def weights(adapters: Sequence[tuple[lora.Lora, float]]) -> list[torch.Tensor]:
    module = small()
    lora.apply({"text_encoder": module}, adapters)
    return [module.get_parameter(f"{i}.weight").double() for i in range(3)]


scales = st.floats(-4, 4, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.tuples(st.integers(0, 9), scales), min_size=1, max_size=5))
def test_loras_sum_and_their_order_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[tuple[int, float]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    pairs = [(random_lora(folder, seed), scale) for seed, scale in seeds]
    together = weights(pairs)
    plain = [small().get_parameter(f"{i}.weight").double() for i in range(3)]
    summed = [w.clone() for w in plain]
    for pair in pairs:
        for i, w in enumerate(weights([pair])):
            summed[i] += w - plain[i]
    for one, two, back in zip(together, summed, weights(pairs[::-1]), strict=True):
        size = max(1.0, one.detach().abs().max().item())
        assert (one - two).detach().abs().max().item() <= 4e-6 * size
        assert (one - back).detach().abs().max().item() <= 1e-6 * size


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9), scale=scales)
def test_delta_is_linear_in_scale(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float
) -> None:
    adapter = random_lora(tmp_path_factory.getbasetemp(), seed)
    back = weights([(adapter, scale), (adapter, -scale)])
    twice, sum_ = weights([(adapter, scale), (adapter, scale)]), weights([(adapter, 2 * scale)])
    for i in range(3):
        assert torch.equal(back[i], small().get_parameter(f"{i}.weight").double())
        torch.testing.assert_close(twice[i], sum_[i], rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 4), kernel=st.sampled_from([1, 3]), seed=st.integers(0, 2**31))
def test_a_middle_convolution_is_the_chain_of_three(
    tmp_path_factory: pytest.TempPathFactory, rank: int, kernel: int, seed: int
) -> None:
    """LoCon with ``lora_mid``: up(mid(down(x))), as its module computes it."""
    random = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(5, 6, kernel, padding=kernel // 2)
    down = torch.randn(rank, 5, 1, 1, generator=random)
    mid = torch.randn(rank, rank, kernel, kernel, generator=random)
    up = torch.randn(6, rank, 1, 1, generator=random)
    stem = "lora_te_0"
    matrices = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    tensors = {f"{stem}.{name}.weight": tensor for name, tensor in matrices.items()}
    tensors[f"{stem}.alpha"] = torch.tensor(rank / 2)
    file = loras.write(tmp_path_factory.getbasetemp() / "mid.safetensors", tensors)
    x = torch.randn(1, 5, 4, 4, generator=random)
    conv = nn.functional.conv2d
    with torch.no_grad():
        want = layer(x) + 0.5 * conv(conv(conv(x, down), mid, padding=kernel // 2), up)
    module = nn.Sequential(layer)
    lora.apply({"text_encoder": module}, [(lora.read(file), 1.0)])
    torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-4)
