"""Programs that ask for gigabytes: refused before any of it is taken."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export.spec import BundleError, TensorSpec
from mtu_export.targets.coreml.mil.evaluate import Evaluator
from mtu_export.targets.coreml.mil.program import Constant, Function, Operation

HUGE = 3_000_000_000
ROOM = 1 << 30


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most a gigabyte more than the process has already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _program(
    kind: str,
    shape: tuple[int, ...],
    inputs: Mapping[str, tuple[tuple[int, ...], str]],
    plain: Mapping[str, Any],
    dtype: str = "int8",
    opset: int = 7,
) -> Function:
    constants = {}
    for name, value in plain.items():
        if isinstance(value, str):
            spec = TensorSpec(name=name, shape=(), dtype="string")
            constants[name] = (Constant(name=name, spec=spec, data=value),)
            continue
        kinds = {"f": np.float32, "i": np.int64, "b": np.bool_}
        array = np.array(value)
        array = array.astype(kinds[array.dtype.kind])
        spec = TensorSpec(name=name, shape=array.shape, dtype=array.dtype.name)
        constants[name] = (Constant(name=name, spec=spec, data=array),)
    specs = tuple(TensorSpec(name=n, shape=s, dtype=d) for n, (s, d) in inputs.items())
    output = TensorSpec(name="y", shape=shape, dtype=dtype)
    operation = Operation(
        kind=kind,
        name="y",
        operands={**{spec.name: (spec.name,) for spec in specs}, **constants},
        outputs=(output,),
    )
    return Function(
        package="Mini.mlpackage",
        name="main",
        opset=opset,
        inputs=specs,
        outputs=("y",),
        operations=(operation,),
    )


SMALL, LONG = {"x": ((4,), "int8")}, {"x": ((HUGE,), "int8")}
CASES = [
    _program("range_1d", (7,), {}, {"start": 0.0, "end": float(HUGE), "step": 1.0}, "int32"),
    _program("range_1d", (7,), {}, {"start": 0.5, "end": 1e18, "step": 1.0}, "float32"),
    _program("pad", (7,), SMALL, {"pad": (HUGE, 0), "mode": "replicate"}),
    _program("pad", (7,), SMALL, {"pad": (0, HUGE), "mode": "constant"}),
    _program("pad", (7,), LONG, {"pad": (HUGE - 1, 0), "mode": "reflect"}),
    _program("slice_by_index", (7,), LONG, {"begin": (0,), "end": (HUGE,), "stride": (2,)}),
    _program("split", (7,), LONG, {"axis": 0, "num_splits": HUGE}),
    _program("tile", (7,), SMALL, {"reps": (HUGE,)}),
    _program("fill", (7,), {"value": ((), "int8")}, {"shape": (HUGE,)}),
    _program(
        "upsample_nearest_neighbor",
        (1, 7, 7),
        {"x": ((1, 1, 1), "int8")},
        {"scale_factor_height": float(HUGE), "scale_factor_width": 1.0},
    ),
    _program(
        "upsample_bilinear",
        (1, 1, 7, 7),
        {"x": ((1, 1, 1, 1), "float32")},
        {"scale_factor_height": float(HUGE), "scale_factor_width": 1.0},
        "float32",
    ),
    _program(
        "gather",
        (7,),
        {"x": ((HUGE, 2), "int8"), "indices": ((HUGE, 1), "int32")},
        {"axis": 1, "batch_dims": 1},
    ),
    _program(
        "gather_nd",
        (7,),
        {"x": ((HUGE, 2), "int8"), "indices": ((HUGE, 1), "int32")},
        {"batch_dims": 1},
    ),
    _program("reshape", (7,), SMALL, {"shape": (1,) * 5000}),
]


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.operations[0].kind)
@pytest.mark.usefixtures("little_memory")
def test_what_a_constant_asks_for_is_refused_before_it_is_taken(program: Function) -> None:
    with pytest.raises(BundleError, match=r"the program says|over 1024|equal pieces"):
        Evaluator(program)
