"""What a checkpoint is made of: FLOPs, expert weights and deviation, each against its equal."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mtu_export import checkpoint, models
from mtu_export.authoring import upcycle
from mtu_export.exporter import inspection, options
from mtu_export.graph import capture
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.models.mtu.experts import transformer_blocks
from mtu_export.models.mtu.layout import LAYOUT
from mtu_export.models.mtu.model import MTUModel, data_order
from mtu_export.models.pipeline import anatomy, deviation
from mtu_export.models.pipeline.anatomy import Anatomy
from mtu_export.spec import CheckpointError, Cost, MissingWeights, PlanError
from mtu_export.spec.model import Deviation
from mtu_export.testing import architectures

WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK = "mid_block.attentions.0.transformer_blocks.0"


def dense(folder: Path) -> Path:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES["tiny"]))
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(folder)
    return folder


def changed(source: Path, out: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with some tensors replaced, or removed (None)."""
    shutil.copytree(source, out)
    file = next(out.rglob(WEIGHTS))
    state = {**load_file(file), **tensors}
    save_file({name: value for name, value in state.items() if value is not None}, file)
    return out


def config_of(folder: Path, **keys: object) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def unequal(folder: Path, out: Path) -> Path:
    """A checkpoint whose experts have other widths: the last of each block loses three."""
    shutil.copytree(folder, out)
    file = out / "unet" / WEIGHTS
    state = load_file(file)
    for name in [name for name in state if ".experts.3.out.weight" in name]:
        path, width = name.removesuffix("out.weight"), state[name].shape[1]
        kept = [*range(width - 3), *range(width, 2 * width - 3)]
        state[name] = state[name][:, :-3].contiguous()
        for leaf in ("weight", "bias"):
            state[f"{path}proj.{leaf}"] = state[f"{path}proj.{leaf}"][kept]
    save_file(state, file)
    return out


# --------------------------------------------------------------------------------------- FLOPs


def folded_cost(folder: Path, task: str) -> Cost:
    """The cost that an export records."""
    plan = options.resolve(target="onnx", model=folder, task=task, out=folder / "none")
    live, first = plan.model.load("unet"), plan.tasks[0]
    folded = live.specialise([first])
    assert folded is not None
    return capture.cost(live.graph(first, plan.size, 1, folded[first.name].module))


def costs(folder: Path, latent: tuple[int, int]) -> dict[str, Cost]:
    model = MTUModel(folder)
    return anatomy.costs(model.unet, model.tasks, latent, model.outline_of)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings", "task"),
    [
        ("tiny", {}, "fill"),
        ("tiny", {"task_norm": "stacked", "experts": 1}, "t2i"),
        ("tiny", {"experts": 3}, "relight"),
        ("tiny-sdxl", {}, "edit"),
    ],
)
def test_cost_is_that_of_the_folded_module(
    make_tiny: Callable[..., Path], architecture: str, settings: dict[str, object], task: str
) -> None:
    folder = make_tiny(architecture, **settings)
    described = inspection.of_checkpoint(folder)
    assert (described["image"], described["not counted"]) == ("128 x 128", None)
    figures = next(entry for entry in described["FLOPs"] if entry["task"] == task)
    assert figures == {"task": task, **asdict(folded_cost(folder, task))}


@pytest.mark.slow
def test_cost_counts_the_widths_on_disk(tiny: Path, tmp_path: Path) -> None:
    folder = unequal(tiny, tmp_path / "unequal")
    cost = costs(folder, (16, 16))["edit"]
    assert cost == folded_cost(folder, "edit")
    assert cost.flops_total < costs(tiny, (16, 16))["edit"].flops_total


