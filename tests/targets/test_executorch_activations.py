"""Int8 activations: what they cost in PyTorch, and that the runtime has the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mtu_export import targets
from mtu_export.bundle.metrics import psnr
from mtu_export.graph import capture, quantize
from mtu_export.graph.capture import Graph
from mtu_export.spec import Arrays, Session, TensorSpec
from mtu_export.spec.catalog import SCHEMES
from mtu_export.targets.executorch import lowering
from mtu_export.targets.executorch.activations import make_int8

executorch = targets.load("executorch")
IN = TensorSpec(name="sample", shape=(1, 8, 12, 16))


class Pointwise(nn.Module):
    """A convolution of single pixels between others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layer(sample)


class Viewed(nn.Module):
    """Convolutions of one pixel and of nine, then groups as a view."""

    def __init__(self, bias: bool, options: dict[str, int]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, 1, bias=bias, **options)  # type: ignore[arg-type]
        self.other = nn.Conv2d(24, 24, 3, bias=bias)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        pixels = self.layer(sample)
        rows = pixels.view(1, 4, -1) + 1
        return rows.sum(1, keepdim=True) + self.other(pixels).reshape(1, 4, -1).mean()


class Convolution(nn.Module):
    """Of several pixels; its picture is used beside it, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, **options)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        curved = torch.nn.functional.silu(sample)
        return self.layer(curved) + curved.mean()


class Tokens(nn.Module):
    """A linear layer on tokens, or on a picture's rows."""

    def __init__(self, picture: bool = False) -> None:
        super().__init__()
        self.layer, self.picture = nn.Linear(16, 24), picture

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layer(sample if self.picture else sample.flatten(1, 2))


