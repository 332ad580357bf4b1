"""Whole UNets folded, against the live router and in plain diffusers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtu_export import MTUUNet2DConditionModel, exporter
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import NotFoldable
from tests.support.mtu_checkpoints import WEIGHTS, edit_config, edit_weights, inputs, load


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["tiny", "tiny-sdxl"])
@pytest.mark.parametrize("experts", [1, 2, 3, 4, 8])
def test_a_folded_unet_equals_the_live_one(
    make_tiny: Callable[..., Path], architecture: str, experts: int
) -> None:
    folder = make_tiny(architecture, experts=experts)
    unet = mtu.load(folder)
    arguments = inputs(unet, "inpaint")
    with torch.no_grad():
        want = unet(**arguments, task="inpaint").sample
        folded = mtu.specialise(unet, [unet.task("inpaint")])["inpaint"]
        got = folded.module(**arguments).sample
    assert psnr(want.numpy(), got.numpy()) > 110
    assert max(folded.errors.values()) < 1e-6
    assert folded.deviations == ()


def unequal(tensors: dict[str, torch.Tensor]) -> None:
    """Experts of widths 5, 64 and 40 instead of four equal ones: Σ hs ≠ H."""
    widths = (5, 64, 40)
    for name in [n for n in tensors if n.endswith("ff.experts.0.out.weight")]:
        path = name.split(".experts.")[0]
        dim = tensors[name].shape[0]
        for i in range(4):
            for leaf in ("proj.weight", "proj.bias", "out.weight", "out.bias"):
                del tensors[f"{path}.experts.{i}.{leaf}"]
        for leaf in ("weight", "bias"):
            tensors[f"{path}.router.fc2.{leaf}"] = tensors[f"{path}.router.fc2.{leaf}"][:3].clone()
        for i, width in enumerate(widths):
            p = f"{path}.experts.{i}"
            tensors[f"{p}.proj.weight"] = torch.randn(2 * width, dim) / dim**0.5
            tensors[f"{p}.proj.bias"] = torch.randn(2 * width) * 0.1
            tensors[f"{p}.out.weight"] = torch.randn(dim, width) / width**0.5
            tensors[f"{p}.out.bias"] = torch.randn(dim) * 0.1


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True], ids=["fp32", "fp64"])
def test_unequal_widths_fold_and_are_no_stock_unet(
    tiny: Path, tmp_path: Path, double: bool
) -> None:
    torch.manual_seed(0)
    folder = edit_weights(tiny, tmp_path / "odd", unequal)
    folder = edit_config(folder, tmp_path / "odd3", num_experts=3)
    again = MTUUNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    assert again.state_dict().keys() == load(folder).state_dict().keys()
    unet = mtu.load(folder)
    if double:
        unet.double()
    kind = torch.float64 if double else torch.float32
    arguments = {
        k: v.to(kind) if isinstance(v, torch.Tensor) else v for k, v in inputs(unet, "edit").items()
    }
    with torch.no_grad():
        want = unet(**arguments, task="edit").sample
        folded = mtu.specialise(unet, [unet.task("edit")])["edit"]
        got = folded.module(**arguments).sample
    assert psnr(want.numpy(), got.numpy()) > (250 if double else 110)
    assert max(folded.errors.values()) < (1e-14 if double else 1e-6)
    assert "width 109, a stock one 128" in folded.deviations[0]


def test_stacked_norms_fold_to_two_norms(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny(task_norm="stacked")
    tensors = load_file(folder / WEIGHTS)
    path = next(name for name in tensors if name.endswith(".norm3.weight")).removesuffix(".weight")
    assert f"{path}.edit.weight" in tensors
    unet = mtu.load(folder)
    arguments = inputs(unet, "edit")
    with torch.no_grad():
        want = unet(**arguments, task="edit").sample
        folded = mtu.specialise(unet, [unet.task("edit")])["edit"]
        got = folded.module(**arguments).sample
    assert psnr(want.numpy(), got.numpy()) > 110
    assert "two stacked norms" in folded.deviations[0]


def test_a_block_that_is_not_exact_is_refused_by_name(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.models.mtu import experts

    def sees_data(self: experts.MTUFeedForward, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean() + original(self, x)

    original = experts.MTUFeedForward.forward
    monkeypatch.setattr(experts.MTUFeedForward, "forward", sees_data)
    unet = mtu.load(tiny)
    with pytest.raises(NotFoldable, match=r"^down_blocks\.0\.attentions\.0\.transformer_blocks\.0"):
        mtu.specialise(unet, [unet.task("edit")])


PLAIN_DIFFUSERS = """
import sys, torch
from diffusers import UNet2DConditionModel
assert not any(name.startswith("mtu_export") for name in sys.modules)
unet = UNet2DConditionModel.from_pretrained(sys.argv[1])
given = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(unet(**given).sample, sys.argv[3])
"""


@pytest.mark.slow
def test_plain_diffusers_opens_the_folded_unet(tiny: Path, tmp_path: Path) -> None:
    resolved = options.resolve(target="diffusers", model=tiny, task="edit", out=tmp_path / "edit")
    exporter.save_folded(resolved)
    unet = load(tiny)
    arguments = inputs(unet, "edit")
    torch.save(arguments, tmp_path / "given.pt")
    command = [sys.executable, "-c", PLAIN_DIFFUSERS]
    paths = [str(tmp_path / name) for name in ("edit", "given.pt", "found.pt")]
    subprocess.run([*command, *paths], check=True, capture_output=True)
    output = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        want = unet(**arguments, task="edit").sample
    assert psnr(want.numpy(), output.numpy()) > 110
