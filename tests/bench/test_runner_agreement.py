"""Both runners on the suite's own jobs: the same decibels, registers and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtu_export import bundle
from mtu_export.bench import work
from mtu_export.bench.job import Job, Result, parse
from mtu_export.bundle import metrics
from tests.bench import runners

pytestmark = pytest.mark.slow
SETTINGS = work.Settings(threads=1, samples=1, warmup=0)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source() -> bundle.Bundle:
    return bundle.read(runners.TESTDATA)


def commands() -> Mapping[str, Sequence[str]]:
    return {
        "c++": ["sh", str(runners.built() / "run.sh")],
        "python": [sys.executable, "-m", "mtu_export.bench.python_runner"],
    }


def both(folder: Path, source: Path, document: Mapping[str, Any]) -> dict[str, tuple[int, Result]]:
    """Exit code and result of each runner; what they keep is in ``c++.st`` and ``python.st``."""
    results = {}
    link = folder / "bundle"
    if not link.exists():
        link.symlink_to(source, target_is_directory=True)
    for name, command in commands().items():
        kept = {"outputs": f"{name}.st"} if "keep" in document else {}
        path, output = folder / f"{name}.json", folder / f"{name}-result.json"
        path.write_text(json.dumps({**document, **kept}), "utf-8")
        done = subprocess.run(
            [*command, str(path), "-o", str(output)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        results[name] = done.returncode, parse(output.read_bytes())
    return results


def written(folder: Path, job: Job, keep: Sequence[str] = ()) -> dict[str, Any]:
    document = json.loads(job.write(folder, "bundle").read_text("utf-8"))
    return document | ({"keep": list(keep)} if keep else {})


@pytest.mark.parametrize("part", ["text_encoder", "vae_encoder", "unet", "vae_decoder"])
def test_a_part_has_the_same_decibels(tmp_path: Path, source: bundle.Bundle, part: str) -> None:
    job, _ = work.part_check(source, "edit", part, SETTINGS)
    results = both(tmp_path, source.folder, written(tmp_path, job))
    (code, ours), (other, theirs) = results["c++"], results["python"]
    assert (code, other) == (0, 0), (ours.reason, theirs.reason)
    assert ours.engine == theirs.engine
    assert ours.psnr_db.keys() == theirs.psnr_db.keys() == job.expected.keys()
    for register, decibels in theirs.psnr_db.items():
        assert ours.psnr_db[register] == pytest.approx(decibels, abs=0.01)


def test_a_picture_is_the_same(tmp_path: Path, source: bundle.Bundle) -> None:
    """The whole loop with guidance over three branches."""
    job = work.image_job(source, "edit", SETTINGS)
    kinds = {step["op"] for step in job.program}
    assert kinds == {"call", "concat", "divide", "scale", "sum"}
    last = [step for step in job.program if step["op"] == "call"][-1]
    (picture,) = last["outputs"].values()
    document = written(tmp_path, replace(job, samples=2, warmup=1), [picture])
    results = both(tmp_path, source.folder, document)
    (code, ours), (other, theirs) = results["c++"], results["python"]
    assert (code, other) == (0, 0), (ours.reason, theirs.reason)
    assert len(ours.samples_s) == len(theirs.samples_s) == 2
    counted = {name: calls.count for name, calls in ours.calls.items()}
    assert counted == {name: calls.count for name, calls in theirs.calls.items()}
    arrays = [load_file(tmp_path / f"{name}.st")[picture] for name in results]
    assert metrics.psnr(arrays[0], arrays[1]) > 60


def test_a_check_of_passes_is_the_same(tmp_path: Path, source: bundle.Bundle) -> None:
    job, floors = work.image_check(source, "edit", SETTINGS)
    results = both(tmp_path, source.folder, written(tmp_path, job))
    (code, ours), (other, theirs) = results["c++"], results["python"]
    assert (code, other) == (0, 0), (ours.reason, theirs.reason)
    assert ours.psnr_db.keys() == floors.floors.keys()
    for register, decibels in theirs.psnr_db.items():
        assert ours.psnr_db[register] == pytest.approx(decibels, abs=0.1)


def test_arithmetic_is_the_same_to_the_bit(tmp_path: Path) -> None:
    place = runners.Workplace(folder=tmp_path)
    program = [
        runners.call(),
        {"op": "sum", "terms": [[1 / 3, "a"], [-0.7, "b"], [1e-7, "s"]], "out": "x"},
        {"op": "scale", "by": 1 / 3, "in": "x", "out": "y"},
        {"op": "divide", "by": 0.7, "in": "y", "out": "z"},
        {"op": "concat", "axis": 1, "in": ["x", "y", "z"], "out": "w"},
        {"op": "slice", "begin": 1, "in": "w", "out": "v"},
    ]
    keep = ["x", "y", "z", "w", "v", "k2"]
    results = both(tmp_path, place.folder, runners.document(program=program, keep=keep))
    assert [code for code, _ in results.values()] == [0, 0]
    ours, theirs = (load_file(tmp_path / f"{name}.st") for name in results)
    for name in keep:
        assert np.array_equal(ours[name], theirs[name]), name
        assert ours[name].dtype == theirs[name].dtype


REFUSED: list[tuple[int, dict[str, Any]]] = [
    (2, {"more": 1}),
    (2, {"samples": 0}),
    (2, {"engine": "tflite"}),
    (2, {"tensors": "../tensors.safetensors"}),
    (2, {"program": [{"op": "power", "in": "a", "out": "x"}]}),
    (2, {"program": [runners.call(inputs={"a": "a", "b": "b", "k": "zzz"})]}),
    (2, {"program": [runners.call(inputs={"a": "k", "b": "b", "k": "k"})]}),
    (2, {"expected": {"s": "zzz"}}),
    (2, {"cpus": "few"}),
    (3, {"tensors": "none.safetensors"}),
]


@pytest.mark.parametrize(("code", "changes"), REFUSED, ids=[str(c)[:60] for _, c in REFUSED])
def test_both_refuse_alike(tmp_path: Path, code: int, changes: dict[str, Any]) -> None:
    place = runners.Workplace(folder=tmp_path)
    results = both(tmp_path, place.folder, runners.document(**changes))
    assert {name: returned for name, (returned, _) in results.items()} == {
        "c++": code,
        "python": code,
    }
    assert all(result.status == "failed" and result.reason for _, result in results.values())
