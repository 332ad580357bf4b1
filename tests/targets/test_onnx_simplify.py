"""onnxsim is a flag: the exporter's own optimiser leaves it nothing to do on real graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtu_export import targets
from mtu_export.bundle.metrics import psnr
from tests.targets.conftest import MakeMini

IDENTITY = {"name": "mini"}
TARGET = targets.load("onnx")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_a_simplified_graph_computes_the_same(scheme: str, mini: MakeMini, tmp_path: Path) -> None:
    outputs, simplifiers = [], []
    for simplify in (False, True):
        program, plan, cases, *_ = mini("onnx", scheme, simplify=simplify)
        lowered = TARGET.lower(program, plan, tmp_path / str(simplify), IDENTITY)
        path = tmp_path / str(simplify) / lowered.path
        (entry,) = set(lowered.entries.values())
        (output,) = targets.runtime(TARGET).open(path, entry)(cases[0]).values()
        outputs.append(output)
        simplifiers.append(str(lowered.notes["simplifier"]))
    assert psnr(*outputs) > 120
    assert simplifiers[0] == "none"
    assert simplifiers[1].startswith("onnxsim ")
