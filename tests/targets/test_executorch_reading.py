"""Files of several methods that are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mtu_export import targets
from mtu_export.spec import BundleError
from mtu_export.targets.executorch.lowering import write

executorch = targets.load("executorch")
pytestmark = pytest.mark.slow


def write_program(path: Path, names: tuple[str, ...], interface: str) -> Path:
    methods = {
        name: torch.export.export(nn.ReLU().eval(), (torch.zeros(1, 4),), strict=False)
        for name in names
    }
    write(methods, {"_identity": "{}", "_interface": interface}, path)
    return path


def test_names_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    path = write_program(tmp_path / "deep.pte", ("edit",), "[" * 100_000)
    with pytest.raises(BundleError, match=r"deep\.pte: not a program of this product"):
        executorch.structure(path, "edit")


def test_a_method_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """The runtime would take the one and a reader the other."""
    description = '{"inputs": ["x"], "outputs": ["y"]}'
    path = write_program(
        tmp_path / "twice.pte", ("aa", "ab"), f'{{"aa": {description}, "ab": {description}}}'
    )
    assert executorch.structure(path, "aa").inputs[0].name == "x"
    name = b"\x02\0\0\0ab\0"
    data = path.read_bytes()
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, name.replace(b"ab", b"aa")))
    with pytest.raises(BundleError, match="a method appears twice"):
        executorch.structure(path, "aa")


def test_a_method_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    description = '{"inputs": ["x"], "outputs": ["y"]}'
    path = write_program(
        tmp_path / "two.pte", ("edit", "sr"), f'{{"edit": {description}, "sr": {description}}}'
    )
    for entry in ("nowhere", "forward", "_interface"):
        with pytest.raises(BundleError, match=f"no method '{entry}'; it has: edit, sr"):
            executorch.structure(path, entry)


def overlapping(path: Path, plans: int, values: int, name: bytes = b"x") -> Path:
    """A program of ``plans`` offsets to one method, with ``values`` offsets to one value."""
    import struct

    import flatbuffers
    from executorch.exir._serialize.generated.executorch_flatbuffer import (
        EValue,
        ExecutionPlan,
        Null,
        Program,
    )

    builder = flatbuffers.Builder(0)
    string = builder.CreateString(name)
    Null.Start(builder)
    null = Null.End(builder)
    EValue.Start(builder)
    EValue.AddValType(builder, 1)
    EValue.AddVal(builder, null)
    value = EValue.End(builder)
    ExecutionPlan.StartValuesVector(builder, values)
    for _ in range(values):
        builder.PrependUOffsetTRelative(value)
    vector = builder.EndVector()
    ExecutionPlan.Start(builder)
    ExecutionPlan.AddName(builder, string)
    ExecutionPlan.AddValues(builder, vector)
    plan = ExecutionPlan.End(builder)
    Program.StartExecutionPlanVector(builder, plans)
    for _ in range(plans):
        builder.PrependUOffsetTRelative(plan)
    vector = builder.EndVector()
    Program.Start(builder)
    Program.AddExecutionPlan(builder, vector)
    builder.Finish(Program.End(builder), file_identifier=b"ET12")
    data = bytes(builder.Output())
    (root,) = struct.unpack_from("<I", data)
    extended = struct.pack("<4sIQQQ", b"eh00", 32, len(data) + 32, 0, 0)
    path.write_bytes(struct.pack("<I", root + 32) + data[4:8] + extended + data[8:])
    return path


@pytest.mark.parametrize(
    ("plans", "values", "name"), [(5_000, 5_000, b"x"), (1_000, 0, b"x" * 100_000)]
)
def test_offsets_that_lead_to_one_place_are_refused(
    tmp_path: Path, plans: int, values: int, name: bytes
) -> None:
    """Some kilobytes that would unpack to 25,000,000 values, or to 100 MB of names."""
    path = overlapping(tmp_path / "alias.pte", plans, values, name)
    with pytest.raises(BundleError, match=r"alias\.pte: .*its parts overlap"):
        executorch.structure(path, "edit")
    path = overlapping(tmp_path / "one.pte", 1, 1)
    with pytest.raises(BundleError, match=r"one\.pte: not a program") as caught:
        executorch.structure(path, "edit")
    assert "overlap" not in str(caught.value)
