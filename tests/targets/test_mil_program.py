"""Packages that are damaged, hostile or beyond the evaluator: each refused in one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export.spec import BundleError, MtuExportError, ParityError, ToolchainError, Unsupported
from mtu_export.targets.coreml import mil, package

from .mil_packages import mb, save

SAMPLE = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32)


def _build(x: Any) -> list[Any]:
    value = mb.conv(x=x, weight=WEIGHT, pad_type="custom", pad=[1, 1, 1, 1], name="first_conv")
    value = mb.silu(x=value, name="activation")
    value = mb.linear(x=value, weight=WEIGHT.reshape(36, 4)[:6], name="head")
    return [mb.cast(x=value, dtype="fp16"), value]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "Mini.mlpackage"
    return save(path, {"x": SAMPLE}, _build, 7)


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Callable[[Callable[[Any, Any], None]], Path]:
    """A function that changes a copy of the package: it is given the model and its block."""

    def change(edit: Callable[[Any, Any], None]) -> Path:
        path = tmp_path / good.name
        shutil.copytree(good, path)
        model = package.parse(path)
        function = model.mlProgram.functions["main"]
        edit(model, function.block_specializations[function.opset])
        (path / "Data" / package.MODEL).write_bytes(model.SerializeToString())
        return path

    return change


def _operator(block: Any, kind: str) -> Any:
    return next(operation for operation in block.operations if operation.type == kind)


def _refused(path: Path, kind: type[MtuExportError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        mil.open(path, "main")({"x": SAMPLE})
    line = str(caught.value)
    assert line.startswith("Mini.mlpackage: ")
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_a_package_runs(good: Path) -> None:
    actual = mil.open(good, "main")({"x": SAMPLE})
    assert {n: (v.dtype, v.shape) for n, v in actual.items()} == {
        "out_0": (np.float16, (1, 4, 4, 6)),
        "out_1": (np.float32, (1, 4, 4, 6)),
    }
    assert np.array_equal(actual["out_0"], actual["out_1"].astype(np.float16))


def test_the_weight_file_is_never_changed(good: Path) -> None:
    file = good / "Data" / package.WEIGHT_FILE
    before = file.read_bytes()
    mil.open(good, "main")({"x": SAMPLE})
    assert file.read_bytes() == before


@pytest.mark.parametrize("left", [0, 63, 64, 200, -1])
def test_a_truncated_weight_file(left: int, good: Path, tmp_path: Path) -> None:
    path = tmp_path / good.name
    shutil.copytree(good, path)
    file = path / "Data" / package.WEIGHT_FILE
    file.write_bytes(file.read_bytes()[:left])
    _refused(path, BundleError, "weight.bin")


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, 65, 0])
def test_offsets_that_hold_no_blob(offset: int, broken: Any) -> None:
    def edit(model: Any, block: Any) -> None:
        for operation in block.operations:
            if operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                operation.attributes["val"].blobFileValue.offset = offset

    _refused(broken(edit), BundleError, "weight.bin")


def test_unknown_operators_are_all_named(broken: Any) -> None:
    def edit(model: Any, block: Any) -> None:
        _operator(block, "silu").type = "swish_9000"
        _operator(block, "linear").type = "lstm"

    _refused(broken(edit), ToolchainError, "no operator lstm (1), swish_9000 (1)")


def _rename_input(block: Any, kind: str, parameter: str, name: str) -> None:
    _operator(block, kind).inputs[parameter].arguments[0].name = name


EDITS: list[tuple[str, Callable[[Any, Any], None], str]] = [
    ("unmade name", lambda m, b: _rename_input(b, "silu", "x", "nothing"), "before it is defined"),
    (
        "cycle",
        lambda m, b: _rename_input(b, "conv", "x", "head"),
        "reads 'head' before it is defined",
    ),
    ("itself", lambda m, b: _rename_input(b, "silu", "x", "activation"), "before it is defined"),
    (
        "made twice",
        lambda m, b: setattr(_operator(b, "silu").outputs[0], "name", "first_conv"),
        "'first_conv' is defined twice",
    ),
    (
        "parameter unknown",
        lambda m, b: (
            _operator(b, "silu").inputs["slope"].CopyFrom(_operator(b, "silu").inputs["x"])
        ),
        "operator 'activation' (silu) has no parameter 'slope'",
    ),
    (
        "internal parameter",
        lambda m, b: (
            _operator(b, "linear").inputs["terms"].CopyFrom(_operator(b, "silu").inputs["x"])
        ),
        "has no parameter 'terms'",
    ),
    (
        "parameter missing",
        lambda m, b: _operator(b, "linear").inputs.pop("weight"),
        "operator 'head' (linear) lacks 'weight'",
    ),
    (
        "no constant",
        lambda m, b: _operator(b, "conv").inputs["pad"].CopyFrom(_operator(b, "conv").inputs["x"]),
        "'pad' must be a constant",
    ),
    (
        "another kind of constant",
        lambda m, b: (
            _operator(b, "conv").inputs["pad"].CopyFrom(_operator(b, "conv").inputs["pad_type"])
        ),
        "'pad' must be Ints",
    ),
    (
        "another shape",
        lambda m, b: setattr(
            _operator(b, "silu").outputs[0].type.tensorType.dimensions[1].constant, "size", 5
        ),
        "operator 'activation' (silu) makes float32 [1, 4, 4, 4]; the program says float32",
    ),
    (
        "another type",
        lambda m, b: setattr(_operator(b, "silu").outputs[0].type.tensorType, "dataType", 23),
        "the program says int32",
    ),
    (
        "a huge value",
        lambda m, b: setattr(
            _operator(b, "silu").outputs[0].type.tensorType.dimensions[0].constant, "size", 1 << 40
        ),
        "is over 16 GB",
    ),
    (
        "several values",
        lambda m, b: (
            _operator(b, "silu")
            .inputs["x"]
            .arguments.add()
            .CopyFrom(_operator(b, "silu").inputs["x"].arguments[0])
        ),
        "has 2 values as 'x'",
    ),
    ("blocks", lambda m, b: _operator(b, "silu").blocks.add(), "has blocks inside"),
    (
        "weights do not fit",
        lambda m, b: (
            _operator(b, "linear").inputs["x"].CopyFrom(_operator(b, "linear").inputs["weight"])
        ),
        "operator 'head' (linear)",
    ),
]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in EDITS], ids=[r[0] for r in EDITS])
def test_a_malformed_program_is_refused_before_it_runs(
    edit: Any, message: str, broken: Any
) -> None:
    path = broken(edit)
    with pytest.raises(BundleError) as caught:
        mil.open(path, "main")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_operator_set(broken: Any) -> None:
    def edit(model: Any, block: Any) -> None:
        function = model.mlProgram.functions["main"]
        function.block_specializations["CoreML99"].CopyFrom(block)
        function.opset = "CoreML99"

    _refused(broken(edit), BundleError, "operator set 'CoreML99' is not one of")


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": SAMPLE[:, :3]},
        {"x": SAMPLE.astype(np.float64)},
        {"x": SAMPLE, "y": SAMPLE},
    ],
    ids=["none", "shape", "type", "more"],
)
def test_other_inputs_are_refused(inputs: dict[str, np.ndarray], good: Path) -> None:
    with pytest.raises(ToolchainError, match="takes x"):
        mil.open(good, "main")(inputs)


def test_other_functions_and_sums_are_refused(good: Path) -> None:
    with pytest.raises(BundleError, match="no function 'other'"):
        mil.open(good, "other")
    with pytest.raises(Unsupported, match="float64"):
        mil.open(good, "main", accumulate="float64")


def test_nan_is_named_where_it_begins(tmp_path: Path) -> None:
    """float16 overflows in a square, becomes NaN two operators later, and both are said."""

    def build(x: Any) -> list[Any]:
        half = mb.cast(x=x, dtype="fp16", name="half")
        weight = np.eye(4, dtype=np.float16).repeat(16, 0)
        wide = mb.linear(x=half, weight=weight, name="wide")
        squares = mb.square(x=wide, name="squares")
        same = mb.relu(x=squares, name="same")
        zero = mb.sub(x=same, y=squares, name="difference")
        return [mb.cast(x=mb.add(x=zero, y=np.float16(1)), dtype="fp32")]

    path = save(tmp_path / "Mini.mlpackage", {"x": SAMPLE}, build, 7)
    session = mil.open(path, "main")
    assert np.isfinite(session({"x": SAMPLE})["out_0"]).all()
    with pytest.raises(ParityError) as caught:
        session({"x": SAMPLE * 300})
    line = str(caught.value)
    assert "NaN first appears in operator 'difference' (sub)" in line
    assert "Inf first appears in operator 'squares' (square)" in line
    assert "layer 'wide_" in line
    assert line.endswith("beyond float16's 65504, export it in float32: --scheme fp32")
    vae = path.rename(tmp_path / "VAEDecoder.mlpackage")
    with pytest.raises(ParityError, match=r'"force_upcast": true in vae/config\.json, or --scheme'):
        mil.open(vae, "main")({"x": SAMPLE * 300})


def test_an_overflow_in_attention_is_no_fault_of_the_layer_before(tmp_path: Path) -> None:
    def build(x: Any) -> list[Any]:
        tokens = mb.cast(x=mb.reshape(x=x, shape=(4, 16)), dtype="fp16")
        query = mb.linear(x=tokens, weight=np.eye(16, dtype=np.float16).repeat(4, 0))
        scores = mb.matmul(x=query, y=query, transpose_y=True, name="scores")
        return [mb.cast(x=scores, dtype="fp32")]

    path = save(tmp_path / "Mini.mlpackage", {"x": SAMPLE}, build, 7)
    with pytest.raises(ParityError) as caught:
        mil.open(path, "main")({"x": SAMPLE * 300})
    assert "'scores' (matmul), the product of two activations, as in attention" in str(caught.value)


def test_an_infinite_mask_is_no_defect(tmp_path: Path) -> None:
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)

    def build(x: Any) -> list[Any]:
        return [mb.softmax(x=mb.add(x=x, y=mask), axis=-1)]

    path = save(tmp_path / "Mini.mlpackage", {"x": SAMPLE.reshape(8, 8)}, build, 8)
    actual = mil.open(path, "main")({"x": SAMPLE.reshape(8, 8)})["out_0"]
    assert np.array_equal(np.triu(actual, 1), np.zeros((8, 8)))
    np.testing.assert_allclose(actual.sum(-1), 1, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "matmul", "conv", "scaled_dot_product_attention"])
def test_narrow_sums_are_those_of_partial_sums(kind: str, tmp_path: Path) -> None:
    """float16 accumulation: 32 terms summed, rounded, added to a total that is rounded."""
    x = RANDOM.standard_normal((1, 2, 5, 96)).astype(np.float32)
    y = RANDOM.standard_normal((96, 96)).astype(np.float16)

    def build(x: Any) -> list[Any]:
        half = mb.cast(x=x, dtype="fp16")
        if kind == "linear":
            result = mb.linear(x=half, weight=y)
        elif kind == "matmul":
            result = mb.matmul(x=half, y=y)
        elif kind == "conv":
            turned = mb.transpose(x=half, perm=[0, 3, 1, 2])
            result = mb.conv(x=turned, weight=y.reshape(96, 96, 1, 1), pad_type="valid")
        else:
            result = mb.scaled_dot_product_attention(query=half, key=half, value=half)
            result = mb.add(x=result, y=np.zeros(96, np.float16))
        return [mb.cast(x=result, dtype="fp32")]

    path = save(tmp_path / "Mini.mlpackage", {"x": x}, build, 8)
    wide = mil.open(path, "main")({"x": x})["out_0"]
    narrow = mil.open(path, "main", accumulate="float16")({"x": x})["out_0"]
    assert 0 < np.abs(wide - narrow).max() < 0.1
    if kind == "scaled_dot_product_attention":
        return
    half, weight = x.astype(np.float16).astype(np.float32), y.astype(np.float32)
    weight = weight if kind == "matmul" else weight.T
    total: Any = None
    for begin in (0, 32, 64):
        part = half[..., begin : begin + 32] @ weight[begin : begin + 32]
        part = part.astype(np.float16).astype(np.float32)
        total = part if total is None else (total + part).astype(np.float16).astype(np.float32)
    total = total.transpose(0, 3, 1, 2) if kind == "conv" else total
    assert np.mean(narrow == total) > 0.97  # partial sums may round the other way
    assert np.abs(narrow - total).max() < 0.05
