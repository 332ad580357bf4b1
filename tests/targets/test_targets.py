"""One table: each target x scheme on a mini model; damaged artefacts; what each one refuses."""

from __future__ import annotations

import importlib
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtu_export import bundle, targets
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.graph import capture, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.spec import BundleError, TensorSpec

from .conftest import OUT, SPEC, MakeMini

MATRIX = [
    ("onnx", "fp32", 110),
    ("onnx", "fp16", 60),
    ("onnx", "int8", 38),
    ("coreml", "fp32", 110),
    ("coreml", "fp16", 60),
    ("coreml", "int8", 38),
    ("executorch", "fp32", 110),
    ("executorch", "int8", 33),
    ("reference", "fp32", 290),
    ("reference", "int8", 38),
]
IDENTITY = {"name": "mini", "tasks": "t2i"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "floor"), MATRIX, ids=[f"{r[0]}-{r[1]}" for r in MATRIX]
)
def test_a_target_lowers_reads_and_runs(
    name: str, scheme: str, floor: float, mini: MakeMini, tmp_path: Path
) -> None:
    target = targets.load(name)
    program, plan, cases, expected, _ = mini(name, scheme)
    lowered = target.lower(program, plan, tmp_path, IDENTITY)
    path, entry = tmp_path / lowered.path, lowered.entries["t2i"]
    structure = target.structure(path, entry)
    assert structure.inputs == (SPEC,)
    assert structure.outputs == (OUT,)
    assert structure.identity == IDENTITY
    assert sum(structure.operators.values()) >= 1
    runner, reason = targets.runtime(target).runner()
    assert runner is not None
    assert reason is None
    session = targets.runtime(target).open(path, entry)
    outputs = [session(case)["out_sample"] for case in cases]
    assert min(psnr(w["out_sample"], o) for w, o in zip(expected, outputs, strict=True)) > floor
    assert outputs[0].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "coreml", "executorch"])
def test_int8_codes_arrive_bit_for_bit(name: str, mini: MakeMini, tmp_path: Path) -> None:
    program, plan, _, _, module = mini(name, "int8")
    lowered = targets.load(name).lower(program, plan, tmp_path, IDENTITY)
    data = b"".join(f.read_bytes() for f in bundle.files_of(tmp_path / lowered.path))
    for layer in ("first", "second", "last"):
        codes = module.get_submodule(layer).codes.numpy()  # type: ignore[union-attr, operator]
        forms = [codes, np.moveaxis(codes, 1, -1)] if codes.ndim == 4 else [codes, codes.T]
        assert any(np.ascontiguousarray(form).tobytes() in data for form in forms), layer


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["onnx", "coreml", "executorch"])
def test_shortcuts_change_no_byte_and_are_undone(
    name: str, scheme: str, mini: MakeMini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coremltools.converters.mil.mil import Program
    from onnxscript.rewriter import RewriteRule
    from torch.fx import GraphModule
    from torch.fx.traceback import NodeSource
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    def library() -> list[Any]:
        names = ("recompile", "code", "__str__", "print_readable")
        return [
            *(vars(GraphModule)[each] for each in names),
            vars(NodeSource).get("__deepcopy__"),
            vars(ONNXRegistry)["from_torchlib"],
            vars(RewriteRule)["try_rewrite"],
            vars(Program)["validate"],
        ]

    target, files, before = targets.load(name), [], library()
    module = "converting" if name == "coreml" else "lowering"
    lowering = importlib.import_module(f"mtu_export.targets.{name}.{module}")
    for way in ("short", "long"):
        program, plan, *_ = mini(name, scheme)
        (tmp_path / way).mkdir()
        target.lower(program, plan, tmp_path / way, IDENTITY)
        files.append(_contents(tmp_path / way))
        assert library() == before
        monkeypatch.setattr(lowering, "shortcuts", nullcontext)
    assert files[0]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_pass_of_xnnpack_runs_where_an_operator_of_its_kind_is() -> None:
    """The table names passes that exist; one that it does not name always runs."""
    import torch
    from executorch.backends.xnnpack._passes import XNNPACKPassManager
    from executorch.exir import to_edge

    from mtu_export.targets.executorch import shortcuts

    example = (torch.zeros(1, 3),)
    exported = torch.export.export(torch.nn.Sequential(torch.nn.ReLU()), example)
    program = to_edge(exported).exported_program()
    names = {each.__name__ for each in XNNPACKPassManager(program).passes}
    assert shortcuts.PASSES.keys() <= names
    finds = {name for name in names if shortcuts.finds_operators(name, program.graph)}
    assert finds == {"FuseActivationPass", *(names - shortcuts.PASSES.keys())}


def test_a_hidden_package_is_as_if_not_installed() -> None:
    from importlib.util import find_spec

    from mtu_export.spec.replacing import hidden

    name = "lib2to3"  # of the standard library until 3.12; nothing imports it
    name = name if find_spec(name) else "turtledemo"
    with hidden([name, "sys"]):
        assert find_spec(name) is None
        assert sys.modules["sys"] is sys
    assert find_spec(name) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "coreml", "executorch"])
