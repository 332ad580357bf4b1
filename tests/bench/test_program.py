"""A flow as a runner's program: every kind of loop of the shared vectors, and the real runner."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtu_export import bundle
from mtu_export.bench import python_runner, work
from mtu_export.bench.program import Compiler, Program, guidance_factors
from mtu_export.bundle import TaskRecord, runner, sampler
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.bundle.manifest import ScheduleRecord
from mtu_export.spec import Guidance, TensorSpec
from tests.support import vectors

LOOPS: dict[str, Any] = vectors.read("loops.json")
TESTDATA = vectors.TESTDATA
CLOSE = 2e-5
"""Of the largest number expected, as the contract's page says of these vectors."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return load_file(TESTDATA / "loops.safetensors")


def specs(records: list[dict[str, Any]]) -> list[TensorSpec]:
    return [TensorSpec(name=r["name"], shape=tuple(r["shape"]), dtype=r["dtype"]) for r in records]


def compiled(case: dict[str, Any], tensors: dict[str, np.ndarray]) -> Program:
    """The program of one case of the vectors."""
    asked, task = dict(case["request"]), TaskRecord.model_validate_json(json.dumps(case["task"]))
    guidance = task.scales
    if "guidance" in asked:
        guidance = Guidance(**asked.pop("guidance"))
    key = (asked.get("steps"), asked.get("strength"))
    tables = [ScheduleRecord.model_validate_json(json.dumps(s)) for s in LOOPS["schedules"]]
    schedule = next((t.schedule() for t in tables if (t.steps, t.strength) == key), None)
    count = 1 if schedule is None else 1 + schedule.draws
    inputs = task.inputs
    request = Request(
        prompt=asked.get("prompt", ""),
        negative_prompt=asked.get("negative_prompt"),
        steps=asked.get("steps", 1),
        strength=asked.get("strength"),
        noise=tensors["noise"][:count],
        pictures={name: tensors[f"pictures/{name}"] for name in inputs.pictures},
        tensors={name: tensors[f"tensors/{name}"] for name in inputs.tensors},
        numbers=asked.get("numbers", {}),
    )
    parts = {part["name"]: part for part in LOOPS["parts"]}
    by_task = {
        name: specs(part.get("task_inputs", {}).get(task.name, part["inputs"]))
        for name, part in parts.items()
    }
    outputs = {
        name: {output["name"]: tuple(output["shape"]) for output in part["outputs"]}
        for name, part in parts.items()
    }
    constants = {
        name.removeprefix("constants/"): value
        for name, value in tensors.items()
        if name.startswith("constants/")
    }
    evaluation = Evaluation(
        task.flow,
        inputs,
        by_task,
        constants,
        guidance,
        request,
        lambda path, text: tensors[f"ids/{path}/{text}"],
    )
    return Compiler(evaluation, outputs).picture(schedule if task.flow.has_loop else None)


@pytest.mark.parametrize("case", LOOPS["cases"], ids=[case["name"] for case in LOOPS["cases"]])
def test_a_program_does_what_the_contract_says(
    case: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
    program, run = compiled(case, tensors), vectors.closed_form(LOOPS["parts"])
    names = [part["name"] for part in LOOPS["parts"]]
    timed: dict[str, list[float]] = {name: [] for name in names}
    sessions: Any = {name: partial(run, name) for name in names}
    registers = python_runner.run_program(program.instructions, program.tensors, sessions, timed)
    actual = {"picture": registers[program.picture]}
    if program.latents:
        actual["latent"] = registers[program.latents[-1]]
    for kind, array in actual.items():
        expected = tensors[f"expected/{case['name']}/{kind}"]
        assert np.abs(array - expected).max() <= CLOSE * np.abs(expected).max(), kind


@pytest.mark.parametrize("kind", ["none", "text", "text_image"])
def test_factors_are_those_of_the_guided_sum(kind: Any) -> None:
    generator = np.random.default_rng(3)
    scales = {"none": {}, "text": {"text": 7.5}, "text_image": {"text": 7.5, "image": 1.5}}
    guidance = Guidance(kind=kind, **scales[kind])
    factors = guidance_factors(guidance)
    outputs = [generator.standard_normal((1, 4, 8, 8), np.float32) for _ in factors]
    total = sum(f * o.astype(np.float64) for f, o in zip(factors, outputs, strict=True))
    assert np.allclose(total, sampler.guide(guidance, outputs), rtol=1e-6, atol=1e-6)


def test_a_whole_picture_is_that_of_the_loop() -> None:
    """testdata's request: the program's picture against `run`'s, in the same runtime."""
    source = bundle.read(TESTDATA / "edit-onnx-int8")
    picture = work.picture_of(source, "edit")
    golden = picture.golden
    generated = runner.generate(picture.loop, golden.request)
    job = work.image_job(source, "edit", work.Settings())
    check, floors = work.image_check(source, "edit", work.Settings())
    registers = run(job, source)
    name = job.program[-1]["outputs"][source.task("edit").flow.picture.name]
    assert np.abs(registers[name] - generated.image).max() < 1e-5
    passes = run(check, source)
    assert len(check.expected) == len(golden.latents) + 1 == len(floors.floors)
    for register, expected in check.expected.items():
        difference = passes[register] - check.tensors[expected]
        assert 20 * np.log10(np.abs(passes[register]).max() / np.sqrt((difference**2).mean())) > 30


def run(job: Any, source: bundle.Bundle) -> dict[str, np.ndarray]:
    """The registers of a job, its parts in the runtime that `run` takes."""
    loop = runner.open_loop(source, source.tasks[0].name)
    sessions = {name: runner.open_part(loop, name) for name in job.parts}
    timed: dict[str, list[float]] = {name: [] for name in sessions}
    return python_runner.run_program(job.program, job.tensors, sessions, timed)
