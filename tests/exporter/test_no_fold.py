"""The unfolded export: the router is in the graph, and the task's embedding is its input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, metrics
from mtu_export.cli import app
from mtu_export.exporter import resume
from mtu_export.exporter.options import resolve
from mtu_export.graph import capture
from mtu_export.models.mtu.baselines import EMBEDDING
from mtu_export.models.mtu.experts import transformer_blocks
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import PlanError, Unsupported
from mtu_export.testing.dense import write_dense
from tests.support.mtu_checkpoints import load

TASK, OTHER = "edit", "sr"
"""Tasks of as many input channels."""


@pytest.fixture(scope="session")
def unfolded(bundles: Callable[..., Path]) -> Bundle:
    """A whole pipeline in float32; not to be changed."""
    return bundle.read(bundles("onnx", "fp32", (TASK,), whole=True, no_fold=True))


def cases(source: Bundle) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    pairs = bundle.Goldens(source).cases(UNET, TASK)
    return [(dict(inputs), dict(outputs)) for inputs, outputs in pairs]


def session_of(source: Bundle) -> Any:
    part = next(part for part in source.parts if part.name == UNET)
    target = targets.load(source.manifest.target)
    return targets.runtime(target).open(part.path, part.entries[TASK])


def live_output(folder: Path, inputs: dict[str, np.ndarray], embedding: str) -> np.ndarray:
    """What the live model predicts for ``TASK`` with the embedding of another task."""
    unet = load(folder)
    weight = unet.task_embedding.weight
    with torch.no_grad():
        weight[unet.task(TASK).index] = weight[unet.task(embedding).index].clone()
        names = ("sample", "timestep", "encoder_hidden_states")
        tensors = [torch.from_numpy(inputs[name]) for name in names]
        return unet(*tensors, task=TASK, return_dict=False)[0].numpy()


# ----------------------------------------------------------------------------------- in PyTorch


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("atom", {}), ("tiny-sdxl", {}), ("atom", {"task_norm": "stacked"})],
)
@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_the_graph_is_the_live_model(
    architecture: str, settings: dict[str, Any], task: str, make_tiny: Callable[..., Path]
) -> None:
    folder = make_tiny(architecture, **settings)
    plan = resolve(target="reference", model=folder, task=task, no_fold=True, out="none")
    graph = plan.model.load(UNET).graph(plan.tasks[0], plan.size, 1)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(spec.shape, generator=generator) for spec in graph.inputs]
    unet = load(folder)
    inputs[-1] = unet.task_embedding.weight[plan.tasks[0].index][None]
    added = {"text_embeds": inputs[3], "time_ids": inputs[4]} if len(inputs) > 4 else None
    with torch.no_grad():
        actual = graph.module(*inputs)
        options = {"added_cond_kwargs": added, "return_dict": False}
        expected = unet(*inputs[:3], task=task, **options)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_graph_has_the_tensors_of_its_task_alone(atom: Path) -> None:
    plan = resolve(target="reference", model=atom, task=TASK, no_fold=True, out="none")
    live = plan.model.load(UNET)
    graph = live.graph(plan.tasks[0], plan.size, 1)
    names = [name for name, _ in graph.layers.named_parameters()]
    assert not [name for name in names if f".{OTHER}." in name or EMBEDDING in name]
    tensors = {tensor.data_ptr() for tensor in live.module.parameters()}
    assert {tensor.data_ptr() for tensor in graph.layers.parameters()} <= tensors
    outline = plan.model.outline(UNET, plan.tasks[0])
    assert [name for name, _ in outline.named_parameters()] == names
    assert capture.cost(graph).parameters == sum(p.numel() for p in graph.layers.parameters())


# ------------------------------------------------------------------------------------ in a file


@pytest.mark.slow
def test_it_is_as_near_to_pytorch_as_the_folded_one(
    unfolded: Bundle, bundles: Callable[..., Path]
) -> None:
    assert unfolded.manifest.options["fold"] is False
    assert {verdict.stage for verdict in unfolded.proof} == {"exported", "passes", "loop"}
    assert all(verdict.passed is not False for verdict in unfolded.proof)
    folded = bundle.read(bundles("onnx", "fp32", (TASK,), whole=True))
    assert "fold" not in folded.manifest.options
    psnr = [
        next(v.psnr_db for v in each.proof if (v.part, v.stage) == (UNET, "exported"))
        for each in (unfolded, folded)
    ]
    assert min(psnr) > 110  # type: ignore[type-var]
    assert {each.manifest.source.fingerprint for each in (unfolded, folded)}.isdisjoint({None})
    assert unfolded.manifest.source.fingerprint != folded.manifest.source.fingerprint


@pytest.mark.slow
def test_the_router_is_in_the_file(
    unfolded: Bundle, bundles: Callable[..., Path], atom_pipeline: Path
) -> None:
    """One more softmax for each router, on what derives from the embedding."""
    folded = bundle.read(bundles("onnx", "fp32", (TASK,), whole=True))
    counts = []
    for each in (unfolded, folded):
        part = next(part for part in each.parts if part.name == UNET)
        model = onnx.load(part.path / part.entries[TASK])
        derived = {EMBEDDING}
        operators = [
            node.op_type
            for node in model.graph.node
            if derived & {*node.input} and not derived.update(node.output)
        ]
        softmax = [node.op_type for node in model.graph.node].count("Softmax")
        counts.append((softmax, operators.count("Relu")))
    blocks = len(transformer_blocks(load(atom_pipeline)))
    assert counts[0] == (counts[1][0] + blocks, blocks)
    assert counts[1][1] == 0


@pytest.mark.slow
def test_another_embedding_is_another_mixture(unfolded: Bundle, atom_pipeline: Path) -> None:
    """The file computes the weights of the experts from what it is given."""
    session, (inputs, outputs) = session_of(unfolded), cases(unfolded)[0]
    embeddings = load(atom_pipeline).task_embedding.weight.detach().numpy()
    names = [task.name for task in load(atom_pipeline).tasks]
    own = live_output(atom_pipeline, inputs, TASK)
    assert np.array_equal(inputs[EMBEDDING], embeddings[names.index(TASK)][None])
    assert metrics.psnr(own, outputs["out_sample"]) > 110
    other = live_output(atom_pipeline, inputs, OTHER)
    inputs[EMBEDDING] = embeddings[names.index(OTHER)][None]
    assert metrics.psnr(other, session(inputs)["out_sample"]) > 110
    assert metrics.psnr(own, other) < 60


@pytest.mark.slow
def test_int8_quantises_the_experts(bundles: Callable[..., Path], atom: Path) -> None:
    """The router stays float; several tasks share all but their own tensors."""
    exported = bundle.read(bundles("onnx", "int8", (TASK, "t2i"), no_fold=True))
    assert {verdict.task for verdict in exported.proof if verdict.passed} == {TASK, "t2i"}
    part = exported.parts[0]
    kept = {layer.layer for layer in part.scheme.kept_float}
    outline = resolve(target="onnx", model=atom, task=TASK, no_fold=True, out="none")
    layers = {
        name
        for name, module in outline.model.outline(UNET, outline.tasks[0]).named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    routers = {name for name in layers if ".router." in name}
    assert routers
    assert routers <= kept
    assert not [name for name in kept if ".experts." in name]
    for task in (TASK, "t2i"):
        model = onnx.load(part.path / part.entries[task], load_external_data=False)
        counted = [node.op_type for node in model.graph.node].count("DequantizeLinear")
        assert counted == len(layers - kept)
    cost = exported.manifest.parts[0].cost
    assert cost.shared_weight_bytes > 0.9 * cost.weight_bytes


@pytest.mark.slow
def test_executorch_runs_the_router(bundles: Callable[..., Path], atom: Path) -> None:
    exported = bundle.read(bundles("executorch", "fp32", (TASK,), no_fold=True))
    assert all(verdict.passed for verdict in exported.proof)
    session, (inputs, _) = session_of(exported), cases(exported)[0]
    unet = load(atom)
    inputs[EMBEDDING] = unet.task_embedding.weight[unet.task(OTHER).index][None].detach().numpy()
    other = live_output(atom, inputs, OTHER)
    outputs = session(inputs)["out_sample"]
    assert metrics.psnr(other, outputs) > 100
    assert metrics.psnr(live_output(atom, inputs, TASK), outputs) < 60


# -------------------------------------------------------------------------------------- refused


def test_a_fingerprint_tells_it_from_the_folded_one(atom: Path) -> None:
    named: list[dict[str, Any]] = [{}, {"no_fold": True}, {"plain": True}]
    plans = [resolve(target="onnx", model=atom, task=TASK, **options) for options in named]
    assert [plan.baseline for plan in plans] == [None, "unfolded", "plain"]
    assert len({resume.fingerprint(plan, {}, {}) for plan in plans}) == 3
    names = [plan.out.name for plan in plans]
    assert names == ["edit-onnx-fp32", "edit-onnx-fp32-unfolded", "edit-onnx-fp32-plain"]


@pytest.mark.parametrize("flag", ["no_fold", "plain"])
@pytest.mark.parametrize("target", ["coreml", "diffusers"])
def test_other_targets_refuse_it(flag: str, target: str, atom: Path) -> None:
    with pytest.raises(Unsupported, match=f"{target} takes no --{flag.replace('_', '-')}; exec"):
        resolve(target=target, model=atom, task=TASK, out="none", **{flag: True})


def test_a_model_without_a_router_refuses_it(tmp_path: Path) -> None:
    folder = write_dense("atom", tmp_path / "dense")
    with pytest.raises(Unsupported, match=r"--no-fold: .* has no router"):
        resolve(target="onnx", model=folder, no_fold=True, out="none")


def test_it_is_one_baseline(atom: Path) -> None:
    with pytest.raises(PlanError, match="--no-fold and --plain are two baselines"):
        resolve(target="onnx", model=atom, task=TASK, no_fold=True, plain=True)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("coreml", "coreml takes no --no-fold; executorch, onnx, reference do"),
        ("diffusers", "No such option: --no-fold"),
    ],
)
def test_the_command_line_refuses_it_in_one_line(target: str, line: str, atom: Path) -> None:
    arguments = [target, "-m", str(atom), "--task", TASK, "--no-fold"]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert str(result.exception) == line
