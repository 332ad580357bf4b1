"""Damaged jobs, tensors and bundles: the runner's own code has no fault that the sanitizers see."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import runners
from tests.bench.runners import Workplace, call, document

pytestmark = pytest.mark.slow
BUNDLE = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"
JOBS, HEADERS, BYTES, GRAPHS = 250, 200, 100, 20
DOCUMENTED = {0, 2, 3, 4, 5}
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, -1e308, 2**31, 2**32, 2**63, 2**64 - 1, 10**30, "", "a",
    "k", "..", "/", "a/../b", "\x00", "\ud800", "x" * 5000, [], [[]], [0], [1, 2, 3], {}, {"a": 1},
    ["a"] * 2000, [2**20] * 8, [1] * 9,
]  # fmt: skip


@pytest.fixture(scope="module")
def start() -> Path:
    return runners.sanitized() / "mtu-bench"


@pytest.fixture(scope="module")
def stubbed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner beside a plugin that takes any part."""
    folder = tmp_path_factory.mktemp("stubbed")
    shutil.copy(start, folder / "mtu-bench")
    runners.compiled(runners.STUB, folder / "libmtu_onnx.so")
    return folder / "mtu-bench"


def full_job() -> dict[str, Any]:
    """A job with every key and every operation."""
    return document(
        options={"arena": "1", "graph_optimization": "all"},
        cpus="all",
        program=[
            call(),
            {"op": "sum", "terms": [[0.5, "s"], [1.0, "a"]], "out": "x"},
            {"op": "scale", "by": 0.5, "in": "x", "out": "x"},
            {"op": "divide", "by": 0.5, "in": "x", "out": "y"},
            {"op": "concat", "axis": 1, "in": ["x", "y"], "out": "z"},
            {"op": "slice", "begin": 1, "in": "z", "out": "w"},
            call(),
        ],
        expected={"x": "b"},
        outputs="out.safetensors",
        keep=["w", "k2"],
        load_again=True,
        warmup=1,
        cooldown_ms=0,
        deadline_s=20,
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutated(document: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The document with one to three values replaced, removed, doubled or exchanged."""
    job = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 2, 3])):
        path = draw.choice(list(places(job)))
        holder: Any = job
        for key in path[:-1]:
            holder = holder[key]
        kind = draw.randrange(5)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
        elif kind == 2:
            other: Any = document
            for key in draw.choice(list(places(document))):
                other = other[key]
            holder[path[-1]] = copy.deepcopy(other)
        else:
            holder[path[-1]] = draw.choice(HOSTILE)
    return job


def judge(start: Path, job: Path, what: str) -> int:
    """Run a mutant; the exit code, where everything that is promised holds."""
    environment = {**os.environ, "ASAN_OPTIONS": "exitcode=99:allocator_may_return_null=1"}
    outcome = runners.run(start, job, environment=environment)
    for mark in runners.SANITIZER:
        assert mark not in outcome.stderr, f"{what}: {outcome.stderr[-3000:]}"
    assert outcome.code in DOCUMENTED, f"{what}: {outcome.code} {outcome.stderr[-500:]}"
    result = outcome.result
    if outcome.code == 0 or result is not None:
        assert result is not None
        assert "the runner's result" not in (result.reason or ""), f"{what}: {result.reason}"
        assert (result.status == "measured") is (outcome.code == 0)
    assert result is not None or outcome.code == 2, what
    assert "unexpected" not in ((result and result.reason) or ""), f"{what}: {result}"
    return outcome.code


def test_mutated_jobs(stubbed: Path, tmp_path: Path) -> None:
    place, draw = Workplace(folder=tmp_path), random.Random(22)
    assert judge(stubbed, place.job(full_job()), "the job itself") == 0
    codes = []
    for number in range(JOBS):
        job = mutated(full_job(), draw)
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job), "utf-8")
        codes.append(judge(stubbed, path, f"job {number}: {json.dumps(job)[:2000]}"))
    assert {0, 2} <= set(codes)


def test_jobs_with_damaged_bytes(stubbed: Path, tmp_path: Path) -> None:
    Workplace(folder=tmp_path)
    draw, text = random.Random(23), json.dumps(full_job()).encode()
    for number in range(BYTES):
        damaged = bytearray(text)
        for _ in range(draw.choice([1, 1, 4])):
            damaged[draw.randrange(len(damaged))] = draw.choice(b'{}[]",:0-9eE\\\xff\x00tf')
        path = tmp_path / "job.json"
        path.write_bytes(damaged[: draw.choice([len(text), len(text), draw.randrange(len(text))])])
        judge(stubbed, path, f"bytes {number}")


def test_mutated_tensors(stubbed: Path, tmp_path: Path) -> None:
    place, draw = Workplace(folder=tmp_path), random.Random(24)
    job, file = place.job(full_job()), tmp_path / "tensors.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    codes = set()
    for number in range(HEADERS):
        words = json.dumps(mutated(header, draw)).encode()
        size = draw.choice([*[len(words)] * 9, 0, 2**40, 2**64 - 1, len(words) - 1])
        kept = data[: draw.choice([*[len(data)] * 5, draw.randrange(len(data))])]
        file.write_bytes(struct.pack("<Q", size) + words + kept)
        codes.add(judge(stubbed, job, f"header {number}: {words[:1000]!r}"))
    assert {2, 3} <= codes
    for size in (0, 7, 8, 9):
        file.write_bytes(whole[:size])
        assert judge(stubbed, job, f"{size} bytes") == 3


def test_mutated_graphs(start: Path, tmp_path: Path) -> None:
    """The engine itself may refuse them, or die of them: either is a result."""
    place, draw = Workplace(folder=tmp_path), random.Random(25)
    names = ("sample", "timestep", "encoder_hidden_states")
    shapes = ([1, 8, 4, 6], [1], [1, 77, 16])
    parts = {
        "unet": {
            "path": "unet",
            "entry": "model.onnx",
            "inputs": [
                {"name": name, "shape": shape, "dtype": "float32"}
                for name, shape in zip(names, shapes, strict=True)
            ],
            "outputs": [{"name": "out_sample", "shape": [1, 4, 4, 6], "dtype": "float32"}],
        }
    }
    prefix = "unet/edit/0/"
    program = [
        {
            "op": "call",
            "part": "unet",
            "inputs": {name: prefix + name for name in names},
            "outputs": {"out_sample": "x"},
        }
    ]
    shutil.copy(BUNDLE / "goldens.safetensors", tmp_path / "goldens.safetensors")
    job = place.job(parts=parts, program=program, tensors="goldens.safetensors")
    (tmp_path / "unet").mkdir()
    whole = (BUNDLE / "unet" / "model.onnx").read_bytes()
    for number in range(GRAPHS):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 20, 400])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        cut = draw.choice([len(whole), len(whole), draw.randrange(len(whole))])
        (tmp_path / "unet" / "model.onnx").write_bytes(damaged[:cut])
        judge(start, job, f"graph {number}")
