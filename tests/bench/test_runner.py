"""The C++ runner: the same numbers as Python, every operation, every refusal, every way to die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtu_export.bundle import metrics
from tests.bench import runners
from tests.bench.runners import Workplace, call, document

pytestmark = pytest.mark.slow
BUNDLE = runners.TESTDATA
ACTIVATIONS = {"session.qdq_matmulnbits_accuracy_level": "1"}


@pytest.fixture(scope="session")
def start() -> Path:
    return runners.built() / "mtu-bench"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(folder=tmp_path)


def kept(place: Workplace, start: Path, program: list[Any], *names: str) -> dict[str, np.ndarray]:
    """The registers ``names`` after a program."""
    path = place.job(program=program, outputs="out.safetensors", keep=list(names))
    outcome = runners.run(start, path)
    assert outcome.code == 0, outcome.stderr
    return load_file(place.folder / "out.safetensors")


# ------------------------------------------------------------------------------------ real bundles


def bundle_job(folder: Path, part: str, case: int, **changes: Any) -> Path:
    """The job of one golden of testdata's bundle."""
    return runners.golden_job(folder, BUNDLE, part, case, options=ACTIVATIONS, **changes)


def session(path: Path, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in ACTIVATIONS.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("part", ["text_encoder", "vae_encoder", "unet", "vae_decoder"])
def test_a_part_gives_what_python_gives(start: Path, tmp_path: Path, part: str) -> None:
    outcome = runners.run(start, bundle_job(tmp_path, part, 1))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result is not None
    tensors = load_file(tmp_path / "t.safetensors")
    inputs = {value.name for value in session(BUNDLE / part / "model.onnx").get_inputs()}
    feeds = {name: tensors[f"{part}/edit/1/{name}"] for name in inputs}
    names = list(outcome.result.psnr_db)
    python = session(BUNDLE / part / "model.onnx").run(names, feeds)
    actual = load_file(tmp_path / "out.safetensors")
    for name, wanted in zip(names, python, strict=True):
        assert metrics.psnr(wanted, actual[name]) > 100
        decibels = metrics.psnr(tensors[f"{part}/edit/1/{name}"], wanted)
        assert outcome.result.psnr_db[name] == pytest.approx(decibels, abs=0.01)


def test_executorch_gives_the_goldens(
    start: Path, tmp_path: Path, bundles: Callable[..., Path]
) -> None:
    job = runners.golden_job(
        tmp_path, bundles("executorch", "int8", ("edit",)), "unet", 1, threads=2, load_again=True
    )
    outcome = runners.run(start, job)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result is not None
    assert outcome.result.engine is not None
    assert outcome.result.engine.name == "executorch"
    assert outcome.result.psnr_db["out_sample"] > 30


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("inputs", [1, 2], "float32"),
        ("inputs", [1, 8, 8, 8], "int32"),
        ("outputs", [1, 2], "float32"),
        ("outputs", [1, 4, 8, 8], "int32"),
    ],
)
def test_executorch_refuses_what_is_not_of_its_form(
    start: Path,
    tmp_path: Path,
    bundles: Callable[..., Path],
    kind: str,
    shape: list[int],
    dtype: str,
) -> None:
    path = runners.golden_job(tmp_path, bundles("executorch", "int8", ("edit",)), "unet", 1)
    job = json.loads(path.read_text("utf-8"))
    spec = job["parts"]["unet"][kind][0]
    assert (spec["shape"], spec["dtype"]) != (shape, dtype)
    spec |= {"shape": shape, "dtype": dtype}
    job["expected"], job["keep"] = {}, []
    if kind == "inputs":
        register = job["program"][0]["inputs"][spec["name"]]
        tensors = load_file(tmp_path / "t.safetensors") | {register: np.zeros(shape, dtype)}
        save_file(tensors, tmp_path / "t.safetensors")
    path.write_text(json.dumps(job), "utf-8")
    outcome = runners.run(start, path)
    assert outcome.code == 3, outcome.stderr
    assert outcome.reason.startswith("part unet: ")