@pytest.mark.parametrize(
    ("architecture", "narrow", "whole", "parameters"),
    [
        ("sd15", 0.677, 0.803, 859_520_964),
        pytest.param("sdxl", 1.534, 1.589, 2_567_463_684, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(architecture: str, narrow: float, whole: float, parameters: int) -> None:
    stock = architectures.ARCHITECTURES[architecture]
    tasks = presets.resolve_tasks(["t2i"], stock)
    config = upcycle.mtu_config(stock, tasks, 4, (768, 768), "replace")
    cost = anatomy.costs(config, tasks, (64, 64), lambda n: mtu.outline(config, {}, n))["t2i"]
    assert round(cost.flops_conv_linear / 1e12, 3) == narrow
    assert round(cost.flops_total / 1e12, 3) == whole
    assert cost.parameters == parameters


def test_parameters_of_the_published_checkpoint() -> None:
    stock = architectures.ARCHITECTURES["sd15"]
    tasks = presets.resolve_tasks(["t2i", "edit", "sr", "inpaint"], stock)
    config = upcycle.mtu_config(stock, tasks, 4, (768, 768), "replace")
    with torch.device("meta"):
        live = mtu.MTUUNet2DConditionModel.from_config(config)
    counts = {
        name: checkpoint.Header(dtype="F32", shape=tuple(value.shape), file=Path())
        for name, value in live.state_dict().items()
    }
    kinds = Anatomy(config=config, headers=counts, layout=LAYOUT).parameters()
    assert round(sum(kinds.values()) / 1e6) == 869
    assert sum(kinds.values()) == sum(p.numel() for p in live.parameters())
    assert round(kinds["routers"] / 1e6, 2) == 9.50
    assert round(sum(kinds.values()) / 1e6 - kinds["backbone"] / 1e6, 0) in (158, 159)


def test_sizes_are_those_of_an_export(tiny: Path, tmp_path: Path) -> None:
    assert inspection.of_checkpoint(tiny, 64, 256)["image"] == "64 x 256"
    with pytest.raises(PlanError, match="--height must be a multiple of 16"):
        inspection.of_checkpoint(tiny, 50, None)
    folder = changed(tiny, tmp_path / "unsized")
    config_of(folder, sample_size=None)
    described = inspection.of_checkpoint(folder)
    assert described["FLOPs"] == []
    assert described["not counted"] == "give --height and --width"
    assert inspection.of_checkpoint(folder, 64, 64)["FLOPs"][0]["flops_total"] > 0
    with pytest.raises(PlanError, match="give --width in pixels"):
        inspection.of_checkpoint(folder, 64)


# --------------------------------------------------------------------------------- expert weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("tiny-sdxl", {}),
        ("tiny", {"tasks": ["sr"], "experts": 1}),
        ("tiny", {"tasks": ["sr", "edit"], "experts": 11, "task_norm": "stacked"}),
    ],
)
def test_expert_weights_are_those_of_the_live_routers(
    make_tiny: Callable[..., Path], architecture: str, settings: dict[str, object]
) -> None:
    folder = make_tiny(architecture, **settings)
    weights = MTUModel(folder).expert_weights()
    live = mtu.load(folder).double()
    blocks = dict(transformer_blocks(live))
    assert set(weights) == set(blocks)
    for path, by_task in weights.items():
        want = torch.stack([blocks[path].ff.router(e) for e in live.task_embedding.weight])  # type: ignore[operator]
        assert torch.allclose(torch.tensor(by_task, dtype=torch.float64), want, rtol=0, atol=1e-15)
        assert all(abs(sum(task_weights) - 1) < 1e-12 for task_weights in by_task)
    order = [path.partition("_")[0] for path in weights]
    assert order == sorted(order, key=["down", "mid", "up"].index)


# -------------------------------------------------------------------------------------- deviation


def compare(one: Path, other: Path) -> Deviation:
    return models.open(one).deviation(models.open(other))


def test_nothing_deviates_from_itself(tiny: Path) -> None:
    compared = compare(tiny, tiny)
    assert {entry.deviation for entry in compared.layers} == {0.0}
    assert compared.left_out == ()
    count = sum(entry.parameters for entry in compared.layers)
    assert count == sum(entry.parameters for entry in compared.kinds)
    assert count == sum(MTUModel(tiny).anatomy().parameters().values())


CHANGES = {
    f"{BLOCK}.ff.experts.2.proj.weight": (BLOCK, "ffn"),
    f"{BLOCK}.attn1.to_q.weight": (BLOCK, "self attention"),
    f"{BLOCK}.attn2.to_k.weight": (BLOCK, "cross attention"),
    f"{BLOCK}.norm3.edit.bias": (BLOCK, "norm"),
    f"{BLOCK}.ff.router.fc1.weight": (BLOCK, "routers"),
    "mid_block.attentions.0.proj_in.weight": ("mid_block.attentions.0", "projection in/out"),
    "mid_block.resnets.1.conv1.weight": ("mid_block.resnets.1", "resnet"),
    "down_blocks.0.downsamplers.0.conv.bias": ("down_blocks.0.downsamplers.0", "down/upsampling"),
    "conv_in.sr.weight": ("conv_in", "convolution in/out"),
    "conv_norm_out.weight": ("conv_norm_out", "convolution in/out"),
    "time_embedding.linear_1.bias": ("time_embedding", "time embedding"),
    "task_embedding.weight": ("task_embedding", "task tensors"),
}


def test_known_changes_are_found_where_they_are(tiny: Path, tmp_path: Path) -> None:
    before = load_file(tiny / "unet" / WEIGHTS)
    moved = {name: before[name].clone() for name in CHANGES}
    for size, tensor in enumerate(moved.values(), 1):
        tensor.view(-1)[:2] += torch.tensor([3.0 * size, -4.0 * size])
    compared = compare(changed(tiny, tmp_path / "changed", **moved), tiny)
    want = {
        CHANGES[name]: float((tensor.double() - before[name].double()).norm())
        for name, tensor in moved.items()
    }
    rows = {(row.layer, row.kind): row.deviation for row in compared.layers if row.deviation}
    assert rows == pytest.approx(want, rel=1e-12)
    assert list(want.values()) == pytest.approx([5 * n for n in range(1, 13)], rel=1e-5)
    assert [row.deviation for row in compared.layers] == sorted(rows.values(), reverse=True) + [
        0.0
    ] * (len(compared.layers) - len(rows))
    kinds = {row.kind: row.deviation for row in compared.kinds}
    assert kinds["convolution in/out"] == pytest.approx(5 * (9**2 + 10**2) ** 0.5, rel=1e-5)
    assert kinds["norm"] == pytest.approx(20, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "task_norm"), [(1, "replace"), (3, "stacked"), (11, "replace")]
)
def test_an_upcycled_model_is_its_dense_source(
    tmp_path: Path, experts: int, task_norm: str
) -> None:
    source = dense(tmp_path / "dense")
    upcycle.upcycle(
        source,
        tmp_path / "mtu",
        tasks=["t2i", "edit"],
        experts=experts,
        sizes=(8, 8),
        task_norm=task_norm,
    )
    deviations = compare(tmp_path / "mtu", source)
    assert {entry.deviation for entry in deviations.layers} == {0.0}
    left_out = dict(deviations.left_out)
    assert left_out["task_embedding.weight"] == "a dense UNet has none"
    assert left_out[f"{BLOCK}.ff.router.fc2.bias"] == "a dense UNet has none"
    assert left_out["conv_in.edit.weight"].startswith("another shape: [32, 8, 3, 3]")
    assert (f"{BLOCK}.norm3.edit.bias" in left_out) == (task_norm == "stacked")
    headers = MTUModel(tmp_path / "mtu").anatomy().headers
    compared = sum(entry.parameters for entry in deviations.layers)
    assert compared == sum(
        math.prod(header.shape) for name, header in headers.items() if name not in left_out
    )
    if experts == 3:
        turned = compare(source, tmp_path / "mtu")
        assert {entry.deviation for entry in turned.layers} == {0.0}
        assert sorted(turned.left_out) == sorted(deviations.left_out)


