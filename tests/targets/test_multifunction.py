"""Several tasks in one Core ML package: coremltools' own multifunction package is the judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from mtu_export import bundle, targets
from mtu_export.bundle import verification
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter.options import resolve
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.graph.gated import GatedLinear
from mtu_export.spec import Arrays, Plan, Program, TensorSpec, ToolchainError, Unsupported
from mtu_export.targets.coreml import mil, multifunction, package
from mtu_export.targets.coreml.mil import program as reading

TASKS = ("t2i", "edit", "fill")
WIDTHS = {"t2i": 4, "edit": 8, "fill": 9}
OUT = TensorSpec(name="out_sample", shape=(1, 4, 8, 6))
IDENTITY = {"name": "several", "tasks": "+".join(TASKS)}
Several = tuple[Program, Plan, Mapping[str, Arrays], Mapping[str, np.ndarray]]
MakeSeveral = Callable[..., Several]


class Shared(nn.Module):
    """What all tasks have in common; the linear layers read 24 and 40 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.middle, self.wide = nn.Conv2d(24, 24, 3, padding=1), nn.Linear(24, 40)
        self.last = nn.Linear(40, 6)


class OneTask(nn.Module):
    """conv, conv, layer norm, gated linear, linear with a bias of the task, picture to tokens."""

    def __init__(self, shared: Shared, width: int, seed: int, tokens: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv_in = nn.Conv2d(width, 24, 3, padding=1)
        self.norm = nn.LayerNorm(24)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        gain = 0.2 + torch.rand(40)
        self.middle = shared.middle
        self.wide = GatedLinear(shared.wide.weight.data, shared.wide.bias.data, gain)
        self.last = nn.Linear(40, 6)
        self.last.weight = shared.last.weight
        self.tokens = tokens

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.silu(self.middle(self.conv_in(sample)))
        tokens = hidden.flatten(2).transpose(1, 2)
        output = self.last(torch.nn.functional.gelu(self.wide(self.norm(tokens))))
        return output[:, :32].reshape(1, 4, 8, 6)


@pytest.fixture
def several(atom: Path) -> MakeSeveral:
    """Program, plan, an input and the float output of each task."""

    def make(scheme: str, **options: object) -> Several:
        resolved = resolve(target="coreml", model=atom, task=TASKS, scheme=scheme, options=options)
        shared, random = Shared(), np.random.default_rng(0)
        modules = {t: OneTask(shared, w, w, 64).eval() for t, w in WIDTHS.items()}
        graphs = {
            task: Graph(
                module=modules[task],
                inputs=(TensorSpec(name="sample", shape=(1, width, 8, 8)),),
                outputs=(OUT,),
            )
            for task, width in WIDTHS.items()
        }
        cases = {
            task: {"sample": random.standard_normal((1, width, 8, 8), np.float32)}
            for task, width in WIDTHS.items()
        }
        expected = {t: capture.run(graphs[t], [cases[t]])[0]["out_sample"] for t in TASKS}
        quantize.quantize(list(modules.values()), resolved.schemes["unet"])
        program = capture.capture("unet", graphs)
        return program, resolved, cases, expected

    return make


def lower(program: Program, resolved: Plan, folder: Path) -> Path:
    folder.mkdir()
    target = targets.load("coreml")
    return folder / target.lower(program, resolved, folder, IDENTITY).path


def alone(program: Program, task: str) -> Program:
    """The same with one method."""
    return replace(
        program,
        methods={task: program.methods[task]},
        inputs={task: program.inputs[task]},
    )


def stock(program: Program, resolved: Plan, folder: Path) -> Path:
    """The multifunction package that coremltools makes of one package a task."""
    tools: Any = ct.utils
    descriptor = tools.MultiFunctionDescriptor()
    for task in program.methods:
        path = lower(alone(program, task), resolved, folder / task)
        descriptor.add_function(str(path), package.ENTRY, task)
    descriptor.default_function_name = next(iter(program.methods))
    tools.save_multifunction(descriptor, str(folder / "stock.mlpackage"))
    return folder / "stock.mlpackage"


def meaning(path: Path, entry: str) -> tuple[object, ...]:
    """A function up to the names of its values and where its constants are, as hashes."""
    function = reading.read(path, entry)
    values = {spec.name: f"{spec.name} {spec.shape} {spec.dtype}" for spec in function.inputs}

    def of(operand: reading.Operand) -> str:
        if isinstance(operand, str):
            return values[operand]
        data = operand.data if isinstance(operand.data, str) else operand.array().tobytes()
        meaning_ = f"{operand.spec.shape} {operand.spec.dtype} ".encode()
        return hashlib.sha256(
            meaning_ + (data if isinstance(data, bytes) else data.encode())
        ).hexdigest()

    kinds = []
    for operation in function.operations:
        operands = [
            (name, [of(o) for o in row]) for name, row in sorted(operation.operands.items())
        ]
        for place, spec in enumerate(operation.outputs):
            text = f"{operation.kind} {operands} {place} {spec.shape} {spec.dtype}"
            values[spec.name] = hashlib.sha256(text.encode()).hexdigest()
        kinds.append(values[operation.name])
    borders = [(spec.name, spec.shape, spec.dtype) for spec in function.inputs]
    return borders, [(name, values[name]) for name in function.outputs], sorted(kinds)


def weights_of(path: Path) -> bytes:
    return (path / "Data" / package.WEIGHT_FILE).read_bytes()


def check_equal_to_stock(program: Program, resolved: Plan, folder: Path) -> tuple[Path, Path]:
    ours = lower(program, resolved, folder / "ours")
    theirs = stock(program, resolved, folder)
    for task in program.methods:
        assert meaning(ours, task) == meaning(theirs, task), task
    assert len({str(meaning(ours, task)) for task in program.methods}) == len(program.methods)
    mine, other = package.parse(ours), package.parse(theirs)
    assert mine.specificationVersion == other.specificationVersion == 9
    assert mine.description.defaultFunctionName == other.description.defaultFunctionName
    meanings = [
        {f.name: (list(f.input), list(f.output)) for f in model.description.functions}
        for model in (mine, other)
    ]
    assert meanings[0] == meanings[1]
    assert not mine.description.input
    assert not mine.description.output
    assert list(mine.mlProgram.functions) != ["main"]
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_the_package_is_what_coremltools_makes_of_single_ones(
    scheme: str, several: MakeSeveral, tmp_path: Path
) -> None:
    program, resolved, cases, expected = several(scheme)
    (tmp_path / "all").mkdir()
    ours, theirs = check_equal_to_stock(program, resolved, tmp_path / "all")
    assert len(weights_of(ours)) == len(weights_of(theirs))
    for task in TASKS:
        single = tmp_path / "all" / task / ours.name
        actual = mil.open(ours, task)(cases[task])["out_sample"]
        assert np.array_equal(actual, mil.open(single, "main")(cases[task])["out_sample"])
        assert psnr(expected[task], actual) > {"fp32": 110, "fp16": 55, "int8": 35}[scheme]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_no_marker_stays_and_no_blob_is_there_twice(
    scheme: str, several: MakeSeveral, tmp_path: Path
) -> None:
    program, resolved, *_ = several(scheme)
    exported = next(iter(program.methods.values())).run_decompositions({})
    before = {name: tensor.clone() for name, tensor in program.methods["t2i"].state_dict.items()}
    markers = multifunction.mark(program, exported)
    for name, tensor in program.methods["t2i"].state_dict.items():
        assert torch.equal(tensor, before[name]), "the program itself was changed"
    assert {m.name.rpartition(".")[2] for m in markers} <= {"weight", "bias", "gain", "scales"}
    path = lower(program, resolved, tmp_path / "ours")
    data = weights_of(path)
    for marker in markers:
        assert not any(form in data for form in marker.forms.values())
    functions = package.parse(path).mlProgram.functions
    blobs: dict[int, bytes] = {}
    with (path / "Data" / package.WEIGHT_FILE).open("rb") as file:
        for value in package.values(package.parse(path).mlProgram):
            if value.WhichOneof("value") == "blobFileValue":
                start, length = package.find_blob(value, file, len(data), "")
                assert start % 64 == 0
                kind = package.shape_of(value.type.tensorType, "")[1]
                blobs[start] = kind.encode() + data[start : start + length]
    assert len(set(blobs.values())) == len(blobs)
    assert int.from_bytes(data[:4], "little") == len(blobs)
    assert data[4:8] == b"\2\0\0\0"
    used = sum(len(blob) for blob in blobs.values())
    assert len(data) - used < 64 + len(blobs) * 128, "bytes of no blob"
    if scheme == "int8":
        places = {
            task: sorted(
                value.blobFileValue.offset
                for value in package.values(function)
                if package.shape_of(value.type.tensorType, "")[1] == "INT8"
            )
            for task, function in functions.items()
        }
        assert len(places["t2i"]) == 3
        assert places["t2i"] == places["edit"] == places["fill"]


@pytest.mark.slow
def test_the_same_program_gives_the_same_bytes(several: MakeSeveral, tmp_path: Path) -> None:
    lowered = [lower(*several("int8")[:2], tmp_path / name) for name in ("a", "b")]
    files = [
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in lowered
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_a_marker_that_was_changed_is_refused_by_name(
    several: MakeSeveral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if coremltools had multiplied one tensor into another."""
    real = multifunction.mark

    def lose(program: Program, exported: Any) -> Any:
        return tuple(
            replace(m, forms={kind: data[::-1] for kind, data in m.forms.items()})
            if m.name == "norm.bias"
            else m
            for m in real(program, exported)
        )

    monkeypatch.setattr(multifunction, "mark", lose)
    with pytest.raises(ToolchainError, match=r"'norm.bias' differs between tasks and is read 1"):
        lower(*several("fp16")[:2], tmp_path / "out")


def test_a_fold_of_two_own_tensors_is_refused(atom: Path, tmp_path: Path) -> None:
    """coremltools multiplies a gain after a convolution into its weight: no marker is left."""

    class Gained(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 24, 1)
            torch.manual_seed(seed)
            self.register_buffer("gain", 0.5 + torch.rand(1, 24, 1, 1))

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.conv(sample) * self.gain

    resolved = resolve(target="coreml", model=atom, task=["t2i", "edit"], scheme="fp32")
    spec = TensorSpec(name="sample", shape=(1, 4, 8, 8))
    out = TensorSpec(name="out_sample", shape=(1, 24, 8, 8))
    modules = {"t2i": Gained(1).eval(), "edit": Gained(2).eval()}
    modules["edit"].conv = modules["t2i"].conv
    graphs = {t: Graph(module=m, inputs=(spec,), outputs=(out,)) for t, m in modules.items()}
    program = capture.capture("unet", graphs)
    assert program.task_tensors == {"gain"}
    with pytest.raises(ToolchainError, match=r"'gain' .* 0 times after coremltools"):
        lower(program, resolved, tmp_path / "out")


def test_values_beyond_float16_are_refused_by_name(several: MakeSeveral, tmp_path: Path) -> None:
    program, resolved, *_ = several("fp16")
    with torch.no_grad():
        program.methods["fill"].state_dict["norm.bias"][3] = 7e4
    with pytest.raises(ToolchainError, match=r"'norm.bias' is beyond .* float16; choose fp32"):
        lower(program, resolved, tmp_path / "out")


def test_graphs_that_are_not_alike_are_refused(several: MakeSeveral, tmp_path: Path) -> None:
    program, resolved, *_ = several("fp16")
    node = next(n for n in program.methods["edit"].graph.nodes if "layer_norm" in str(n.target))
    node.args = (*node.args[:4], 0.5, *node.args[5:])
    with pytest.raises(ToolchainError, match="the graphs of t2i, edit, fill differ"):
        lower(program, resolved, tmp_path / "out")


@settings(max_examples=300, deadline=None)
@given(
    values=arrays.arrays(
        np.float32,
        st.sampled_from([(3,), (24,), (399,), (400,), (20, 21)]),
        elements=st.one_of(st.floats(-6e4, 6e4, width=32), st.floats(-(2**-20), 2**-20, width=32)),
    )
)
def test_halves_are_those_of_coremltools(values: np.ndarray) -> None:
    """Its pass that casts constants, on the same numbers."""
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    class Var:
        def __init__(self, val: np.ndarray) -> None:
            self._sym_val = self
            self.val = val

    with np.errstate(all="ignore"):
        constant: Any = Var(values.astype(np.float16))
        FP16ComputePrecision()._check_underflow_to_zero(constant, Var(values))
    assert multifunction.half(values).tobytes() == constant.val.tobytes()


# --------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", ["my-task", "3d", "main"])
def test_a_task_that_names_no_function_is_refused(name: str, atom: Path) -> None:
    whole = resolve(target="coreml", model=atom, task=["edit", "t2i"])
    target, odd = targets.load("coreml"), replace(whole.tasks[0], name=name)
    with pytest.raises(Unsupported, match=f"task '{name}' cannot name a function"):
        target.validate_plan(replace(whole, tasks=(odd, whole.tasks[1])))
    target.validate_plan(replace(whole, tasks=(odd,)))


# ----------------------------------------------------------------------------------- real models


@pytest.mark.slow
@pytest.mark.parametrize(("model", "scheme"), [("atom", "fp16"), ("atom", "int8")])
def test_a_unet_is_what_coremltools_makes_of_single_ones(
    model: str, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    resolved = resolve(target="coreml", model=folder, task=("t2i", "fill"), scheme=scheme)
    live = resolved.model.load("unet")
    folded = live.specialise(resolved.tasks)
    assert folded is not None
    modules = [folded[task.name].module for task in resolved.tasks]
    for module in modules:
        rewrite.apply(module, targets.rewrites(resolved))
    quantize.quantize(modules, resolved.schemes["unet"])
    graphs = {
        task.name: live.graph(task, resolved.size, 1, folded[task.name].module)
        for task in resolved.tasks
    }
    program = capture.capture("unet", graphs)
    (tmp_path / "all").mkdir()
    check_equal_to_stock(program, resolved, tmp_path / "all")


@pytest.mark.slow
def test_a_bundle_of_several_tasks_is_proved_and_its_weights_are_shared(
    bundles: Callable[..., Path],
) -> None:
    """The whole way: one package, a witness and verdicts of each task."""
    shared, one = (bundle.read(bundles("coreml", "int8", tasks)) for tasks in (TASKS, ("edit",)))
    assert shared.manifest.options["deployment_target"] == "iOS18"
    (part,) = shared.manifest.parts
    assert part.entries == {task: task for task in TASKS}
    assert {task: tensors[0].shape[1] for task, tensors in part.task_inputs.items()} == {
        task: width for task, width in WIDTHS.items() if task != "t2i"
    }
    path, single = (found.folder / "Unet.mlpackage" for found in (shared, one))
    assert len(weights_of(path)) < 1.1 * len(weights_of(single))
    db = {
        found: {v.task: v.psnr_db for v in bundle.read(found).proof if v.stage == "quantised"}
        for found in (shared.folder, one.folder)
    }
    assert db[shared.folder].keys() == set(TASKS)
    assert db[shared.folder]["edit"] == pytest.approx(db[one.folder]["edit"], abs=1)
    verdicts = verification.verify_bundle(bundle.read(shared.folder))
    assert {v.task for v in verdicts} == set(TASKS)
    assert all(v.passed for v in verdicts)
    assert mil.runner()[0] in {v.runner for v in verdicts}