def test_a_result_holds_what_was_measured(start: Path, tmp_path: Path) -> None:
    job = bundle_job(tmp_path, "unet", 0, warmup=1, samples=4, load_again=True, threads=2)
    outcome = runners.run(start, job, "--progress")
    result = outcome.result
    assert result is not None
    assert (result.status, result.reason, result.threads) == ("measured", None, 2)
    assert result.engine is not None
    assert (result.engine.name, result.engine.version) == ("onnxruntime", "1.28.0")
    assert len(result.samples_s) == 4
    assert result.calls["unet"].count == 4
    for whole, inner in zip(result.samples_s, result.calls["unet"].seconds, strict=True):
        assert 0 < inner <= whole
    assert set(result.load_s) == set(result.load_again_s) == {"unet"}
    assert result.machine is not None
    assert result.machine.arch == os.uname().machine
    assert result.machine.page_size == os.sysconf("SC_PAGESIZE")
    assert result.mask is not None
    assert int(result.mask, 16) == sum(1 << cpu for cpu in os.sched_getaffinity(0))
    memory = result.memory
    assert memory is not None
    assert (memory.loaded.anonymous or 0) > (memory.start.anonymous or 0) > 0
    assert (memory.peak_total or 0) >= (memory.run.anonymous or 0) + (memory.run.file or 0)
    events = [json.loads(line) for line in outcome.stderr.splitlines() if line.startswith("{")]
    samples = [event for event in events if event["event"] == "sample"]
    assert [event["number"] for event in samples] == [1, 2, 3, 4, 5]
    assert {event["of"] for event in samples} == {5}
    assert [event["warmup"] for event in samples] == [True, False, False, False, False]
    assert samples[0]["seconds"] == result.first_s
    assert [event["seconds"] for event in samples[1:]] == list(result.samples_s)


def test_the_program_of_a_loop(start: Path, tmp_path: Path) -> None:
    """Three passes of a sampler, with guidance by slices of a joined batch, against Python."""
    path = bundle_job(tmp_path, "unet", 0)
    job = json.loads(path.read_text("utf-8"))
    tensors = load_file(tmp_path / "t.safetensors")
    prefix = "unet/edit/0/"
    noise = np.random.default_rng(3).standard_normal((1, 4, 4, 6)).astype(np.float32)
    image = tensors[prefix + "sample"][:, 4:].copy()
    save_file({**tensors, "noise": noise, "image": image}, tmp_path / "t.safetensors")
    program: list[dict[str, Any]] = [{"op": "scale", "by": 0.9, "in": "noise", "out": "x"}]
    for _ in range(3):
        program += [
            {"op": "divide", "by": 1.3, "in": "x", "out": "scaled"},
            {"op": "concat", "axis": 1, "in": ["scaled", "image"], "out": "joined"},
            {
                "op": "call",
                "part": "unet",
                "inputs": {
                    "sample": "joined",
                    "timestep": prefix + "timestep",
                    "encoder_hidden_states": prefix + "encoder_hidden_states",
                },
                "outputs": {"out_sample": "eps"},
            },
            {"op": "sum", "terms": [[1.0, "x"], [-0.35, "eps"]], "out": "x"},
        ]
    job |= {"program": program, "expected": {}, "keep": ["x"], "samples": 2}
    path.write_text(json.dumps(job), "utf-8")
    outcome = runners.run(start, path)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result is not None
    assert outcome.result.calls["unet"].count == 6
    python = session(BUNDLE / "unet" / "model.onnx")
    feeds = {name: tensors[prefix + name] for name in ("timestep", "encoder_hidden_states")}
    x = noise * np.float32(0.9)
    for _ in range(3):
        joined = np.concatenate([x / np.float32(1.3), image], axis=1)
        (eps,) = python.run(["out_sample"], {"sample": joined, **feeds})
        x = (1.0 * x.astype(np.float64) + -0.35 * eps.astype(np.float64)).astype(np.float32)
    actual = load_file(tmp_path / "out.safetensors")["x"]
    assert metrics.psnr(x, actual) > 100


# -------------------------------------------------------------------------------------- operations


def test_sum_rounds_once(start: Path, place: Workplace) -> None:
    program = [call(), {"op": "sum", "terms": [[0.1, "a"], [1e-9, "b"], [-0.1, "a"]], "out": "s2"}]
    values = kept(place, start, program, "s2", "s", "k2")
    a, b = (place.values[name].astype(np.float64) for name in "ab")
    assert np.array_equal(values["s2"], ((0.1 * a + 1e-9 * b) + -0.1 * a).astype(np.float32))
    assert np.array_equal(values["s"], place.values["a"] + place.values["b"])
    assert np.array_equal(values["k2"], 2 * place.values["k"])


