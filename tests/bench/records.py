"""Records of runs that never were, for tests of statistics, comparison and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtu_export.bench.record import (
    BundleRecord,
    Check,
    DeviceRecord,
    DeviceState,
    Fleet,
    Measurement,
    Memory,
    MemoryRecord,
    Peak,
    Program,
    Round,
    Run,
    Work,
)
from mtu_export.bench.statistics import comparison, summarize

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


# ------------------------------------------------------------------------- a whole set of records

SECONDS = {("onnx", "fp32"): 0.031, ("onnx", "int8"): 0.027, ("executorch", "fp32"): 0.038,
           ("executorch", "int8"): 0.021}  # fmt: skip
COST = {"bundle": 1.0, "dense": 0.998, "unfolded": 1.13, "plain": 1.34}


def host_run(seed: int = 0, side: int = 32, times: float = 1.0) -> Run:
    """Two engines, two schemes, every baseline; int8 of the plain export failed on ExecuTorch."""
    generator = np.random.default_rng(seed)
    drift = host_drift(generator, 5)
    measurements, comparisons = [], []
    for (target, scheme), seconds in SECONDS.items():
        by_kind = {}
        for kind, cost in COST.items():
            own = {"name": f"t2i-{target}-{scheme}", "target": target, "scheme": scheme,
                   "height": side, "width": side}  # fmt: skip
            if (kind, target, scheme) == ("plain", "executorch", "int8"):
                reason = "the toolchain's int8 fails: Could not find an op for aten::silu_"
                measurements.append(unmeasured("failed", reason, kind=kind, bundle=own))
                continue
            size = int({"fp32": 17_200_000, "int8": 4_400_000}[scheme] * times * times)
            small = scheme == "int8"
            parameters = 4_283_012 + (30_940 if kind == "unfolded" else 0)
            memory = MemoryRecord(anonymous=int(4 * size + 3e7), file=size, peak=6 * size)
            start = MemoryRecord(anonymous=12_000_000, file=9_000_000, peak=None)
            flops = int(231_456_768 * times * times)
            rounds = noisy(generator, seconds * cost * times * times, drift=drift)
            by_kind[kind] = measured(
                rounds,
                kind=kind,
                bundle=own,
                engine=Program(name=target.replace("onnx", "onnxruntime"), version="1.28.0"),
                work=Work(bytes=size, parameters=parameters, flops_conv_linear=int(0.957 * flops),
                          flops_total=flops),
                gflops=flops / float(np.median(rounds[0].samples_s)) / 1e9,
                memory=Memory(start=start, loaded=memory, run=memory),
                checks=(Check(name="out", psnr_db=55.4 if small else 128.3, floor_db=35.0,
                              passed=True),),
            )  # fmt: skip
        measurements += by_kind.values()
        for kind in ("dense", "unfolded", "plain"):
            if kind in by_kind:
                comparisons.append(comparison(by_kind["bundle"], by_kind[kind]))
    measurements.append(
        unmeasured("not run", "Core ML needs macOS 15", bundle={"target": "coreml"})
    )
    fleet = Fleet(target="onnx", scheme="int8", tasks=("t2i", "edit", "sr", "inpaint"),
                  one_bytes=6_300_000, fleet_bytes=22_900_000, one_memory=101_000_000,
                  fleet_memory=352_000_000, one_switch_s=0.004, fleet_switch_s=0.181)  # fmt: skip
    control = (0.1 * np.exp(drift + generator.normal(0, 0.005, 5))).tolist()
    return run(*measurements, comparisons=tuple(filter(None, comparisons)), fleets=(fleet,),
               peaks=(peak(control), peak(control, "executorch")))  # fmt: skip


def phone_run(seed: int = 1) -> Run:
    """An emulated phone."""
    generator = np.random.default_rng(seed)
    phone = device(kind="adb", model="a loopback device", os="Android 14 (SDK 34)", arch="aarch64",
                   emulated=True, page_size=4096)  # fmt: skip
    state = DeviceState(thermal_status=0, temperature=31.0, battery=0.83, charging=True,
                        clocks=(1_800_000, 2_400_000))  # fmt: skip
    one = measured(noisy(generator, 2.4, 2, 3), emulated=True, before=state, after=state)
    other = unmeasured("failed", "killed, most likely out of memory (312 MB were free before)",
                       bundle={"scheme": "fp32"}, emulated=True)  # fmt: skip
    return run(one, other, device=phone)


def web_run(seed: int = 2) -> Run:
    """A browser with two providers, of which one is emulated."""
    generator = np.random.default_rng(seed)
    browser = device(kind="web", model="a browser", browser="Chromium 140", secure_context=True)
    engine = Program(name="onnxruntime-web", version="1.27.0")
    wasm = measured(noisy(generator, 0.065, 2, 5), provider="wasm", engine=engine)
    gpu = measured(noisy(generator, 0.9, 2, 5), provider="webgpu", engine=engine, emulated=True)
    return run(wasm, gpu, device=browser)


def hostile(text: str) -> Run:
    """A record whose every free text is ``text``."""
    program = Program(name=text, version=text, detail=text)
    own = {"name": text, "source": text, "target": text, "scheme": text}
    words = {"task": text, "part": text, "provider": text, "mask": text}
    one = measured(
        rounds_of([1.0, 2.0], [1.0, 3.0]), bundle=own, engine=program, runner=program,
        checks=(Check(name=text, psnr_db=1, floor_db=2, passed=False),), **words,
    )  # fmt: skip
    two = unmeasured("failed", text, bundle=own, **words)
    compared = comparison(one, one.model_copy(update={"kind": "dense"}))
    assert compared is not None
    fleet = Fleet(target=text, scheme=text, tasks=(text,), one_bytes=1, fleet_bytes=2, reason=text)
    return run(
        one, two, created=text, mtu_export=text, commit=text, notes=(text,), fleets=(fleet,),
        comparisons=(compared,), peaks=(peak([1.0], text),),
        device=device(model=text, soc=text, os=text, arch=text, governor=text, libc=text,
                      browser=text, instructions=(text,)),
    )  # fmt: skip
