"""The runner in Python: jobs that are refused, results of jobs that work, fail and die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle
from mtu_export.bench import job as jobs
from mtu_export.bench import job_file, python_runner, work
from mtu_export.bench.job import JOB, RESULT, Job, Result
from mtu_export.spec import PlanError
from tests.support.vectors import TESTDATA

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def source() -> bundle.Bundle:
    return bundle.read(TESTDATA / "edit-onnx-int8")


@pytest.fixture
def folder(tmp_path: Path, source: bundle.Bundle) -> Path:
    (tmp_path / "bundle").symlink_to(source.folder, target_is_directory=True)
    return tmp_path


def ask(job: Job, folder: Path) -> tuple[int, Result, str]:
    """Exit code, result and standard error of the runner."""
    job.write(folder, "bundle")
    return started(folder)


def started(folder: Path) -> tuple[int, Result, str]:
    command = [sys.executable, "-m", "mtu_export.bench.python_runner", str(folder / JOB)]
    process = subprocess.run(
        [*command, "-o", str(folder / RESULT), "--progress"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process.returncode, jobs.parse((folder / RESULT).read_bytes()), process.stderr


def test_a_part_is_measured(folder: Path, source: bundle.Bundle) -> None:
    settings = work.Settings(threads=1, samples=4, warmup=2)
    code, result, events = ask(work.part_job(source, "edit", "vae_decoder", settings), folder)
    assert (code, result.status, result.reason) == (0, "measured", None)
    assert len(result.samples_s) == 4
    assert result.calls["vae_decoder"].count == 4
    assert set(result.load_s) == set(result.load_again_s) == {"vae_decoder"}
    assert result.engine is not None
    assert result.engine.name == "onnxruntime"
    assert result.memory is not None
    assert result.memory.run.anonymous
    assert result.machine is not None
    assert result.machine.page_size == os.sysconf("SC_PAGE_SIZE")
    kinds = [json.loads(line)["event"] for line in events.splitlines() if line.startswith("{")]
    assert kinds == ["loaded", *["sample"] * 6, "loaded again"]


def test_a_check_tells_a_wrong_output(folder: Path, source: bundle.Bundle) -> None:
    check, floors = work.part_check(source, "edit", "vae_decoder", work.Settings(threads=1))
    _, result, _ = ask(check, folder)
    assert result.psnr_db.keys() == floors.floors.keys()
    assert all(result.psnr_db[name] > floor for name, (_, floor) in floors.floors.items())
    name = next(iter(check.expected.values()))
    wrong = {**check.tensors, name: -check.tensors[name]}
    _, other, _ = ask(replace(check, tensors=wrong), folder)
    assert min(other.psnr_db.values()) < min(floor for _, floor in floors.floors.values())


CHANGES: dict[str, tuple[Change, str]] = {
    "an unknown key": (lambda d: d.update(more=1), "more"),
    "another format": (lambda d: d.update(format=2), "format"),
    "an unknown op": (lambda d: d["program"].append({"op": "jump"}), "program"),
    "no samples": (lambda d: d.update(samples=0), "samples"),
    "a path that leads out": (
        lambda d: d["parts"]["vae_decoder"].update(path="../bundle/vae_decoder"),
        "leads out",
    ),
    "an absolute path": (lambda d: d.update(tensors="/etc/passwd"), "leads out"),
    "a register that nothing has written": (
        lambda d: d["program"].append({"op": "scale", "by": 1.0, "in": "none", "out": "x"}),
        "no register 'none'",
    ),
    "a division by zero": (
        lambda d: d["program"].append(
            {"op": "divide", "by": 1e-60, "in": "out/sample", "out": "x"}
        ),
        "divide by 0",
    ),
    "an entry that is not there": (
        lambda d: d["program"].append({"op": "slice", "begin": 9, "in": "out/sample", "out": "x"}),
        "no entry 9",
    ),
    "a part that is not there": (
        lambda d: d["program"].append({"op": "call", "part": "unet", "inputs": {}, "outputs": {}}),
        "no part 'unet'",
    ),
    "an input of another shape": (
        lambda d: d["parts"]["vae_decoder"]["inputs"][0].update(shape=[1, 4, 4, 4]),
        "is [1, 4, 4, 4]",
    ),
    "terms of two shapes": (
        lambda d: d["program"].append(
            {"op": "sum", "terms": [[1.0, "out/sample"], [1.0, "in/latent_sample"]], "out": "x"}
        ),
        "shapes",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_bad_job_is_refused(name: str, tmp_path: Path, source: bundle.Bundle) -> None:
    job = work.part_job(source, "edit", "vae_decoder", work.Settings())
    change, words = CHANGES[name]
    document = job.document("bundle")
    change(document)
    (tmp_path / JOB).write_text(json.dumps(document))
    with pytest.raises(PlanError) as refused:
        job_file.check(job_file.read(tmp_path / JOB), job.tensors)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refusal_is_exit_2_and_a_result(folder: Path, source: bundle.Bundle) -> None:
    job = work.part_job(source, "edit", "vae_decoder", work.Settings())
    document = {**job.document("bundle"), "samples": 0}
    job.write(folder, "bundle")
    (folder / JOB).write_text(json.dumps(document))
    code, result, error = started(folder)
    assert (code, result.status) == (python_runner.USAGE, "failed")
    assert error.startswith("error: job.json: samples")


def test_a_damaged_artefact_is_exit_3(folder: Path, source: bundle.Bundle) -> None:
    (folder / "bundle").unlink()
    (folder / "bundle" / "vae_decoder").mkdir(parents=True)
    (folder / "bundle" / "vae_decoder" / "model.onnx").write_bytes(b"\x08\x0a" + bytes(50))
    job = work.part_job(source, "edit", "vae_decoder", work.Settings())
    code, result, _ = ask(job, folder)
    assert (code, result.status) == (python_runner.BAD_FILE, "failed")
    assert "cannot load model.onnx" in str(result.reason)


def test_an_unknown_engine_is_exit_2(folder: Path, source: bundle.Bundle) -> None:
    job = work.part_job(source, "edit", "vae_decoder", work.Settings())
    code, result, _ = ask(replace(job, engine="tflite"), folder)
    assert code == python_runner.USAGE
    assert "choose from: onnx, executorch" in str(result.reason)


def test_a_deadline_is_a_result(folder: Path, source: bundle.Bundle) -> None:
    job = work.part_job(source, "edit", "vae_decoder", work.Settings(samples=90_000))
    code, result, _ = ask(replace(job, deadline_s=3.0), folder)
    assert (code, result.status) == (python_runner.FAILED, "failed")
    assert result.reason == "no result in 3 s"


def test_a_signal_is_named() -> None:
    assert python_runner.killed_by(9) == "killed, most likely out of memory"
    assert python_runner.killed_by(11) == "killed by signal 11 (SIGSEGV)"


def test_what_is_not_finite_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        python_runner._psnr(np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1, "status": "good"}', "x" * 99])
def test_a_damaged_result_is_a_failed_one(text: str) -> None:
    result = jobs.parse(text)
    assert result.status == "failed"
    assert "cannot be read" in str(result.reason)
