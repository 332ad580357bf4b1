"""The C++ runner in tests: built once for all workers, with small jobs and false engines for it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from mtu_export.bench import builds
from mtu_export.bench.job import Result, parse
from mtu_export.spec import ToolchainError
from tests.support import tools

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
TESTDATA = ROOT / "runtime" / "testdata" / "edit-onnx-int8"
SANITIZER = ("ERROR: AddressSanitizer", "runtime error:", "ERROR: LeakSanitizer")
SHAPE = (2, 3)


@cache
def built(arch: str = platform.machine()) -> Path:
    """The folder of an up-to-date runner; the build is incremental."""
    tools.require("cmake")
    tools.require("g++" if arch == platform.machine() else f"{arch}-linux-gnu-g++")
    BUILD.mkdir(exist_ok=True)
    with FileLock(BUILD / f".runner-{arch}.lock"):
        try:
            return builds.build_runner(arch)
        except ToolchainError as error:
            if "is missing" in str(error):
                tools.missing(str(error))
            raise


@cache
def sanitized() -> Path:
    """The folder of the build with sanitizers; its engine is ONNX Runtime alone."""
    folder = built()
    with FileLock(BUILD / ".runner-asan.lock"):
        command = [sys.executable, str(ROOT / builds.ASSEMBLE), "--asan"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        asan = Path(done.stdout.strip().splitlines()[-1])
        library = asan / "libonnxruntime.so"
        if not library.exists():
            library.unlink(missing_ok=True)
            library.symlink_to(folder / library.name)
        return asan


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a process of the runner left."""

    code: int
    result: Result | None
    stderr: str

    @property
    def reason(self) -> str:
        """Of a result that failed."""
        assert self.result is not None
        assert self.result.status == "failed"
        return self.result.reason or ""


def run(program: Path, job: Path, *words: str, environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = ()) -> Outcome:  # fmt: skip
    """Run a job; the result is read by the suite's own reader."""
    output = job.with_name("result.json")
    command = [*prefix, str(program), str(job), "-o", str(output), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, errors="replace"
    )
    result = parse(output.read_bytes()) if output.is_file() else None
    return Outcome(code=done.returncode, result=result, stderr=done.stderr)


# --------------------------------------------------------------------------------------- small jobs


