"""Several tasks on one set of weights: what is shared, what is proved, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import Tensor, nn
from typer.testing import CliRunner

from mtu_export import bundle, checkpoint, exporter
from mtu_export.bundle import Bundle, runner, verification
from mtu_export.cli import app
from mtu_export.exporter import options, part
from mtu_export.spec import BundleError, PlanError, ToolchainError, Unsupported

NEAR_DB = {"int8": 0.1, "fp16": 0.3, "fp32": 3}
"""How far the dB of a task may be from those of its own bundle: what float16 rounds is there the
gated weight and here the weight, and float32 sums in another order."""
THREE = ("t2i", "sr", "fill")
"""4, 8 and 9 input channels; a prompt of its own; a mask."""


def export(
    folder: Path, out: Path, tasks: tuple[str, ...], scheme: str, **overrides: Any
) -> Bundle:
    overrides = {"target": "onnx", "model": folder, "scheme": scheme, "out": out, **overrides}
    return exporter.export(options.resolve(task=list(tasks), **overrides))


@pytest.fixture(scope="session")
def shared(bundles: Callable[..., Path]) -> Bundle:
    """Three tasks in int8; tests copy it before they change it."""
    return bundle.read(bundles("onnx", "int8", THREE))


def psnr(exported: Bundle) -> dict[tuple[str, str], float]:
    return {(verdict.task, verdict.stage): verdict.psnr_db or 0 for verdict in exported.proof}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    [*(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("fp32", "fp16")), "int8"],
)
def test_each_task_is_as_near_as_alone(scheme: str, bundles: Callable[..., Path]) -> None:
    exported = bundle.read(bundles("onnx", scheme, THREE))
    stage, sizes = ("quantised" if scheme == "int8" else "exported"), []
    for task in THREE:
        alone = bundle.read(bundles("onnx", scheme, (task,)))
        sizes.append(alone.manifest.parts[0].cost.weight_bytes)
        one, together = psnr(alone)[task, stage], psnr(exported)[task, stage]
        assert abs(one - together) < NEAR_DB[scheme]
        assert bundle.Goldens(alone).cases("unet", task)[0][1]["out_sample"].tobytes() == (
            bundle.Goldens(exported).cases("unet", task)[0][1]["out_sample"].tobytes()
        )
    cost = exported.manifest.parts[0].cost
    assert cost.weight_bytes == cost.shared_weight_bytes + sum(cost.task_weight_bytes.values())
    assert cost.weight_bytes < 1.2 * max(sizes)  # of atom: 1.08 and less of larger ones
    assert all(
        verdict.passed
        for verdict in verification.verify_bundle(bundle.read(exported.folder))
        if verdict.stage != "loop"
    )


def dequantised(path: Path) -> dict[str, tuple[Any, ...]]:
    """Where the codes and scales of each dequantised weight lie in the file of weights."""
    model = onnx.load(path, load_external_data=False)
    places = {
        tensor.name: tuple(item.value for item in tensor.external_data)
        for tensor in model.graph.initializer
    }
    return {
        node.input[0]: (places[node.input[0]], places[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }


@pytest.mark.slow
def test_codes_are_the_same_bytes_and_scales_the_tasks_own(shared: Bundle) -> None:
    folder = shared.part("unet").path
    weights = [dequantised(folder / shared.part("unet").entries[task]) for task in THREE]
    assert sorted(path.name for path in folder.iterdir()) == [
        *sorted(f"{task}.onnx" for task in THREE if task < "model"),
        "model.onnx_data",
        *sorted(f"{task}.onnx" for task in THREE if task > "model"),
    ]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()
    gated = 0
    for name, (codes, scales) in weights[0].items():
        assert all(task_weights[name][0] == codes for task_weights in weights)
        differ = len({task_weights[name][1] for task_weights in weights}) == len(weights)
        assert differ == (".net.0.proj" in name)
        assert differ or all(task_weights[name][1] == scales for task_weights in weights)
        gated += differ
    assert gated == 1  # the one block of atom


def test_no_weight_is_there_twice(shared: Bundle) -> None:
    part = shared.part("unet")
    places: dict[tuple[int, int], set[str]] = {}
    data = (part.path / "model.onnx_data").read_bytes()
    for entry in part.entries.values():
        for tensor in onnx.load(part.path / entry, load_external_data=False).graph.initializer:
            location = {item.key: item.value for item in tensor.external_data}
            if location:
                key = (int(location["offset"]), int(location["length"]))
                places.setdefault(key, set()).add(tensor.name)
    contents = [data[begin : begin + length] for begin, length in places]
    assert len(set(contents)) == len(contents)
    ends = sorted((begin, begin + length) for begin, length in places)
    assert all(one[1] <= two[0] for one, two in pairwise(ends))


def test_nothing_stays_of_weights_that_a_killed_export_wrote(tmp_path: Path) -> None:
    """With `--skip-existing` the next export writes a half-made part into the same folder."""
    import onnx_ir as ir

    from mtu_export.targets.onnx.writing import Writer

    def model(number: float) -> ir.Model:
        tensor = ir.tensor(np.full(1000, number, np.float32), name="own")
        value = ir.Value(name="own", shape=ir.Shape([1000]), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        out = ir.Value(name="out", shape=ir.Shape([1000]), type=ir.TensorType(tensor.dtype))
        node = ir.Node("", "Neg", [value], outputs=[out])
        graph = ir.Graph([], [out], nodes=[node], initializers=[value], opset_imports={"": 20})
        return ir.Model(graph, ir_version=10)

    sizes = []
    for _ in range(2):
        writer = Writer(tmp_path / "unet", {"own"})
        for number, task in enumerate(THREE):
            writer.write(model(number), f"{task}.onnx")
        sizes.append((tmp_path / "unet" / "model.onnx_data").stat().st_size)
    assert sizes[0] == sizes[1]
    initializer = onnx.load(tmp_path / "unet" / "fill.onnx").graph.initializer[0]
    assert onnx.numpy_helper.to_array(initializer)[0] == 2


def test_inputs_differ_in_width_alone(shared: Bundle) -> None:
    part = shared.part("unet")
    widths = {task: part.inputs_of(task)[0].shape[1] for task in THREE}
    assert widths == {"t2i": 4, "sr": 8, "fill": 9}
    assert len({part.inputs_of(task)[1:] for task in THREE}) == 1
    assert part.proved == THREE


@pytest.mark.slow
def test_experts_of_one_need_no_gates(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny("atom", experts=1)
    exported = export(folder, tmp_path / "b", ("t2i", "edit"), "fp32")
    cost = exported.manifest.parts[0].cost
    model = onnx.load(exported.part("unet").path / "edit.onnx", load_external_data=False)
    assert not any("gain" in tensor.name for tensor in model.graph.initializer)
    assert cost.task_weight_bytes["edit"] < 0.03 * cost.shared_weight_bytes


@pytest.mark.slow
def test_parts_without_the_unet_are_of_the_tasks_that_need_them(
    atom_pipeline: Path, tmp_path: Path
) -> None:
    settings = {"target": "reference", "components": ["vae_encoder", "vae_decoder"]}
    exported = export(atom_pipeline, tmp_path / "b", ("t2i", "edit"), "fp32", **settings)
    assert {part.name: set(part.entries) for part in exported.parts} == {
        "vae_encoder": {"edit"},
        "vae_decoder": {"t2i", "edit"},
    }
    assert all(
        verdict.passed
        for verdict in verification.verify_bundle(bundle.read(exported.folder))
        if verdict.stage != "loop"
    )


@pytest.mark.slow
def test_float16_is_all_matrices_gated_or_not(bundles: Callable[..., Path]) -> None:
    """And what the manifest counts is what the graphs hold, each tensor once.

    Of ``tiny``, beside whose weights the exporter's own constants are below 2 %.
    """
    exported = bundle.read(bundles("onnx", "fp16", THREE, architecture="tiny"))
    part, held = exported.part("unet"), {}
    for entry in part.entries.values():
        model = onnx.load(part.path / entry)
        wide = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert (
            max(len(t.raw_data) for t in wide if len(t.dims) > 1) <= 3072
        )  # of three small ones that the optimiser joins
        held |= {(t.name, t.raw_data): len(t.raw_data) for t in model.graph.initializer}
    part = exported.manifest.parts[0]
    assert part.scheme is not None
    assert part.scheme.kept_float == ()
    assert part.cost.weight_bytes == pytest.approx(sum(held.values()), rel=0.02)


@pytest.mark.slow
def test_stacked_norms_are_shared_too(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny("atom", task_norm="stacked")
    exported = export(folder, tmp_path / "b", ("t2i", "edit"), "fp32", target="reference")
    assert all(verdict.passed for verdict in exported.proof if verdict.stage != "loop")


@pytest.mark.slow
def test_a_whole_pipeline_of_three_tasks(atom_pipeline: Path, tmp_path: Path) -> None:
    settings = {"target": "reference", "bake_steps": [4]}
    exported = export(atom_pipeline, tmp_path / "b", THREE, "fp32", **settings)
    entries = {part.name: part.entries for part in exported.parts}
    assert set(entries["text_encoder"]) == {"t2i", "fill"}
    assert set(entries["vae_encoder"]) == {"sr", "fill"}
    assert entries["unet"].keys() == set(THREE)
    rows = {(row.part, row.task) for row in exported.proof}
    assert rows == {
        ("text_encoder", "t2i"),
        ("vae_encoder", "sr"),
        ("vae_decoder", "t2i"),
        *(("unet", task) for task in THREE),
        *(("pipeline", task) for task in THREE),
    }
    assert all(row.psnr_db and row.psnr_db > 90 for row in exported.proof)
    with pytest.raises(PlanError, match="name a --task; this bundle has: t2i, sr, fill"):
        runner.open_loop(exported)
    alone = export(atom_pipeline, tmp_path / "alone", ("sr",), "fp32", **settings)
    golden, own = (bundle.Goldens(row).loop("sr") for row in (exported, alone))
    assert {name: value.tobytes() for name, value in golden.items()} == {
        name: value.tobytes() for name, value in own.items()
    }


@pytest.mark.slow
def test_a_stopped_export_goes_on_with_all_tasks(
    atom_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"target": "reference", "bake_steps": [4], "skip_existing": True}
    make, components, stops = part.make, [], ["once"]

    def stop(job: part.Job, references: Any) -> Any:
        if job.name == "vae_decoder" and stops:
            stops.clear()
            raise KeyboardInterrupt
        components.append(job.name)
        return make(job, references)

    monkeypatch.setattr(part, "make", stop)
    with pytest.raises(KeyboardInterrupt):
        export(atom_pipeline, tmp_path / "b", ("t2i", "edit"), "fp32", **settings)
    assert components == ["text_encoder", "vae_encoder", "unet"]
    exported = export(atom_pipeline, tmp_path / "b", ("t2i", "edit"), "fp32", **settings)
    assert components[3:] == ["vae_decoder"]
    assert {verdict.task for verdict in exported.proof if verdict.part == "pipeline"} == {
        "t2i",
        "edit",
    }
    assert all(
        verdict.passed
        for verdict in verification.verify_bundle(bundle.read(exported.folder))
        if verdict.stage != "loop"
    )


@pytest.mark.slow
def test_graphs_that_are_not_alike_are_refused(
    atom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtu_export.models.mtu import network as mtu

    specialise = mtu.specialise

    class Once(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    def odd(pipeline: Any, tasks: Any) -> Any:
        folded = specialise(pipeline, tasks)
        unet: Any = next(iter(folded.values())).module
        unet.conv_out = nn.Sequential(unet.conv_out, Once())
        return folded

    monkeypatch.setattr(mtu, "specialise", odd)
    with pytest.raises(ToolchainError, match="graphs of t2i, edit differ"):
        export(atom, tmp_path / "b", ("t2i", "edit"), "fp32")
    assert not (tmp_path / "b").exists()


def spoil(exported: Bundle, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(exported.folder, out)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    change(manifest["parts"][0])
    (out / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return out


def _renamed(part: dict[str, Any]) -> None:
    part["task_inputs"]["sr"][0]["name"] = "other"


def _foreign(part: dict[str, Any]) -> None:
    part["task_inputs"]["unknown"] = part["inputs"]


def _endless(part: dict[str, Any]) -> None:
    part["task_inputs"]["sr"][0]["shape"] = [-1]


def _no_list(part: dict[str, Any]) -> None:
    part["task_inputs"]["sr"] = {}


def _no_counts(part: dict[str, Any]) -> None:
    part["cost"]["task_weight_bytes"]["sr"] = "all"


def _negative(part: dict[str, Any]) -> None:
    part["cost"]["task_weight_bytes"]["sr"] = -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, "names are not those of inputs"),
        (_foreign, "'unknown' is no task of entries"),
        (_endless, "must be at least 1, got -1"),
        (_no_list, "must be a list"),
        (_no_counts, "sr: must be an integer"),
        (_negative, "sr: must be at least 0"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, shared: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.read(spoil(shared, tmp_path / "b", change))


def test_a_task_with_another_ones_graph_fails(shared: Bundle, tmp_path: Path) -> None:
    """sr and a task of its width: nothing but the numbers tells them apart."""

    def swap(part: dict[str, Any]) -> None:
        part["entries"]["sr"], part["entries"]["fill"] = "fill.onnx", "sr.onnx"

    with pytest.raises(BundleError, match="inputs are not those of the manifest"):
        verification.verify_bundle(bundle.read(spoil(shared, tmp_path / "b", swap)))


@pytest.mark.slow
def test_tasks_of_one_width_are_told_apart_by_their_numbers(atom: Path, tmp_path: Path) -> None:
    exported = export(atom, tmp_path / "b", ("edit", "inpaint"), "fp32")

    def swap(part: dict[str, Any]) -> None:
        part["entries"] = {"edit": "inpaint.onnx", "inpaint": "edit.onnx"}

    verdicts = verification.verify_bundle(bundle.read(spoil(exported, tmp_path / "c", swap)))
    assert [verdict.passed for verdict in verdicts] == [False, False]

    def same(part: dict[str, Any]) -> None:
        part["entries"]["inpaint"] = "edit.onnx"

    verdicts = verification.verify_bundle(bundle.read(spoil(exported, tmp_path / "d", same)))
    assert {verdict.task: verdict.passed for verdict in verdicts} == {
        "edit": True,
        "inpaint": False,
    }


def test_inspect_says_what_is_shared(shared: Bundle) -> None:
    done = CliRunner().invoke(app, ["inspect", str(shared.folder), "--json"])
    result = json.loads(done.output)
    assert result["weights"].startswith("3 tasks = ")
    weights = result["weights by task"]
    assert [entry["task"] for entry in weights] == list(THREE)
    assert len({entry["shared bytes"] for entry in weights}) == 1
    data = np.fromfile(shared.part("unet").path / "model.onnx_data", np.uint8)
    held = weights[0]["shared bytes"] + sum(entry["own bytes"] for entry in weights)
    assert 0.8 * held < len(data) < held  # equal vectors are there once, small ones in the graphs


def test_names_that_are_one_file_on_a_mac_are_refused(tmp_path: Path) -> None:
    """A bundle made here is unpacked on file systems that do not tell case."""
    folder = Path(shutil.copytree(checkpoint.EMBEDDED, tmp_path / "c"))
    config = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    config["tasks"][0]["name"] = "Edit"
    (folder / "unet" / "config.json").write_text(json.dumps(config), "utf-8")
    settings = {"target": "onnx", "model": folder, "out": tmp_path / "b"}
    with pytest.raises(Unsupported, match=r"tasks 'Edit' and 'edit' .* one file"):
        options.resolve(task=["Edit", "edit"], **settings)  # type: ignore[arg-type]
    assert options.resolve(task=["Edit", "sr"], **settings).tasks  # type: ignore[arg-type]
    parts = ["vae_decoder"]
    assert options.resolve(task=["Edit", "edit"], components=parts, **settings)  # type: ignore[arg-type]


def test_all_tasks_and_a_task_contradict_one_another() -> None:
    with pytest.raises(PlanError, match="mutually exclusive"):
        options.resolve(target="onnx", task="edit", all_tasks=True)
    assert len(options.resolve(target="onnx", all_tasks=True).tasks) == 4
