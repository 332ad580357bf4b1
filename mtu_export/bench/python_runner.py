"""The runner in Python: a second opinion on the C++ runner, and its stand-in without a compiler.

    python -m mtu_export.bench.python_runner JOB.json -o RESULT.json [--progress]

Jobs, results and exit codes are those of ``runtime/android/runner/README.md``. The work is done in
a child process, so that an engine that crashes or is killed leaves a result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtu_export import __version__
from mtu_export.bench import engines, job_file, machine
from mtu_export.bench.engines import Loaded
from mtu_export.bench.job import FORMAT
from mtu_export.bench.job_file import JobFile
from mtu_export.bench.memory import Meter
from mtu_export.bundle import metrics
from mtu_export.bundle.goldens import save_tensors
from mtu_export.spec import BundleError, MtuExportError, PlanError, ToolchainError, first_line

USAGE, BAD_FILE, NO_ENGINE, FAILED = 2, 3, 4, 5
LARGEST_PSNR = 999.0
"""Written for equal tensors."""
_CHILD = "MTU_RUNNER_CHILD"
_OUT_OF_MEMORY = "killed, most likely out of memory"


def main(arguments: list[str] | None = None) -> int:
    """Run a job in a child process; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python_runner", description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    if os.environ.get(_CHILD):
        return _work(options.job, options.output, progress=options.progress)
    options.output.unlink(missing_ok=True)
    try:
        deadline = job_file.read(options.job).deadline_s
    except PlanError as error:
        sys.stderr.write(f"error: {error}\n")
        _write(options.output, {"status": "failed", "reason": str(error), "runner": _runner()})
        return USAGE
    command = [sys.executable, "-m", __spec__.name, str(options.job), "-o", str(options.output)]
    command += ["--progress"] * options.progress
    environment = {**os.environ, _CHILD: "1", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        code = subprocess.run(command, env=environment, timeout=deadline, check=False).returncode  # noqa: S603
        reason = None if code >= 0 else killed_by(-code)
    except subprocess.TimeoutExpired:
        code, reason = FAILED, f"no result in {deadline:g} s"
    if reason is not None:
        _write(options.output, {"status": "failed", "reason": reason})
        return FAILED
    return code


def killed_by(number: int) -> str:
    """What a signal's number says of a process that it ended."""
    if number == signal.SIGKILL:
        return _OUT_OF_MEMORY
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {number} ({name})"


# ----------------------------------------------------------------------------------- the child


def _work(path: Path, output: Path, *, progress: bool) -> int:
    result: dict[str, Any] = {"status": "failed", "reason": None, "runner": _runner()}
    try:
        _measure(job_file.read(path), path.parent, result, _reporter(progress))
        result["status"], code = "measured", 0
    except PlanError as error:
        result["reason"], code = str(error), USAGE
    except BundleError as error:
        result["reason"], code = str(error), BAD_FILE
    except ToolchainError as error:
        result["reason"], code = str(error), NO_ENGINE if "engine" not in result else FAILED
    except MemoryError:
        result["reason"], code = "out of memory", FAILED
    except (MtuExportError, OSError, ValueError, KeyError, RuntimeError) as error:
        result["reason"], code = first_line(error), FAILED
    if code:
        sys.stderr.write(f"error: {result['reason']}\n")
    _write(output, result)
    return code


def _reporter(progress: bool) -> Callable[..., None]:
    def report(event: str, **values: Any) -> None:
        if progress:
            sys.stderr.write(json.dumps({"event": event, **values}) + "\n")
            sys.stderr.flush()

    return report


def _measure(
    job: JobFile, folder: Path, result: dict[str, Any], report: Callable[..., None]
) -> None:
    """Fill ``result``: load, run warm-ups and samples, load again, compare."""
    tensors = _tensors(job, folder)
    job_file.check(job, tensors)
    mask = _set_affinity(job.cpus)
    meter = Meter()
    start = meter.read()
    engine = engines.engine(job.engine, job.threads)
    result["engine"] = {"name": engine.name, "version": engine.version}
    result["threads"], result["mask"] = engine.threads, mask
    meter.reset()
    sessions = {name: _open(engine, job, name, folder, result, report) for name in job.parts}
    loaded = meter.read()
    meter.reset()
    clocks = machine.clocks()
    registers = _sample_all(job, tensors, sessions, result, report)
    memory = {"start": start, "loaded": loaded, "run": meter.read()}
    result["memory"] = {**memory, "peak_total": meter.peak_total()}
    result["machine"] = {**_machine(), "clocks_khz": {"before": clocks, "after": machine.clocks()}}
    for name in job.parts if job.load_again else ():
        del sessions[name]
        _open(engine, job, name, folder, result, report)
    if job.outputs is not None:
        save_tensors({name: registers[name] for name in job.keep}, folder / job.outputs)
    result["psnr_db"] = {
        name: _psnr(tensors[expected], registers[name]) for name, expected in job.expected.items()
    }


def _tensors(job: JobFile, folder: Path) -> dict[str, np.ndarray]:
    """The job's tensors; raises ``BundleError`` for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if job.tensors is None:
        return {}
    try:
        return load_file(folder / job.tensors)
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(f"{job.tensors}: {first_line(error)}") from None


def _open(
    engine: engines.Engine,
    job: JobFile,
    name: str,
    folder: Path,
    result: dict[str, Any],
    report: Callable[..., None],
) -> Loaded:
    """Load a part; its time counts as the second loading where there was a first."""
    part = job.parts[name]
    again = name in result.setdefault("load_s", {})
    begin = time.monotonic()
    session = engine.open(folder / part.path, part.entry, part, job.options)
    seconds = time.monotonic() - begin
    result.setdefault("load_again_s" if again else "load_s", {})[name] = seconds
    report("loaded again" if again else "loaded", part=name, seconds=seconds)
    return session


def _sample_all(
    job: JobFile,
    tensors: Mapping[str, np.ndarray],
    sessions: Mapping[str, Loaded],
    result: dict[str, Any],
    report: Callable[..., None],
) -> dict[str, np.ndarray]:
    """Run warm-ups and samples; the registers after the last."""
    program = [step.model_dump(by_alias=True) for step in job.program]
    registers: dict[str, np.ndarray] = {}
    times, calls = [], {name: [] for name in sessions}
    count = job.warmup + job.samples
    for number in range(count):
        timed: dict[str, list[float]] = {name: [] for name in sessions}
        begin = time.monotonic()
        registers = run_program(program, tensors, sessions, timed)
        seconds = time.monotonic() - begin
        if number == 0:
            result["first_s"] = seconds
        if number >= job.warmup:
            times.append(seconds)
            for name, values in timed.items():
                calls[name] += values
        report("sample", number=number + 1, of=count, seconds=seconds)
        time.sleep(job.cooldown_ms / 1000)
    result["samples_s"] = times
    result["calls"] = {name: {"count": len(v), "seconds": v} for name, v in calls.items()}
    return registers


@np.errstate(all="ignore")  # what is not finite fails the comparison
def run_program(
    program: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, np.ndarray],
    sessions: Mapping[str, Loaded],
    timed: Mapping[str, list[float]],
) -> dict[str, np.ndarray]:
    """One sample: the registers after all instructions. Raises ``KeyError`` for an unknown one."""
    registers = dict(tensors)
    for step in program:
        if step["op"] == "call":
            inputs = {name: registers[register] for name, register in step["inputs"].items()}
            begin = time.monotonic()
            outputs = sessions[step["part"]](inputs)
            timed[step["part"]].append(time.monotonic() - begin)
            for name, register in step["outputs"].items():
                registers[register] = outputs[name]
        else:
            registers[step["out"]] = _arithmetic(step, registers)
    return registers


def _arithmetic(step: Mapping[str, Any], registers: Mapping[str, np.ndarray]) -> np.ndarray:
    if step["op"] == "sum":
        factor, name = step["terms"][0]
        total = factor * registers[name].astype(np.float64)
        for factor, name in step["terms"][1:]:
            total += factor * registers[name].astype(np.float64)
        return total.astype(np.float32)
    if step["op"] == "scale":
        return registers[step["in"]] * np.float32(step["by"])
    if step["op"] == "divide":
        return registers[step["in"]] / np.float32(step["by"])
    if step["op"] == "concat":
        return np.concatenate([registers[name] for name in step["in"]], step["axis"])
    if step["op"] == "slice":
        return registers[step["in"]][step["begin"] : step["begin"] + 1]
    raise AssertionError(step["op"])


def _psnr(expected: np.ndarray, actual: np.ndarray) -> float:
    decibels = metrics.psnr(expected, actual)
    if not np.isfinite(decibels):
        raise RuntimeError("the output holds NaN or Inf or has another shape")
    return LARGEST_PSNR if decibels >= metrics.CEILING_DB else decibels


# ---------------------------------------------------------------------------------- the machine


def _set_affinity(cpus: str) -> str | None:
    """Bind this process; the mask in hexadecimal, None where the system has none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    if cpus == "big":
        limits = {
            n: machine.number(machine.CPUS / f"cpu{n}" / "cpufreq" / "cpuinfo_max_freq") or 0
            for n in _cpus()
        }
        cores = {n for n in limits if limits[n] == max(limits.values())}
    elif cpus == "all":
        cores = set(_cpus())
    else:
        cores = {bit for bit in range(256) if int(cpus, 16) >> bit & 1}
    os.sched_setaffinity(0, cores)
    return f"{sum(1 << core for core in os.sched_getaffinity(0)):x}"


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _machine() -> dict[str, Any]:
    return {
        "arch": platform.machine(),
        "cores": os.cpu_count() or 1,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "governor": machine.governor(),
    }


def _runner() -> dict[str, Any]:
    return {
        "name": "python-runner",
        "version": __version__,
        "language": f"python {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "libc": " ".join(platform.libc_ver()) or None,
    }


def _write(path: Path, result: Mapping[str, Any]) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps({"format": FORMAT, **result}), "utf-8")
    draft.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
