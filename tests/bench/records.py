"""Records of runs that never were, for tests of statistics, comparison and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtu_export.bench.record import (
    BundleRecord,
    Check,
    DeviceRecord,
    Measurement,
    Memory,
    MemoryRecord,
    Peak,
    Program,
    Round,
    Run,
    Work,
)
from mtu_export.bench.statistics import summarize

HASH = "0" * 64


def rounds_of(*samples: Sequence[float], load_s: float = 0.5) -> tuple[Round, ...]:
    """A round for each list of samples."""
    return tuple(
        Round(load_s=load_s, load_again_s=load_s / 2, first_s=2 * max(s), samples_s=tuple(s))
        for s in samples
    )


def noisy(
    generator: np.random.Generator,
    seconds: float,
    rounds: int = 5,
    samples: int = 10,
    drift: np.ndarray | None = None,
) -> tuple[Round, ...]:
    """Samples as two cores with other work give them.

    Each round is off by ``drift`` (drawn here unless something shares it), each sample by 3 %,
    and one in twenty takes 1.3 to 3 times as long.
    """
    drift = host_drift(generator, rounds) if drift is None else drift
    own = generator.normal(0, 0.005, rounds)
    noise = np.exp(drift[:, None] + own[:, None] + generator.normal(0, 0.03, (rounds, samples)))
    late = generator.random((rounds, samples)) < 0.05
    noise *= np.where(late, generator.uniform(1.3, 3, (rounds, samples)), 1)
    return rounds_of(*(seconds * noise).tolist())


def host_drift(generator: np.random.Generator, rounds: int) -> np.ndarray:
    """Of one run: the run itself 1 %, each round 1.5 %, a trend of up to 2 %."""
    trend = np.linspace(0, generator.uniform(-0.02, 0.02), rounds)
    return generator.normal(0, 0.01) + generator.normal(0, 0.015, rounds) + trend


def bundle(**changes: Any) -> BundleRecord:
    """A bundle's record."""
    values: dict[str, Any] = {
        "name": "t2i-onnx-int8",
        "manifest_sha256": HASH,
        "source": "embedded",
        "source_sha256": HASH,
        "target": "onnx",
        "scheme": "int8",
        "height": 32,
        "width": 32,
        "tasks": ("t2i",),
        "bytes": 5_000_000,
    }
    return BundleRecord(**{**values, **changes})


def measured(rounds: tuple[Round, ...], **changes: Any) -> Measurement:
    """A measurement of these rounds; ``bundle`` may be a dict of changes."""
    memory = MemoryRecord(anonymous=90_000_000, file=40_000_000, peak=140_000_000)
    own = changes.pop("bundle", {})
    latency = summarize(rounds)
    flops = 231_456_768
    values: dict[str, Any] = {
        "kind": "bundle",
        "bundle": own if isinstance(own, BundleRecord) else bundle(**own),
        "task": "t2i",
        "part": "denoiser",
        "status": "measured",
        "runner": Program(name="mtu-bench", version="0.1.0", detail="c++, gcc 12.2.0"),
        "engine": Program(name="onnxruntime", version="1.28.0"),
        "threads": 2,
        "mask": "3",
        "work": Work(
            bytes=4_400_000,
            parameters=4_283_012,
            flops_conv_linear=221_478_912,
            flops_total=flops,
        ),
        "rounds": rounds,
        "latency": latency,
        "gflops": flops / latency.median / 1e9 if latency else None,
        "share_of_peak": 0.4,
        "memory": Memory(start=memory, loaded=memory, run=memory, peak_total=140_000_000),
        "checks": (Check(name="out", psnr_db=61.4, floor_db=40.0, passed=True),),
    }
    return Measurement(**{**values, **changes})


def unmeasured(status: str, reason: str, **changes: Any) -> Measurement:
    """A failure, or what was not run."""
    own = changes.pop("bundle", {})
    values: dict[str, Any] = {"kind": "bundle", "task": "t2i", "part": "denoiser"}
    return Measurement(**{**values, "bundle": bundle(**own), "status": status,
                          "reason": reason, **changes})  # fmt: skip


def device(**changes: Any) -> DeviceRecord:
    """This host's record."""
    values: dict[str, Any] = {
        "kind": "host",
        "model": "a machine",
        "soc": "a processor",
        "os": "Linux",
        "arch": "x86_64",
        "cores": 2,
        "libc": "glibc 2.36",
    }
    return DeviceRecord(**{**values, **changes})


def run(*measurements: Measurement, **changes: Any) -> Run:
    """A record of a run."""
    values: dict[str, Any] = {
        "created": "2026-11-30T21:00:00+00:00",
        "mode": "quick",
        "mtu_export": "0.1.0",
        "commit": "abcdef0",
        "device": device(),
        "measurements": measurements,
    }
    return Run(**{**values, **changes})


def peak(rounds: Sequence[float], engine: str = "onnxruntime") -> Peak:
    """The large matrix product, by its rounds' medians."""
    seconds = float(np.median(rounds))
    gflops = 2 * 1024**3 / seconds / 1e9
    return Peak(engine=engine, size=1024, seconds=seconds, gflops=gflops, rounds=tuple(rounds))