@pytest.mark.slow
def test_an_expert_stands_against_its_slice(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    upcycle.upcycle(source, tmp_path / "mtu", tasks=["t2i"], experts=4, sizes=(8, 8))
    state = load_file(source / WEIGHTS)
    proj, down = f"{BLOCK}.ff.net.0.proj.weight", f"{BLOCK}.ff.net.2.bias"
    width = state[proj].shape[0] // 2
    state[proj][width - 1, 0] += 3  # a value row of the last expert
    state[proj][width, 0] += 4  # a gate row of the first
    state[down][0] += 6  # every expert has a copy of it
    folder = changed(source, tmp_path / "moved", **{proj: state[proj], down: state[down]})
    (entry, *_) = compare(folder, tmp_path / "mtu").layers
    assert (entry.layer, entry.kind) == (BLOCK, "ffn")
    assert entry.deviation == pytest.approx((9 + 16 + 4 * 36) ** 0.5, rel=1e-5)
    (same, *_) = compare(tmp_path / "mtu", folder).layers
    assert same.deviation == pytest.approx(entry.deviation, rel=1e-12)
    (plain, *_) = compare(folder, source).layers
    assert plain.deviation == pytest.approx((9 + 16 + 36) ** 0.5, rel=1e-5)


@pytest.mark.slow
def test_what_is_not_compared_is_named(tiny: Path, tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    compared = compare(unequal(tiny, tmp_path / "unequal"), source)
    reasons = dict(compared.left_out)
    assert reasons[f"{BLOCK}.ff.experts.0.out.weight"].startswith("the experts together are")
    assert f"{BLOCK}.ff.experts.0.out.bias" not in reasons
    against = compare(tmp_path / "unequal", tiny)
    names = {name.split(".experts.")[1] for name, _ in against.left_out}
    assert names == {"3.proj.weight", "3.proj.bias", "3.out.weight"}


def test_two_architectures_are_one_line(tiny: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    for one, other in ((tiny, tiny_sdxl), (source, tiny_sdxl)):
        with pytest.raises(PlanError, match="of different architectures: '"):
            compare(one, other)


def write_pair(folder: Path, seed: int) -> Path:
    """A dense UNet of two tensors, one of them longer than a chunk of rows."""
    random = torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    state = {
        f"{BLOCK}.attn1.to_q.weight": torch.randn(7, 5, generator=random),
        "conv_in.weight": torch.randn(2, 4, 3, 3, generator=random),
    }
    save_file(state, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    return folder


@settings(max_examples=15, deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**31)] * 3), chunk=st.integers(1, 40))
def test_deviation_is_a_distance(
    tmp_path_factory: pytest.TempPathFactory, seeds: tuple[int, int, int], chunk: int
) -> None:
    root = tmp_path_factory.mktemp("pairs")
    a, b, c = (write_pair(root / name, seed) for name, seed in zip("abc", seeds, strict=True))

    def by_layer(one: Path, other: Path) -> dict[str, float]:
        return {entry.layer: entry.deviation for entry in compare(one, other).layers}

    whole = by_layer(a, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deviation, "_CHUNK", chunk)
        ac, ab, bc, ca = by_layer(a, c), by_layer(a, b), by_layer(b, c), by_layer(c, a)
    for layer, value in ac.items():
        assert value == pytest.approx(whole[layer], rel=1e-12)
        assert value == ca[layer]
        assert value <= (ab[layer] + bc[layer]) * (1 + 1e-12)
        want = [load_file(folder / WEIGHTS) for folder in (a, c)]
        name = next(name for name in want[0] if name.startswith(layer))
        norm = float((want[0][name].double() - want[1][name].double()).norm())
        assert value == pytest.approx(norm, rel=1e-12)


# ---------------------------------------------------------------------------------------- damage


@pytest.mark.slow
def test_damage_is_one_line(tiny: Path, tmp_path: Path) -> None:
    router = f"{BLOCK}.ff.router.fc2.bias"
    nan = changed(tiny, tmp_path / "nan", **{router: torch.full((4,), float("nan"))})
    with pytest.raises(MissingWeights, match="its router or the task embedding holds NaN or Inf"):
        inspection.of_checkpoint(nan)
    with pytest.raises(MissingWeights, match="NaN"):
        inspection.of_deviation(nan, tiny)
    gone = changed(tiny, tmp_path / "gone", **{router: None})
    for call in (inspection.of_checkpoint, lambda path: inspection.of_deviation(tiny, path)):
        with pytest.raises(MissingWeights, match=f"missing: {router}"):
            call(gone)
    cut = changed(tiny, tmp_path / "cut")
    file = cut / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    odd = changed(tiny, tmp_path / "odd")
    config_of(odd, block_out_channels=[30, 64])
    for folder in (cut, odd):
        with pytest.raises(CheckpointError):
            inspection.of_checkpoint(folder)
        with pytest.raises(CheckpointError):
            inspection.of_deviation(tiny, folder)
    with pytest.raises(CheckpointError, match=r"no model_index\.json and no unet/"):
        inspection.of_deviation(tiny, tmp_path)


def test_blocks_of_no_stock_unet_are_sorted_too() -> None:
    paths = ["side.1", "up_blocks.0", "mid_block.0", "down_blocks.10", "down_blocks.2"]
    assert sorted(paths, key=data_order) == [*reversed(paths)]