class Chain(nn.Module):
    """What a UNet has: two convolutions of one value, a norm, a residual, half and twice the size.

    ExecuTorch's pass for layouts goes from a dynamic convolution back to the first value of all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.across, self.norm = nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16)
        self.down, self.up = nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Conv2d(16, 8, 3)
        self.middle = nn.Linear(16, 16)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.silu(self.norm(self.first(sample)))
        hidden = self.second(hidden) + self.across(sample)
        small = self.down(hidden)
        tokens = self.middle(small.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(small.shape)
        wide = torch.nn.functional.interpolate(tokens + small, scale_factor=2.0, mode="nearest")
        return self.up(torch.nn.functional.pad(wide, (1, 1, 0, 2))) + sample


def case(seed: int, scale: float = 1.0) -> Arrays:
    value = np.random.default_rng(seed).uniform(-scale, scale, IN.shape)
    return {"sample": value.astype(np.float32)}


Db = Callable[..., float]


def make_quantised(module: nn.Module) -> tuple[Db, torch.export.ExportedProgram]:
    """dB of the quantised layers against the float ones for an input, and the program.

    Of all that comes out, or of the input's rows from ``first_row`` on.
    """
    graph = Graph(module=module.eval(), inputs=(IN,), outputs=(TensorSpec(name="y", shape=(1,)),))
    exact = torch.export.export(module, (torch.zeros(IN.shape),)).module()
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    quantize.quantize([module], SCHEMES["int8"])
    program_ = make_int8(capture.capture("unet", {"edit": graph}).methods["edit"])
    run = program_.module()
    assert all(torch.equal(exact.state_dict()[n], value) for n, value in expected.items())

    def db(inputs: Arrays, first_row: int = 0) -> float:
        value = torch.from_numpy(inputs["sample"])
        with torch.no_grad():
            both = exact(value).numpy(), run(value).numpy()
        assert both[0].shape == both[1].shape
        if first_row:
            rows = [program_.reshape(1, -1, IN.shape[2], program_.shape[-1]) for program_ in both]
            return psnr(rows[0][:, :, first_row:], rows[1][:, :, first_row:])
        return psnr(*both)

    return db, program_


KERNELS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 3, "padding": (0, 1)},
    {"kernel_size": 3, "padding": (2, 0), "dilation": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 5, "padding": 2, "groups": 2, "bias": False},
    {"kernel_size": (1, 3)},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", KERNELS)
def test_a_convolution_takes_any_reach(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    db, program = make_quantised(Convolution(**options))
    reached = [db(case(3, scale)) for scale in (0.01, 1.0, 100.0)]
    assert 40 < min(reached) <= reached[1] < 70  # else nothing is quantised
    faint = make_quantised(Convolution(**{**options, "bias": False}))[
        0
    ]  # which is not hidden by a bias
    assert faint(case(3, 1e-5)) > 40
    assert coded(program) == 1
    assert db(case(3, 0.0)) == 300  # zeros are exact, padding too


@pytest.mark.parametrize("module", [Tokens(), Tokens(picture=True), Pointwise()])
def test_a_layer_on_tokens_takes_any_reach(module: nn.Module) -> None:
    torch.manual_seed(0)
    db, program = make_quantised(module)
    reached = [db(case(3, scale)) for scale in (0.01, 1.0, 100.0)]
    assert 40 < min(reached) <= reached[1] < 70
    mixed = case(4)
    mixed["sample"][:, :, 0] *= 1000  # the tokens of one row in twelve
    assert db(mixed, first_row=1) > 40
    assert coded(program) == 1


def coded(program: torch.export.ExportedProgram) -> int:
    """Layers whose input is quantised."""
    quantised = torch.ops.quantized_decomposed
    kinds = (quantised.quantize_per_token.default, quantised.quantize_per_tensor.tensor)
    return sum(node.target in kinds for node in program.graph.nodes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2}, {"groups": 4}])
def test_convolutions_of_one_pixel_and_what_views_them(bias: bool, options: dict[str, int]) -> None:
    """Pixels as tokens leave another order in memory than a convolution does."""
    torch.manual_seed(0)
    db, program = make_quantised(Viewed(bias, options))
    assert coded(program) == 2
    assert db(case(3)) > 38


@pytest.mark.parametrize("channels", [8, 1])
def test_a_depthwise_convolution_is_refused(channels: int) -> None:
    module = nn.Conv2d(channels, 24, 3, groups=channels)
    quantize.quantize([whole := nn.Sequential(module)], SCHEMES["int8"])
    program = torch.export.export(whole, (torch.zeros(1, channels, 12, 16),))
    with pytest.raises(ValueError, match="no depthwise convolution of dynamic int8"):
        make_int8(program)


@pytest.mark.slow
def test_the_runtime_makes_of_a_chain_what_pytorch_makes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    db, program = make_quantised(Chain())
    assert coded(program) == 6
    inputs = case(3)
    assert 38 < db(inputs) < 70
    session, notes = run(program, tmp_path)
    layers = ("aten_convolution", "aten_linear", "quantized_decomposed")
    assert not any(kind.startswith(layers) for kind in notes["outside"])
    actual = session(inputs)["y"]
    with torch.no_grad():
        expected = program.module()(torch.from_numpy(inputs["sample"])).numpy()
    assert psnr(expected, actual) > 45


@pytest.mark.slow
def test_the_runtime_takes_a_range_for_each_picture_of_a_batch(tmp_path: Path) -> None:
    """Passes of guidance are one batch, and may reach further than one another."""
    torch.manual_seed(0)
    module = nn.Sequential(Chain()).eval()
    values = torch.from_numpy(np.concatenate([case(3)["sample"], case(4, 100.0)["sample"]]))
    with torch.no_grad():
        expected = module(values).numpy()
    quantize.quantize([module], SCHEMES["int8"])
    program = make_int8(torch.export.export(module, (values,)))
    with torch.no_grad():
        common = program.module()(values).numpy()
    assert psnr(expected[0], common[0]) < 25  # what one range for all would do
    session, _ = run(program, tmp_path)
    actual = session({"sample": values.numpy()})["y"]
    assert all(psnr(*both) > 38 for both in zip(expected, actual, strict=True))


def run(program: torch.export.ExportedProgram, folder: Path) -> tuple[Session, dict[str, Any]]:
    """The lowered program in ExecuTorch's runtime, and what lowering said of it."""
    interface = {"forward": {"inputs": ["sample"], "outputs": ["y"]}}
    names = {"_identity": "{}", "_interface": json.dumps(interface)}
    notes = lowering.write({"forward": program}, names, folder / "made.pte")
    return targets.runtime(executorch).open(folder / "made.pte", "forward"), notes["forward"]