def test_scale_and_divide_round_their_factor_first(start: Path, place: Workplace) -> None:
    program = [
        call(),
        {"op": "scale", "by": 0.1, "in": "a", "out": "x"},
        {"op": "divide", "by": 0.1, "in": "a", "out": "y"},
    ]
    values = kept(place, start, program, "x", "y")
    assert np.array_equal(values["x"], place.values["a"] * np.float32(0.1))
    assert np.array_equal(values["y"], place.values["a"] / np.float32(0.1))


@pytest.mark.parametrize("axis", [0, 1])
def test_concat_joins_an_axis(start: Path, place: Workplace, axis: int) -> None:
    program = [call(), {"op": "concat", "axis": axis, "in": ["a", "s", "a"], "out": "x"}]
    values = kept(place, start, program, "x", "s")
    a = place.values["a"]
    assert np.array_equal(values["x"], np.concatenate([a, values["s"], a], axis))


def test_concat_and_slice_take_integers(start: Path, place: Workplace) -> None:
    program = [
        call(),
        {"op": "concat", "axis": 0, "in": ["k", "k2"], "out": "x"},
        {"op": "slice", "begin": 6, "in": "x", "out": "y"},
        {"op": "slice", "begin": 1, "in": "a", "out": "z"},
    ]
    values = kept(place, start, program, "x", "y", "z")
    assert values["x"].dtype == np.int32
    assert np.array_equal(values["y"], [2 * place.values["k"][2]])
    assert np.array_equal(values["z"], place.values["a"][1:2])


def test_every_run_begins_with_the_tensors_of_the_file(start: Path, place: Workplace) -> None:
    program = [call(outputs={"sum": "a"}), call(outputs={"sum": "a"})]
    path = place.job(
        program=program, samples=3, warmup=2, outputs="out.safetensors", keep=["a", "b"]
    )
    assert runners.run(start, path).code == 0
    values = load_file(place.folder / "out.safetensors")
    a, b = place.values["a"], place.values["b"]
    assert np.array_equal(values["a"], (a + b) + b)
    assert np.array_equal(values["b"], b)


def test_equal_tensors_have_999_decibels(start: Path, place: Workplace) -> None:
    outcome = runners.run(start, place.job(expected={"ones": "ones", "a": "b"}))
    assert outcome.result is not None
    assert outcome.result.psnr_db["ones"] == 999.0
    wanted = metrics.psnr(place.values["b"], place.values["a"])
    assert outcome.result.psnr_db["a"] == pytest.approx(wanted, abs=1e-9)


def test_a_mask_is_kept_and_recorded(start: Path, place: Workplace) -> None:
    cpu = max(os.sched_getaffinity(0))
    outcome = runners.run(start, place.job(cpus=f"{1 << cpu:x}", threads=0))
    assert outcome.result is not None
    assert outcome.result.mask == f"{1 << cpu:x}"
    assert outcome.result.threads == 1


def test_big_cores_are_some_of_those_allowed(start: Path, place: Workplace) -> None:
    outcome = runners.run(start, place.job(cpus="big"))
    assert outcome.result is not None
    allowed = sum(1 << cpu for cpu in os.sched_getaffinity(0))
    mask = int(outcome.result.mask or "0", 16)
    assert mask
    assert mask | allowed == allowed


# ---------------------------------------------------------------------------------------- refusals

Change = Callable[[dict[str, Any]], Any]


def _set(*path: Any, to: Any) -> Change:
    def change(job: dict[str, Any]) -> None:
        inner: Any = job
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to

    return change


def _op(**instruction: Any) -> Change:
    return lambda job: job["program"].append(instruction)


def _part(key: str, to: Any) -> Change:
    return _set("parts", "adder", key, to=to)


