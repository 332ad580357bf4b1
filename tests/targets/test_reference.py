"""The reference target: PyTorch in the process that lowered, a description everywhere else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtu_export import targets
from mtu_export.exporter import options
from mtu_export.spec import BundleError, RuntimeUnavailable, ToolchainError, Unsupported

from .conftest import MakeMini

reference = targets.load("reference")
runtime = targets.runtime(reference)


def test_a_copy_runs_in_the_process_that_lowered(mini: MakeMini, tmp_path: Path) -> None:
    program, plan, cases, _, _ = mini("reference", "int8")
    lowered = reference.lower(program, plan, tmp_path, {"name": "mini"})
    copy = tmp_path / "copy.json"
    shutil.copyfile(tmp_path / lowered.path, copy)
    first, second = (
        runtime.open(path, "t2i")(cases[0])["out_sample"] for path in (tmp_path / "unet.json", copy)
    )
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ToolchainError, match="input 'sample'"):
        runtime.open(copy, "t2i")({})
    with pytest.raises(BundleError, match="no description of a program with the entry 'main'"):
        runtime.open(copy, "main")


def test_the_same_program_gives_the_same_bytes(mini: MakeMini, tmp_path: Path) -> None:
    texts = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        program, plan, *_ = mini("reference", "fp32")
        path = reference.lower(program, plan, tmp_path / name, {}).path
        texts.add((tmp_path / name / path).read_bytes())
    assert len(texts) == 1


def test_another_process_reads_and_does_not_run(mini: MakeMini, tmp_path: Path) -> None:
    program, plan, *_ = mini("reference", "fp32")
    path = tmp_path / reference.lower(program, plan, tmp_path, {}).path
    code = (
        "import sys; from pathlib import Path; from mtu_export import targets\n"
        "from mtu_export.spec import RuntimeUnavailable\n"
        "target, path = targets.load('reference'), Path(sys.argv[1])\n"
        "assert target.structure(path, 't2i').inputs[0].name == 'sample'\n"
        "try: targets.runtime(target).open(path, 't2i')\n"
        "except RuntimeUnavailable as error: print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    reason = "unet.json runs only in the process that exported it"
    assert done.stdout.splitlines() == [reason, "False"]


def test_a_changed_description_does_not_run(mini: MakeMini, tmp_path: Path) -> None:
    program, plan, *_ = mini("reference", "fp32")
    path = tmp_path / reference.lower(program, plan, tmp_path, {}).path
    document = json.loads(path.read_text())
    document["entries"]["t2i"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(RuntimeUnavailable):
        runtime.open(path, "t2i")


@pytest.mark.parametrize(
    "spec",
    [{"name": 1}, {"shape": [0]}, {"shape": [True]}, {"shape": "ab"}, {"dtype": "bool"}, {"x": 1}],
)
def test_a_forged_description_is_refused(
    spec: dict[str, object], mini: MakeMini, tmp_path: Path
) -> None:
    program, plan, *_ = mini("reference", "fp32")
    path = tmp_path / reference.lower(program, plan, tmp_path, {}).path
    document = json.loads(path.read_text())
    document["entries"]["t2i"]["inputs"][0] |= spec
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError):
        reference.structure(path, "t2i")


def test_float16_is_refused(tiny: Path) -> None:
    with pytest.raises(Unsupported, match="use fp32 or int8"):
        options.resolve(target="reference", model=tiny, task="t2i", scheme="fp16")
