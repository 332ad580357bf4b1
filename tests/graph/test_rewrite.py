"""Rewrites keep the mathematics and do change the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from mtu_export.bundle.metrics import psnr
from mtu_export.graph import rewrite
from mtu_export.models.mtu import network as mtu
from mtu_export.models.pipeline import stock
from mtu_export.spec import UnknownName, Unsupported


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_sdxl"])
def test_rewritten_unets_compute_the_same(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    live = mtu.load(folder)
    unet = mtu.specialise(live, [live.task("sr")])["sr"].module
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 8, 16, 16, generator=random), torch.tensor([7.0])]
    inputs.append(torch.randn(2, 77, 32, generator=random))
    added = None
    if name == "tiny_sdxl":
        added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.full((2, 6), 128.0)}
    with torch.no_grad():
        want = unet(*inputs, added_cond_kwargs=added).sample
        for step in ("attention", "geglu"):
            before = str(
                torch.export.export(unet, tuple(inputs), {"added_cond_kwargs": added}).graph
            )
            rewrite.apply(unet, [step])
            after = str(
                torch.export.export(unet, tuple(inputs), {"added_cond_kwargs": added}).graph
            )
            gone = {"attention": "scaled_dot_product_attention", "geglu": "chunk"}[step]
            assert gone in before
            assert gone not in after or step == "geglu"
            assert after.count("chunk") < before.count("chunk") or step == "attention"
            assert psnr(want.numpy(), unet(*inputs, added_cond_kwargs=added).sample.numpy()) > 110


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_attention_of_a_vae_is_rewritten(half: str, pipeline: Path) -> None:
    vae = stock.load_vae(pipeline)
    graph = getattr(stock, f"vae_{half}_graph")(vae, 64, 128)
    values = torch.randn(graph.inputs[0].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = graph.module(values)
        before = str(torch.export.export(graph.module, (values,)).graph)
        rewrite.apply(graph.module, ["attention"])
        after = str(torch.export.export(graph.module, (values,)).graph)
        assert "scaled_dot_product_attention" in before
        assert "scaled_dot_product_attention" not in after
        assert psnr(want.numpy(), graph.module(values).numpy()) > 110


def test_attention_on_sequences_with_a_norm_and_a_residual_is_rewritten() -> None:
    torch.manual_seed(0)
    options = {"heads": 2, "dim_head": 8, "norm_num_groups": 4, "residual_connection": True}
    block = Attention(16, **options, bias=True).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 10, 16)
    want = block(x).detach()
    rewrite.apply(block, ["attention"])
    assert isinstance(block.processor, rewrite.PlainAttention)
    assert psnr(want.numpy(), block(x).detach().numpy()) > 110


@pytest.mark.parametrize("residual", [False, True])
def test_attention_that_scales_its_output_is_rewritten(residual: bool) -> None:
    torch.manual_seed(0)
    block = Attention(
        16, heads=2, dim_head=8, rescale_output_factor=1.5, residual_connection=residual
    ).eval()
    x = torch.randn(2, 10, 16)
    expected = block(x).detach()
    rewrite.apply(block, ["attention"])
    assert isinstance(block.processor, rewrite.PlainAttention)
    assert psnr(expected.numpy(), block(x).detach().numpy()) > 110


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"qk_norm": "layer_norm"}, "norm_q, norm_k"),
        ({"cross_attention_dim": 8, "cross_attention_norm": "layer_norm"}, "norm_cross"),
        ({"spatial_norm_dim": 32}, "spatial_norm"),
        ({"added_kv_proj_dim": 8}, "added_kv_proj_dim"),
    ],
    ids=["qk", "cross", "spatial", "added"],
)
def test_attention_that_is_not_plain_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    block = torch.nn.ModuleDict({"attn1": Attention(32, heads=2, dim_head=16, **options)})
    with pytest.raises(Unsupported, match=f"^attn1: attention with {name} cannot be exported"):
        rewrite.apply(block, ["attention"])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 256, 160), (1, 8, 40000), (2, 8, 3)])
def test_large_groups_are_normalised_axis_by_axis(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 8, eps=1e-3, affine=affine)
    module = torch.nn.Sequential(norm)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    values = torch.randn(shape) * torch.rand(1, 8, *[1] * (len(shape) - 2)) + 3
    with torch.no_grad():
        want = module.double()(values.double())
        module.float()
        rewrite.apply(module, ["group_norm"])
        assert psnr(want.numpy(), module(values).numpy()) > 130
        graph = str(torch.export.export(module, (values,)).graph)
    assert ("group_norm" in graph) == (shape[-1] == 3)


def test_unknown_rewrites_are_refused() -> None:
    with pytest.raises(UnknownName, match="attention, geglu"):
        rewrite.apply(torch.nn.Identity(), ["flash"])
