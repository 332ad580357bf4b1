"""The layer that is named is the one that costs most."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mtu_export import exporter
from mtu_export.bundle import metrics
from mtu_export.exporter import options, sensitivity
from mtu_export.graph import quantize
from mtu_export.graph.capture import Graph
from mtu_export.spec import KeepFloat, ParityError, PlanError, TensorSpec, UnknownName
from mtu_export.spec.catalog import SCHEMES

INT8 = SCHEMES["int8"]


def _graph() -> tuple[Graph, nn.Module]:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(4)]
    with torch.no_grad():
        layers[2].weight[:, 0] = 60.0  # coarse steps for the rest of every row
    net = nn.Sequential(*layers)
    spec = TensorSpec(name="x", shape=(5, 16))
    out = TensorSpec(name="y", shape=(5, 16))
    return Graph(module=net, inputs=(spec,), outputs=(out,)), net


def test_each_layer_alone_is_what_rounding_its_weights_by_hand_gives() -> None:
    graph, net = _graph()
    reference = copy.deepcopy(net)
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    x[:, 0] = 0
    together, losses = sensitivity.measure(graph, net, INT8, [{"x": x}])
    assert [loss.psnr_db for loss in losses] == sorted(loss.psnr_db for loss in losses)
    want = reference(torch.from_numpy(x)).detach().numpy()
    for loss in losses:
        twin = copy.deepcopy(reference)
        layer = twin.get_submodule(loss.layer)
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.detach().numpy()
        step = np.abs(weight).max(1, keepdims=True) / 127
        layer.weight.data = torch.from_numpy(np.round(weight / step) * step)
        actual = twin(torch.from_numpy(x)).detach().numpy()
        assert loss.psnr_db == pytest.approx(metrics.psnr(want, actual), abs=0.1)
    assert losses[0].layer == "2"
    assert together <= losses[0].psnr_db + 1
    line = sensitivity.describe(together, losses, (64, 32), 8)
    assert "most alone is 2 with" in line
    assert line.count(" dB") == 5


def test_the_model_is_quantised_in_the_end() -> None:
    graph, net = _graph()
    expected = copy.deepcopy(net)
    quantize.quantize([expected], INT8)
    sensitivity.measure(graph, net, INT8, [{"x": np.ones((5, 16), np.float32)}])
    assert net.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in expected.state_dict().items())


@pytest.mark.slow
def test_a_failed_parity_names_four_layers_and_keeping_them_helps(
    atom: Path, tmp_path: Path
) -> None:
    def plan(**more: Any) -> options.Plan:
        return options.resolve(
            target="reference", model=atom, task="edit", scheme="int8", out=tmp_path / "o", **more
        )

    with pytest.raises(ParityError, match="the layer that costs most alone is") as caught:
        exporter.export(plan(min_psnr=80.0))
    assert list(tmp_path.iterdir()) == []
    line = str(caught.value)
    worst = line.partition("most alone is ")[2].partition(" with")[0]
    before = float(line.partition("torch")[2].partition(": ")[2].partition(" dB")[0])
    exported = exporter.export(plan(keep_float=[worst]))
    kept = {kept.layer: kept.why for kept in exported.manifest.scheme.kept_float}
    assert kept[worst] == "asked for"
    after = next(verdict.psnr_db for verdict in exported.proof if verdict.stage == "quantised")
    assert after is not None
    assert after > before


@pytest.mark.slow
def test_passes_below_their_floor_refuse_an_export_and_a_free_loop_does_not(
    atom_pipeline: Path, tmp_path: Path
) -> None:
    plan: Any = {"target": "reference", "task": "sr", "scheme": "int8", "out": tmp_path / "o"}
    asked = options.resolve(model=atom_pipeline, **plan)
    high = replace(asked, scheme=replace(asked.scheme, pass_floor_db=200.0))
    line = r"pipeline of .*\(passes, .*floor 200 dB; the worst"
    with pytest.raises(ParityError, match=line):
        exporter.export(high)
    assert list(tmp_path.iterdir()) == []
    verdicts = {verdict.stage: verdict for verdict in exporter.export(asked).proof}
    assert verdicts["passes"].passed is True
    assert (verdicts["loop"].passed, verdicts["loop"].floor_db) == (None, 0.0)
    assert verdicts["loop"].runner


def test_a_scheme_that_quantises_nothing_is_refused() -> None:
    everything = (KeepFloat(pattern=".*", why="asked for", required=True),)
    with pytest.raises(PlanError, match="leaves no layer to quantise"):
        quantize.quantize([_graph()[1]], replace(INT8, overrides=everything))
    nothing = (KeepFloat(pattern="7", why="asked for", required=True),)
    with pytest.raises(UnknownName, match="unknown layer to keep in float '7'; choose from: "):
        quantize.quantize([_graph()[1]], replace(INT8, overrides=nothing))


def test_an_override_of_no_layer_is_refused_before_the_model_is_loaded(
    atom: Path, tmp_path: Path
) -> None:
    stages: list[str] = []

    def watch(stage: str) -> AbstractContextManager[None]:
        stages.append(stage)
        return nullcontext()

    asked = options.resolve(
        target="onnx",
        model=atom,
        task="sr",
        scheme="int8",
        keep_float=["mid_block.nothing"],
        out=tmp_path / "b",
    )
    with pytest.raises(UnknownName, match="unknown layer to keep in float 'mid_block"):
        exporter.export(asked, watch)
    assert [stage.partition(" ")[0] for stage in stages] == ["compare", "import", "probe"]


@pytest.mark.parametrize("pattern", ["", "(", "a{2000}", r"(a)\1", "(?=a)", "x" * 301])
def test_patterns_that_cannot_be_are_refused(pattern: str, atom: Path) -> None:
    with pytest.raises(PlanError, match="--keep-float"):
        options.resolve(
            target="onnx", model=atom, task="sr", scheme="int8", keep_float=[pattern], out="none"
        )


def test_a_float_scheme_has_nothing_to_keep(atom: Path) -> None:
    with pytest.raises(PlanError, match="keeps every layer in float; choose int8"):
        options.resolve(target="onnx", model=atom, task="sr", keep_float=["conv_in"], out="none")