def save_adder(folder: Path) -> None:
    """A graph with the inputs a and b (float32) and k (int32): sum = a + b, k2 = k + k."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, dtype: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Add", ["k", "k"], ["k2"])],
        "adder",
        [
            value("a", TensorProto.FLOAT, SHAPE),
            value("b", TensorProto.FLOAT, SHAPE),
            value("k", TensorProto.INT32, (4,)),
        ],
        [value("sum", TensorProto.FLOAT, SHAPE), value("k2", TensorProto.INT32, (4,))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")


def tensors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    return {
        "a": draw.standard_normal(SHAPE).astype(np.float32),
        "b": draw.standard_normal(SHAPE).astype(np.float32),
        "k": np.arange(4, dtype=np.int32),
        "ones": np.ones(SHAPE, np.float32),
    }


def call(**changes: Any) -> dict[str, Any]:
    return {
        "op": "call",
        "part": "adder",
        "inputs": {"a": "a", "b": "b", "k": "k"},
        "outputs": {"sum": "s", "k2": "k2"},
        **changes,
    }


def document(**changes: Any) -> dict[str, Any]:
    """The job of one call of the adder."""
    part = {
        "path": "adder",
        "entry": "model.onnx",
        "inputs": [
            {"name": "a", "shape": [2, 3], "dtype": "float32"},
            {"name": "b", "shape": [2, 3], "dtype": "float32"},
            {"name": "k", "shape": [4], "dtype": "int32"},
        ],
        "outputs": [
            {"name": "sum", "shape": [2, 3], "dtype": "float32"},
            {"name": "k2", "shape": [4], "dtype": "int32"},
        ],
    }
    return {
        "format": 1,
        "engine": "onnx",
        "threads": 1,
        "parts": {"adder": part},
        "tensors": "tensors.safetensors",
        "program": [call()],
        "samples": 1,
        "deadline_s": 60,
        **changes,
    }


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A folder with the adder, its tensors and one job after another."""

    folder: Path
    values: dict[str, np.ndarray] = field(default_factory=tensors)

    def __post_init__(self) -> None:
        save_adder(self.folder / "adder")
        save_file(self.values, self.folder / "tensors.safetensors")

    def job(self, job: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        """Write a job; ``changes`` are those of its document."""
        path = self.folder / "job.json"
        path.write_text(json.dumps(document(**changes) if job is None else job), "utf-8")
        return path


def golden_job(folder: Path, bundle: Path, part: str, case: int, **changes: Any) -> Path:
    """The job of one golden of a bundle's first task, compared and kept."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    entry = next(each for each in manifest["parts"] if each["name"] == part)
    task = manifest["tasks"][0]["name"]
    prefix = f"{part}/{task}/{case}/"
    goldens = load_file(bundle / "goldens.safetensors")
    save_file({k: v for k, v in goldens.items() if k.startswith(prefix)}, folder / "t.safetensors")
    (folder / "bundle").symlink_to(bundle)
    inputs, outputs = (
        [{key: spec[key] for key in ("name", "shape", "dtype")} for spec in entry[kind]]
        for kind in ("inputs", "outputs")
    )
    job = document(
        engine=manifest["target"],
        parts={
            part: {
                "path": f"bundle/{entry['path']}",
                "entry": entry["entries"][task],
                "inputs": inputs,
                "outputs": outputs,
            }
        },
        tensors="t.safetensors",
        program=[
            {
                "op": "call",
                "part": part,
                "inputs": {spec["name"]: prefix + spec["name"] for spec in inputs},
                "outputs": {spec["name"]: spec["name"] for spec in outputs},
            }
        ],
        expected={spec["name"]: prefix + spec["name"] for spec in outputs},
        outputs="out.safetensors",
        keep=[spec["name"] for spec in outputs],
    )
    path = folder / "job.json"
    path.write_text(json.dumps(job | changes), "utf-8")
    return path


FALSE_ENGINE = r"""
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const void *get(uint32_t version) { (void)version; return 0; }
static const char *name(void) { return "1.19.2"; }
static const struct { const void *(*get)(uint32_t); const char *(*name)(void); } base = {get, name};
const void *OrtGetApiBase(void) {
  const char *what = getenv("FALSE_ENGINE");
  if (!what || !strcmp(what, "old")) return &base;
  if (!strcmp(what, "crash")) raise(SIGSEGV);
  if (!strcmp(what, "abort")) abort();
  if (!strcmp(what, "memory")) raise(SIGKILL);
  if (!strcmp(what, "exit")) _exit(7);
  for (;;) sleep(1);
}
"""
"""A library that takes the place of ONNX Runtime and fails in the way that FALSE_ENGINE says."""

STUB = r"""
#include <string.h>
#include "engine.h"
static size_t count;
static int start(const char *l, const char *f, int32_t t, const char **o) {
  (void)l; (void)f; (void)t; (void)o; return 0; }
static const char *version(void) { return "stub"; }
static int opens(const char *p, const char *e, size_t n, size_t m, void **part) {
  (void)p; (void)e; (void)n; count = m; *part = &count; return 0; }
static int run(void *part, const mtu_tensor *in, const mtu_tensor *out) {
  (void)part; (void)in;
  for (size_t n = 0; n < count; ++n) memset(out[n].data, 0, out[n].bytes);
  return 0; }
static void closes(void *part) { (void)part; }
static const char *error(void) { return "none"; }
const mtu_engine *mtu_engine_1(void) {
  static const mtu_engine engine = {"stub", start, version, opens, run, closes, error};
  return &engine; }
"""
"""A plugin that takes any part and writes zeros: mutated jobs pass through the whole core in ms."""


def compiled(source: str, output: Path) -> Path:
    """A shared library of C."""
    code = output.with_suffix(".c")
    code.write_text(source, "utf-8")
    headers = f"-I{ROOT / builds.ASSEMBLE.parent / 'src'}"
    command = [tools.require("gcc"), "-shared", "-fPIC", headers, str(code), "-o", str(output)]
    subprocess.run(command, check=True, timeout=60)
    return output