BAD_JOBS: list[tuple[Change, int, str]] = [
    (_set("more", to=1), 2, "the job: key 'more' is unknown"),
    (_set("format", to=2), 2, "format: a whole number from 1 to 1 is needed"),
    (_set("engine", to="tflite"), 2, "the job: engine is onnx or executorch"),
    (_set("engine", to=3), 2, "engine: a string is needed"),
    (lambda job: job.pop("samples"), 2, "the job: key 'samples' is missing"),
    (_set("samples", to=0), 2, "samples: a whole number from 1 to 100000 is needed"),
    (_set("samples", to=1.5), 2, "samples: a whole number"),
    (_set("samples", to=2**64 - 1), 2, "samples: a whole number"),
    (_set("warmup", to=-1), 2, "warmup: a whole number from 0"),
    (_set("deadline_s", to=0), 2, "the job: deadline_s is a number above 0"),
    (_set("threads", to=5000), 2, "threads: a whole number from 0 to 1024"),
    (_set("load_again", to=1), 2, "the job: load_again is true or false"),
    (_set("cpus", to="few"), 2, "cpus: all, big or a hexadecimal mask is needed"),
    (_set("cpus", to="8" + 200 * "0"), 2, "has no CPU that this process may use"),
    (_set("tensors", to="../t.safetensors"), 2, "tensors: a relative path without '.' and '..'"),
    (_set("tensors", to="/etc/passwd"), 2, "tensors: a relative path"),
    (_set("library", to="a/../b.so"), 2, "library: a relative path"),
    (_set("outputs", to="x.safetensors"), 2, "outputs and keep stand together or not at all"),
    (_set("options", to={"arena": "2"}), 2, "options.arena: 0 or 1 is needed"),
    (_set("options", to={"graph_optimization": "some"}), 2, "all or none is needed"),
    (_set("options", to={"x": 1}), 2, "options.x: a string is needed"),
    (_set("options", to={"": "1"}), 2, "Config key is empty"),
    (_set("parts", to={}), 2, "the job: 1 to 64 parts are needed"),
    (_set("parts", "adder", "extra", to=1), 2, "parts.adder: key 'extra' is unknown"),
    (_part("path", "adder/"), 2, "parts.adder.path: a relative path"),
    (_part("entry", "../model.onnx"), 2, "parts.adder: entry is a name without '/'"),
    (_part("outputs", []), 2, "parts.adder: outputs is empty"),
    (
        _set("parts", "adder", "inputs", 0, "dtype", to="float16"),
        2,
        "parts.adder.inputs[0]: dtype is float32 or int32",
    ),
    (
        _set("parts", "adder", "inputs", 0, "shape", to=[0]),
        2,
        "parts.adder.inputs[0].shape: rank at most 8, extents from 1",
    ),
    (
        _set("parts", "adder", "inputs", 0, "shape", to=[2**29, 2**29, 2**29]),
        2,
        "at most 1 GiB",
    ),
    (_set("parts", "adder", "inputs", 1, "name", to="a"), 2, "'a' is twice in inputs"),
    (_set("program", to=[]), 2, "the job: the samples make no call"),
    (_op(op="power"), 2, "program[1]: op 'power' is none of call, sum, scale"),
    (_op(op="scale", by=1, out="x", **{"in": "zzz"}), 2, "nothing has written register 'zzz'"),
    (_op(op="scale", by="2", out="x", **{"in": "a"}), 2, "program[1].by: a finite number"),
    (_op(op="scale", by=1e300, out="x", **{"in": "a"}), 2, "program[1].by: a finite number"),
    (_op(op="divide", by=0, out="x", **{"in": "a"}), 2, "program[1].by: a number other than 0"),
    (_op(op="scale", by=1, out="x", **{"in": "k"}), 2, "register 'k' is not float32"),
    (_op(op="sum", terms=[], out="x"), 2, "program[1]: terms is empty"),
    (_op(op="sum", terms=[[1, "a", 2]], out="x"), 2, "a term is a list of a finite factor and"),
    (_op(op="sum", terms=[[1, "a"], [1, "k"]], out="x"), 2, "register 'k' is not float32"),
    (_op(op="concat", axis=2, out="x", **{"in": ["a"]}), 2, "program[1].axis: a whole number"),
    (_op(op="concat", axis=0, out="x", **{"in": ["a", "k"]}), 2, "its registers differ in rank"),
    (_op(op="concat", axis=0, out="x", **{"in": []}), 2, "program[1]: in is empty"),
    (_op(op="slice", begin=2, out="x", **{"in": "a"}), 2, "program[1].begin: a whole number from"),
    (_op(op="slice", begin=0, out="x", why=1, **{"in": "a"}), 2, "key 'why' is unknown"),
    (_op(**call(part="multiplier")), 2, "program[1]: there is no part 'multiplier'"),
    (_op(**call(inputs={"a": "a", "b": "b"})), 2, "program[1]: input 'k' has no register"),
    (
        _op(**call(inputs={"a": "k", "b": "b", "k": "k"})),
        2,
        "input 'a' is float32[2,3], register 'k' int32[4]",
    ),
    (_op(**call(outputs={"product": "x"})), 2, "has no input or output 'product'"),
    (_op(**call(outputs={"sum": "x", "k2": "x"})), 2, "program[1]: 'x' is twice in outputs"),
    (_set("expected", to={"s": "zzz"}), 2, "expected.s: there is no tensor 'zzz'"),
    (_set("expected", to={"s": "k"}), 2, "expected.s: the register is float32[2,3], tensor 'k'"),
    (_set("expected", to={"zzz": "a"}), 2, "nothing has written register 'zzz'"),
    (_set("tensors", to="none.safetensors"), 3, "none.safetensors cannot be read"),
    (_set("tensors", to="adder"), 3, "adder"),
]