def test_rows_of_zeros_run(name: str, mini: MakeMini, tmp_path: Path) -> None:
    target = targets.load(name)
    program, plan, cases, expected, _ = mini(name, "int8", dead=True)
    lowered = target.lower(program, plan, tmp_path, IDENTITY)
    session = targets.runtime(target).open(tmp_path / lowered.path, lowered.entries["t2i"])
    assert psnr(expected[0]["out_sample"], session(cases[0])["out_sample"]) > 30


def test_a_package_that_a_killed_export_left_is_written_anew(
    mini: MakeMini, tmp_path: Path
) -> None:
    """`--skip-existing` lowers a part that was not finished into the same folder."""
    target, path = targets.load("coreml"), tmp_path / "Unet.mlpackage"
    (path / "Data").mkdir(parents=True)
    (path / "Data" / "weight.bin.new").write_bytes(b"half")
    program, plan, *_ = mini("coreml", "int8")
    lowered = target.lower(program, plan, tmp_path, IDENTITY)
    assert target.structure(path, lowered.entries["t2i"]).operators  # no other files in it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iOS16", "iOS17", "iOS18"])
def test_core_ml_stores_codes_compressed_for_every_system(
    name: str, mini: MakeMini, tmp_path: Path
) -> None:
    program, plan, *_ = mini("coreml", "int8", deployment_target=name)
    target = targets.load("coreml")
    lowered = target.lower(program, plan, tmp_path, IDENTITY)
    structure = target.structure(tmp_path / lowered.path, lowered.entries["t2i"])
    kind = "blockwise_shift_scale" if name == "iOS18" else "affine_dequantize"
    assert structure.operators[f"constexpr_{kind}"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.names())
def test_damaged_artefacts_are_bundle_errors(name: str, mini: MakeMini, tmp_path: Path) -> None:
    """Cut or changed anywhere: read, or refused as ``BundleError``; never anything else."""
    target = targets.load(name)
    program, plan, *_ = mini(name, "int8")
    (tmp_path / "good").mkdir()
    lowered = target.lower(program, plan, tmp_path / "good", IDENTITY)
    files = [
        f.relative_to(tmp_path / "good")
        for f in bundle.files_of(tmp_path / "good" / lowered.path)
        if not f.name.endswith("config.json")
    ]

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        file=st.sampled_from(files),
        cut=st.booleans(),
        where=st.floats(0, 1),
        byte=st.binary(min_size=1, max_size=4),
    )
    def damage(file: Path, cut: bool, where: float, byte: bytes) -> None:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        data = bytearray((bad / file).read_bytes())
        at = int(where * (len(data) - 1))
        data[at:] = b"" if cut else byte + data[at + len(byte) :]
        (bad / file).write_bytes(data)
        try:
            target.structure(bad / lowered.path, lowered.entries["t2i"])
        except BundleError as error:
            assert "\n" not in str(error)

    damage()
    for file in files:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        (bad / file).write_bytes(b"")
        with pytest.raises(BundleError):
            target.structure(bad / lowered.path, lowered.entries["t2i"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "executorch"])
def test_a_norm_of_a_million_numbers_keeps_its_digits(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """A VAE at 512 x 512 has groups of that size; float32 sums of one run lose 70 dB of them."""
    target = targets.load(name)
    shape = (1, 8, 512, 512)
    spec, out = TensorSpec(name="sample", shape=shape), TensorSpec(name="out", shape=shape)
    module = torch.nn.Sequential(torch.nn.GroupNorm(2, 8)).eval()
    values = np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(0.5)
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(values).double()).numpy()
        module.float()
    rewrite.apply(module, target.info.rewrites)
    graph = Graph(module=module, inputs=(spec,), outputs=(out,))
    program = capture.capture("unet", {"t2i": graph})
    resolved = options.resolve(target=name, model=tiny, task="t2i", scheme="fp32")
    lowered = target.lower(program, resolved, tmp_path, IDENTITY)
    (actual,) = (
        targets.runtime(target)
        .open(tmp_path / lowered.path, lowered.entries["t2i"])({"sample": values})
        .values()
    )
    assert psnr(expected, actual) > 110


@pytest.mark.parametrize("name", targets.names())
def test_a_folder_or_a_file_that_is_none_of_the_target(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(BundleError):
            targets.load(name).structure(path, "main")
