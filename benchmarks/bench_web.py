"""The embedded model, int8, in headless Chromium -> benchmarks/results/bench_web.json.

python benchmarks/bench_web.py [--wasm] [-o FILE.json]

WebAssembly, and WebGPU on the processor (SwiftShader), whose times are no speeds and take a
quarter of an hour: its rows are marked ``emulated``. ``--wasm`` measures WebAssembly alone; the
other rows of the file stay. A note has the load before each, as the browser shares the cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mtu_export import bundle
from mtu_export.bench import record
from mtu_export.bench.devices import web
from mtu_export.bench.record import Measurement
from mtu_export.bench.web import records
from mtu_export.bundle import Bundle
from mtu_export.spec import ToolchainError
from mtu_export.spec.options import BenchOptions
from mtu_export.testing import chromium

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "bench_web.json"
FIXTURE = Path.home() / ".cache" / "mtu-export" / "bench-fixtures" / "inpaint-onnx-int8"
ROUNDS, SAMPLES = {"wasm": 3, "webgpu": 1}, {"wasm": 10, "webgpu": 3}


def embedded() -> Bundle:
    """The embedded model's inpainting task, exported once."""
    if not (FIXTURE / bundle.MANIFEST).is_file():
        print(f"exporting to {FIXTURE.name}")
        command = ["onnx", "--task", "inpaint", "--int8", "-o", str(FIXTURE), "--force"]
        subprocess.run([sys.executable, "-m", "mtu_export", *command], check=True)
    return bundle.read(FIXTURE)


def measure(source: Bundle, task: str, provider: web.Provider, seconds: float) -> web.WebResult:
    """One provider in a browser of its own."""
    program = shutil.which("chromium")
    if program is None:
        raise ToolchainError("chromium is not installed (Debian: chromium)")
    options = web.WebOptions(
        task=task,
        providers=(provider,),
        rounds=ROUNDS[provider],
        samples=SAMPLES[provider],
        deadline_s=seconds,
    )
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as profile, chromium.browsers() as browsers:

        def opened(url: str) -> None:
            browsers.open(program, url, Path(profile), chromium.SOFTWARE_GPU)

        return web.serve(source, options, print, opened)


def _kept(path: Path, providers: list[web.Provider]) -> tuple[list[Measurement], list[str]]:
    """Rows of the file that are not measured again, and notes on them."""
    if not path.is_file():
        return [], []
    run = record.read(path)
    rows = [row for row in run.measurements if row.provider not in providers]
    others = {row.provider for row in rows}
    return rows, [note for note in run.notes if note.partition(":")[0] in others]


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wasm", action="store_true", help="WebAssembly alone")
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds of a provider")
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    asked = parser.parse_args()
    source = embedded()
    providers: list[web.Provider] = ["wasm"] if asked.wasm else ["wasm", "webgpu"]
    rows, notes = _kept(asked.output, providers)
    for provider in providers:
        load = f"{provider}: load average {os.getloadavg()[0]:.1f} before, {os.cpu_count()} cores"
        run = records.collect(
            [source],
            BenchOptions(device="web"),
            lambda each, task, provider=provider: measure(each, task, provider, asked.deadline),
        )
        rows += run.measurements
        notes += [load, *(note for note in run.notes if note not in notes)]
        run = run.model_copy(update={"measurements": tuple(rows), "notes": tuple(notes)})
        record.write(run, asked.output)
    for row in rows:
        worst = min((check.psnr_db for check in row.checks), default=None)
        shown = f"{row.latency.median * 1000:8.1f} ms" if row.latency else "-"
        db = "-" if worst is None else f"{worst:.1f} dB"
        print(f"{row.provider:7} {row.part:13} {row.status:9} {shown} {db} {row.reason or ''}")


if __name__ == "__main__":
    main()