@pytest.mark.parametrize(("change", "code", "message"), BAD_JOBS, ids=[m for _, _, m in BAD_JOBS])
def test_a_bad_job_is_refused(
    start: Path, place: Workplace, change: Change, code: int, message: str
) -> None:
    job = document()
    change(job)
    outcome = runners.run(start, place.job(job))
    assert outcome.code == code, outcome.stderr
    assert message in outcome.reason
    assert outcome.result is not None
    assert outcome.result.engine is None, "refused before an engine is opened"


GRAPH_MISMATCHES: list[tuple[Change, int]] = [
    (_set("parts", "adder", "outputs", 0, "name", to="product"), 3),
    (_set("parts", "adder", "outputs", 0, "shape", to=[3, 2]), 3),
    (_set("parts", "adder", "outputs", 1, "dtype", to="float32"), 3),
    (_set("parts", "adder", "inputs", 2, "name", to="kk"), 3),
]


@pytest.mark.parametrize(("change", "code"), GRAPH_MISMATCHES)
def test_a_job_that_does_not_fit_the_graph(
    start: Path, place: Workplace, change: Change, code: int
) -> None:
    job = document()
    change(job)
    part = job["parts"]["adder"]
    names = ("a", "b", "k")
    job["program"][0] |= {
        "inputs": {spec["name"]: name for spec, name in zip(part["inputs"], names, strict=True)},
        "outputs": {spec["name"]: spec["name"] for spec in part["outputs"]},
    }
    outcome = runners.run(start, place.job(job))
    assert outcome.code == code, outcome.stderr
    assert outcome.reason.startswith("part adder: ")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": 1e999}', "\xff"])
def test_a_job_that_is_no_json_object(start: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text, "latin-1")
    outcome = runners.run(start, path)
    assert outcome.code == 2
    assert outcome.reason == "job.json is not a readable JSON object"


@pytest.mark.parametrize("engine", ["onnx", "executorch"])
@pytest.mark.parametrize("path", ["nowhere", "job.json", "adder"])
def test_an_artefact_that_is_none(start: Path, place: Workplace, engine: str, path: str) -> None:
    job = document(engine=engine)
    job["parts"]["adder"] |= {"path": path, "entry": "forward"}
    outcome = runners.run(start, place.job(job))
    assert outcome.code == 3, outcome.stderr
    assert outcome.reason.startswith("part adder: ")


def test_a_job_that_is_no_file(start: Path, place: Workplace) -> None:
    os.mkfifo(place.folder / "job.json")
    outcome = runners.run(start, place.folder / "job.json")
    assert (outcome.code, outcome.reason) == (2, "job.json is not a readable JSON object")
    outcome = runners.run(start, place.folder / "adder")
    assert (outcome.code, outcome.reason) == (2, "adder is not a readable JSON object")


def test_a_graph_that_is_damaged(start: Path, place: Workplace) -> None:
    (place.folder / "adder" / "model.onnx").write_bytes(b"\x08\x09nonsense")
    outcome = runners.run(start, place.job())
    assert outcome.code == 3
    assert outcome.reason.startswith("part adder: ")


def test_tensors_that_are_not_finite(start: Path, place: Workplace) -> None:
    place.values["a"][0, 0] = np.inf
    save_file(place.values, place.folder / "tensors.safetensors")
    outcome = runners.run(start, place.job())
    assert (outcome.code, outcome.reason) == (3, "tensors.safetensors: tensor a is not finite")


