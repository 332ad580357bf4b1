"""Int8 activations in PyTorch, before anything is lowered: what they cost, and what they clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mtu_export import capture, quantize
from mtu_export.catalog import SCHEMES
from mtu_export.models.blocks import Graph
from mtu_export.spec import Arrays, TensorSpec
from mtu_export.targets.executorch.activations import make_int8
from mtu_export.verify import psnr

IN = TensorSpec(name="sample", shape=(1, 8, 12, 16))


class Convolution(nn.Module):
    """Named so that no scheme leaves it in float."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, 3, padding=1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layer(sample)


class Pointwise(nn.Module):
    """A convolution of single pixels between others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layer(sample)


class Viewed(nn.Module):
    """Convolutions of one pixel and of nine, then groups as a view."""

    def __init__(self, bias: bool, words: dict[str, int]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 24, 1, bias=bias, **words)  # type: ignore[arg-type]
        self.other = nn.Conv2d(24, 24, 3, bias=bias)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        pixels = self.layer(sample)
        rows = pixels.view(1, 4, -1) + 1
        return rows.sum(1, keepdim=True) + self.other(pixels).reshape(1, 4, -1).mean()


class Tokens(nn.Module):
    """A linear layer on tokens, or on a picture's rows."""

    def __init__(self, picture: bool = False) -> None:
        super().__init__()
        self.layer, self.picture = nn.Linear(16, 24), picture

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.layer(sample if self.picture else sample.flatten(1, 2))


def case(seed: int, scale: float = 1.0) -> Arrays:
    value = np.random.default_rng(seed).uniform(-scale, scale, IN.shape)
    return {"sample": value.astype(np.float32)}


def made(module: nn.Module, feeds: list[Arrays]) -> tuple[Callable[..., float], str]:
    """dB of the quantised layer against the float one for an input, and what it is called.

    Of all that comes out, or of the input's rows from ``first_row`` on.
    """
    graph = Graph(module=module.eval(), inputs=(IN,), outputs=(TensorSpec(name="y", shape=(1,)),))
    exact = torch.export.export(module, (torch.zeros(IN.shape),)).module()
    wanted = {name: value.clone() for name, value in module.state_dict().items()}
    quantize.quantize([module], SCHEMES["int8"])
    program = capture.capture("unet", {"edit": graph}, {"edit": [case(0)]}, "seeded")
    found, name, apart = make_int8(program.methods["edit"], ["sample"], feeds)
    assert not apart
    run = found.module()
    assert all(torch.equal(exact.state_dict()[n], value) for n, value in wanted.items())

    def db(given: Arrays, first_row: int = 0) -> float:
        value = torch.from_numpy(given["sample"])
        with torch.no_grad():
            both = exact(value).numpy(), run(value).numpy()
        if first_row:
            rows = [found.reshape(1, -1, IN.shape[2], found.shape[-1]) for found in both]
            return psnr(rows[0][:, :, first_row:], rows[1][:, :, first_row:])
        return psnr(*both)

    return db, name


def test_a_convolution_has_room_above_what_calibration_reached() -> None:
    torch.manual_seed(0)
    db, name = made(Convolution(), [case(1), case(2)])
    assert name == "mixed_int8"
    assert db(case(3)) > 45
    assert db(case(3, 1.19)) > 45
    assert db(case(3, 2.5)) < 25  # else nothing is static


@pytest.mark.parametrize("module", [Tokens, Pointwise])
def test_a_layer_on_tokens_takes_any_reach_and_needs_no_inputs(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    db, name = made(module(), [])
    assert name == "dynamic_int8"
    reached = [db(case(3, scale)) for scale in (0.01, 1.0, 100.0)]
    assert min(reached) > 40
    mixed = case(4)
    mixed["sample"][:, :, 0] *= 1000  # the tokens of one row in twelve
    assert db(mixed, first_row=1) > 40


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("words", [{}, {"padding": 1}, {"stride": 2}, {"groups": 4}])
def test_convolutions_of_one_pixel_and_what_views_them(bias: bool, words: dict[str, int]) -> None:
    """Pixels as tokens leave another order in memory than a convolution does."""
    torch.manual_seed(0)
    module = Viewed(bias, words)
    db, name = made(module, [case(1), case(2)])
    assert name == "mixed_int8"
    assert db(case(3)) > 38


@pytest.mark.parametrize("module", [Convolution(), Tokens(picture=True)])
def test_a_layer_on_pictures_wants_inputs(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="calibration inputs"):
        made(module, [])
