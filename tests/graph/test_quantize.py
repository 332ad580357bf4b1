"""Integer codes: bounds, exactness, odd rows, what stays float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtu_export import models
from mtu_export.checkpoint import EMBEDDED
from mtu_export.graph import quantize
from mtu_export.graph.gated import GatedLinear
from mtu_export.spec import IntWeights, PerGroup, Scheme, Unsupported
from mtu_export.spec.catalog import SCHEMES


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 40),
    exponent=st.floats(-20, 20),
    seed=st.integers(0, 2**31),
)
def test_codes_are_within_half_a_step(rows: int, columns: int, exponent: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random) * 10**exponent
    codes, scales = quantize.codes_and_scales(weight)
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -127
    error = (codes.double() * scales.double()[:, None] - weight.double()).abs()
    assert bool((error <= scales.double()[:, None] * (0.5 + 1e-4)).all())
    assert bool((codes.abs().amax(1) == 127).all())


def test_rows_of_zeros_have_a_scale_that_runtimes_take() -> None:
    codes, scales = quantize.codes_and_scales(torch.zeros(2, 3))
    assert codes.tolist() == [[0] * 3] * 2
    assert scales.tolist() == [1.0, 1.0]
    gated = GatedLinear(torch.ones(2, 3), torch.zeros(2), torch.tensor([1.0, 1e-44]))
    net = nn.Sequential(gated)
    quantize.quantize_layer([net], "0", 8)
    layer = net[0]
    assert isinstance(layer, quantize.QuantizedLinear)
    assert bool((layer.scales >= torch.finfo(torch.float32).tiny).all())
    assert float(layer.weight()[1].abs().max()) < 1e-35


def _net() -> nn.Module:
    net = nn.Module()
    net.conv_in = nn.Conv2d(3, 4, 3, padding=1)
    net.body = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Linear(4, 5, bias=False))
    net.time_embedding = nn.Sequential(nn.Linear(4, 4))
    net.conv_out = nn.Conv2d(4, 3, 1)
    return net


def test_first_last_and_time_stay_float_with_a_reason() -> None:
    net, (unet,) = _net(), (p for p in models.open(EMBEDDED).parts if p.kind == "denoiser")
    kept = quantize.quantize([net], unet.scheme(SCHEMES["int8"], SCHEMES, gains=True))
    assert kept == (
        ("conv_in", "first layer"),
        ("time_embedding.0", "time embedding"),
        ("conv_out", "last layer"),
    )
    body = net.get_submodule("body")
    assert isinstance(body[0], quantize.QuantizedConv2d)  # type: ignore[index]
    assert isinstance(body[1], quantize.QuantizedLinear)  # type: ignore[index]


def test_quantised_layers_compute_what_their_codes_say() -> None:
    net = _net()
    conv = net.get_submodule("body")[0]  # type: ignore[index]
    x = torch.randn(1, 4, 8, 8)
    codes, scales = quantize.codes_and_scales(conv.weight)
    weight = codes.float() * scales[:, None, None, None]
    want = torch.nn.functional.conv2d(x, weight, conv.bias, stride=2, padding=1)
    quantize.quantize([net], SCHEMES["int8"])
    torch.testing.assert_close(net.get_submodule("body")[0](x), want)  # type: ignore[index]


def test_other_granularities_are_refused() -> None:
    scheme = Scheme(
        name="int4",
        weights=IntWeights(bits=4, granularity=PerGroup(size=32)),
        floor_db=20,
        pass_floor_db=10,
    )
    with pytest.raises(Unsupported, match="per output channel"):
        quantize.quantize([_net()], scheme)


@pytest.mark.parametrize(
    "options", [{"padding_mode": "reflect", "padding": 1}, {"padding": "same"}]
)
def test_other_paddings_than_zeros_are_refused(options: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, **options))
    with pytest.raises(Unsupported, match=r"^0: padding .* --keep-float 0$"):
        quantize.quantize([module], SCHEMES["int8"])
    assert isinstance(module[0], nn.Conv2d)
