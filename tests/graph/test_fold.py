"""The fold is exact: property tests in float32 and float64, and what it refuses."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.graph import fold, quantize, rewrite
from mtu_export.graph.gated import GatedLinear, bake
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.spec import NotFoldable
from mtu_export.spec.catalog import SCHEMES

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def make_experts(
    widths: list[int], dim: int, dtype: torch.dtype, seed: int
) -> list[fold.ExpertWeights]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    return [
        fold.ExpertWeights(
            proj=normal(2 * width, dim),
            proj_bias=normal(2 * width),
            out=normal(dim, width),
            out_bias=normal(dim),
        )
        for width in widths
    ]


def by_the_format(
    experts: list[fold.ExpertWeights], weights: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Σ_i w_i · out_i(value_i(x) · gelu(gate_i(x))) in float64, as docs/checkpoint.md writes it."""
    total = torch.zeros_like(x)
    for w, e in zip(weights.double(), experts, strict=True):
        value, gate = F.linear(x, e.proj.double(), e.proj_bias.double()).chunk(2, -1)
        total = total + w * F.linear(value * F.gelu(gate), e.out.double(), e.out_bias.double())
    return total


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 24), min_size=1, max_size=8),
    dim=st.integers(1, 24),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**31),
)
def test_fold_is_exact(widths: list[int], dim: int, dtype: str, seed: int) -> None:
    kind = DTYPES[dtype]
    experts = make_experts(widths, dim, kind, seed)
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(widths), generator=random, dtype=torch.float64).softmax(0)
    folded = fold.fold_experts(experts, [weights])[0]
    error = fold.prove("block", lambda x: by_the_format(experts, weights, x), folded, dim, kind)
    assert error <= fold.TOLERANCE * torch.finfo(kind).eps
    assert folded.get_submodule("net.2").in_features == sum(widths)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), experts=st.integers(1, 5))
def test_integer_codes_do_not_depend_on_the_task(seed: int, experts: int) -> None:
    experts_ = make_experts([7] * experts, 9, torch.float32, seed)
    random = torch.Generator().manual_seed(seed)
    codes = []
    for _ in range(2):
        weights = torch.randn(experts, generator=random, dtype=torch.float64).softmax(0)
        module = fold.fold_experts(experts_, [weights])[0]
        quantize.quantize([module], SCHEMES["int8"])
        codes.append((module, weights))
    (one, w_one), (two, w_two) = codes
    assert torch.equal(one.net[0].proj.codes, two.net[0].proj.codes)
    assert torch.equal(one.net[2].codes, two.net[2].codes)
    ratio = one.net[0].proj.scales / two.net[0].proj.scales
    want = (w_one / w_two).repeat_interleave(7).float()
    torch.testing.assert_close(ratio, torch.cat([want, torch.ones_like(want)]))


@pytest.mark.parametrize("tokens", [3, 5])
def test_gates_multiply_in_as_a_dense_layer_does(tokens: int) -> None:
    """On the outputs, on the weights where these are fewer, and in the layer that is left."""
    layer = GatedLinear(torch.randn(6, 4), torch.randn(6), torch.rand(6))
    x = torch.randn(tokens, 4)
    module = torch.nn.Sequential(layer)
    want = layer.gain * F.linear(x, layer.weight, layer.bias)
    assert torch.equal(module(x), want)
    rewrite.gate_weight(module)
    torch.testing.assert_close(module(x), want)
    bake(module)
    assert type(module[0]) is torch.nn.Linear
    torch.testing.assert_close(module(x), want)


def test_tasks_fold_onto_the_same_matrices() -> None:
    experts = make_experts([4, 3], 6, torch.float32, 0)
    weights = [torch.tensor(row, dtype=torch.float64) for row in ([0.3, 0.7], [0.9, 0.1])]
    one, two = fold.fold_experts(experts, weights)
    for name in ("net.0.proj", "net.2"):
        layers = one.get_submodule(name), two.get_submodule(name)
        assert len({layer.weight.data_ptr() for layer in layers}) == 1  # type: ignore[union-attr]
    assert not torch.equal(one.get_submodule("net.2").bias, two.get_submodule("net.2").bias)  # type: ignore[arg-type]
    for module, row in ((one, weights[0]), (two, weights[1])):
        live = lambda x, w=row: by_the_format(experts, w, x)  # noqa: E731
        assert fold.prove("b", live, module, 6, torch.float32) < 2e-6


def test_a_wrong_fold_is_refused_by_name() -> None:
    experts = make_experts([4, 4], 6, torch.float32, 0)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    other = fold.fold_experts(experts, [weights + torch.tensor([1e-5, -1e-5])])[0]
    with pytest.raises(NotFoldable, match=r"mid\.block: .*differs"):
        fold.prove(
            "mid.block", lambda x: by_the_format(experts, weights, x), other, 6, torch.float32
        )


def test_a_router_that_sees_the_data_is_refused() -> None:
    experts = make_experts([4, 4], 6, torch.float32, 0)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)

    def live(x: torch.Tensor) -> torch.Tensor:
        data = torch.stack([x.mean(), -x.mean()]).softmax(0)
        return by_the_format(experts, data, x)

    with pytest.raises(NotFoldable, match="block"):
        fold.prove("block", live, fold.fold_experts(experts, [weights])[0], 6, torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    experts = make_experts([4, 4], 6, torch.float32, 0)
    with pytest.raises(NotFoldable):
        fold.fold_experts(experts, [torch.tensor([bad, 1.0])])
    experts[0].proj[0, 0] = bad
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    folded = fold.fold_experts(experts, [weights])[0]
    with pytest.raises(NotFoldable, match="nan"):
        fold.prove("b", lambda x: by_the_format(experts, weights, x), folded, 6, torch.float32)


def test_a_block_of_zeros_folds() -> None:
    experts = make_experts([4, 4], 6, torch.float32, 0)
    for expert in experts:
        expert.out.zero_()
        expert.out_bias.zero_()
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    folded = fold.fold_experts(experts, [weights])[0]
    live = lambda x: by_the_format(experts, weights, x)  # noqa: E731
    assert fold.prove("b", live, folded, 6, torch.float32) == 0


def test_experts_in_float64_go_block_by_block(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one block's proof takes is free before the next begins."""
    pipeline = mtu.load(tiny)
    seen: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    prove = fold.prove

    def watch(block: str, live: torch.nn.Module, *rest: Any) -> float:
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(live))
        return prove(block, live, *rest)

    monkeypatch.setattr(fold, "prove", watch)
    mtu.specialise(pipeline, presets.resolve_tasks(["sr"], pipeline.config))
    assert alive == [0] * len(alive)
    assert len(alive) > 2
