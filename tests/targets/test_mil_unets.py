"""UNets of other checkpoints, and packages of several functions, evaluated as they are saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mtu_export import targets
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.graph import capture, quantize
from mtu_export.graph.capture import Graph
from mtu_export.spec import TensorSpec
from mtu_export.targets.coreml import mil, package

from .mil_packages import mb, save

pytestmark = pytest.mark.slow
SPECS = (
    TensorSpec(name="sample", shape=(1, 4, 8, 8)),
    TensorSpec(name="timestep", shape=(1,)),
    TensorSpec(name="encoder_hidden_states", shape=(1, 77, 48)),
)


class StableDiffusion2(nn.Module):
    """A tiny UNet in the manner of SD 2.x: linear projections, heads of one size in each block."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=48,
            norm_num_groups=8,
            use_linear_projection=True,
        )

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


@pytest.mark.parametrize(
    ("scheme", "system", "floor"),
    [("fp16", "iOS16", 55), ("int8", "iOS18", 35)],
)
def test_a_unet_of_sd_2_is_evaluated(
    scheme: str, system: str, floor: float, tiny: Path, tmp_path: Path
) -> None:
    whole = options.resolve(
        target="coreml",
        model=tiny,
        task="t2i",
        scheme=scheme,
        options={"deployment_target": system},
    )
    random = np.random.default_rng(0)
    cases = [
        {s.name: random.standard_normal(s.shape, np.float32) for s in SPECS}
        | {"timestep": np.array([step], np.float32)}
        for step in (981, 501, 21)
    ]
    output = TensorSpec(name="out_sample", shape=(1, 4, 8, 8))
    graph = Graph(module=StableDiffusion2().eval(), inputs=SPECS, outputs=(output,))
    expected = capture.run(graph, cases)
    quantize.quantize([graph.module.unet], whole.schemes["unet"])  # type: ignore[union-attr]
    program = capture.capture("unet", {"t2i": graph})
    lowered = targets.load("coreml").lower(program, whole, tmp_path, {"name": "sd2"})
    session = mil.open(tmp_path / lowered.path, "main")
    for case, want in zip(cases, expected, strict=True):
        assert psnr(want["out_sample"], session(case)["out_sample"]) > floor


def test_each_function_of_a_package_is_evaluated(tmp_path: Path) -> None:
    """Two tasks in one package with one set of weights."""
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    x = np.linspace(-1, 1, 8, dtype=np.float32)[None]

    def build(scale: float) -> Any:
        return lambda x: [mb.linear(x=mb.mul(x=x, y=np.float32(scale)), weight=weight)]

    tools: Any = ct.utils
    descriptor = tools.MultiFunctionDescriptor()
    for name, scale in (("t2i", 1.0), ("edit", 3.0)):
        path = save(tmp_path / f"{name}.mlpackage", {"x": x}, build(scale), 8)
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = "t2i"
    both = tmp_path / "Both.mlpackage"
    tools.save_multifunction(descriptor, str(both))
    package.seal(both, {})
    actual = {name: mil.open(both, name)({"x": x})["out_0"] for name in ("t2i", "edit")}
    np.testing.assert_allclose(actual["t2i"], x @ weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual["edit"], 3 * actual["t2i"], rtol=1e-5, atol=1e-6)
    shutil.rmtree(both)