def test_a_result_that_is_not_finite(start: Path, place: Workplace) -> None:
    program = [call(), {"op": "scale", "by": 3e38, "in": "a", "out": "x"}]
    program += [{"op": "scale", "by": 3e38, "in": "x", "out": "x"}]
    outcome = runners.run(start, place.job(program=program, expected={"x": "a"}))
    assert outcome.code == 5
    assert "register x is not finite" in outcome.reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a job and -o are needed"),
        (["job.json"], "a job and -o are needed"),
        (["job.json", "-o", "nowhere/result.json"], "nowhere/result.json cannot be written"),
        (["job.json", "-o", "r.json", "--fast"], "'--fast' is not expected"),
        (["job.json", "-o", "./job.json"], "./job.json is the job, or no plain file"),
        (["job.json", "-o", "."], ". is the job, or no plain file"),
        (["job.json", "-o", "pipe"], "pipe is the job, or no plain file"),
    ],
)
def test_usage(start: Path, tmp_path: Path, words: list[str], message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "job.json").write_text("{}", "utf-8")
    done = subprocess.run([start, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert (tmp_path / "job.json").read_text("utf-8") == "{}"


def test_an_old_result_does_not_outlive_its_run(start: Path, place: Workplace) -> None:
    (place.folder / "result.json").write_text('{"format": 1, "status": "measured"}', "utf-8")
    outcome = runners.run(start, place.job(samples=0))
    assert outcome.reason.startswith("samples")


# ----------------------------------------------------------------------------------------- engines


@pytest.fixture(scope="session")
def false_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return runners.compiled(runners.FALSE_ENGINE, folder / "false.so")


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("old", 4, "onnxruntime 1.19.2 is too old: 1.20 or newer is needed"),
        ("crash", 5, "killed by signal 11 (SIGSEGV)"),
        ("abort", 5, "killed by signal 6 (SIGABRT)"),
        ("memory", 5, "killed, most likely out of memory"),
        ("exit", 5, "the engine ended the process with code 7"),
        ("hang", 5, "no result in 0.5 s"),
    ],
)
def test_an_engine_that_fails(
    start: Path, place: Workplace, false_engine: Path, what: str, code: int, reason: str
) -> None:
    (place.folder / "false.so").symlink_to(false_engine)
    job = place.job(library="false.so", deadline_s=0.5 if what == "hang" else 60)
    outcome = runners.run(start, job, environment={**os.environ, "FALSE_ENGINE": what})
    assert (outcome.code, outcome.reason) == (code, reason)


def test_a_library_that_is_missing(start: Path, place: Workplace) -> None:
    outcome = runners.run(start, place.job(library="lib/none.so"))
    assert outcome.code == 4
    assert outcome.reason.startswith("onnxruntime: ./lib/none.so: cannot open")


def test_a_library_that_is_no_engine(start: Path, place: Workplace, tmp_path: Path) -> None:
    runners.compiled("int nothing;", tmp_path / "nothing.so")
    outcome = runners.run(start, place.job(library="nothing.so"))
    assert (outcome.code, outcome.reason) == (
        4,
        "./nothing.so is not ONNX Runtime: no OrtGetApiBase",
    )


def test_a_runner_without_its_plugins(start: Path, place: Workplace, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "mtu-bench"
    alone.parent.mkdir()
    alone.write_bytes(start.read_bytes())
    alone.chmod(0o755)
    outcome = runners.run(alone, place.job())
    assert outcome.code == 4
    assert outcome.reason.startswith("engine onnx is missing: ")


def test_the_child_dies_with_the_runner(
    start: Path, place: Workplace, false_engine: Path, tmp_path: Path
) -> None:
    (place.folder / "false.so").symlink_to(false_engine)
    job = place.job(library="false.so")
    command = [start, job, "-o", tmp_path / "result.json"]
    environment = {**os.environ, "FALSE_ENGINE": "hang"}
    with subprocess.Popen(command, env=environment) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := re.findall(r"\d+", children.read_text("utf-8"))):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    limit = time.monotonic() + 30
    while Path(f"/proc/{child[0]}").exists() and time.monotonic() < limit:
        stat = Path(f"/proc/{child[0]}/stat")
        if stat.exists() and stat.read_text("utf-8").rpartition(")")[2].split()[0] == "Z":
            break  # dead, and not yet reaped by whoever took it over
    else:
        assert not Path(f"/proc/{child[0]}").exists()
