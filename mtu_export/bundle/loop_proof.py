"""A bundle's loop against the reference's: each pass on its own, and the loop running free.

A loop of few steps can be chaotic: rounding in one pass can grow into a different picture although
every part is correct. So each pass is proved from the reference's latent and solver history, which
the goldens store: an error of a table, text, conditioning, guidance or part shows in a single pass,
and rounding does not accumulate. The free-running loop is reported beside it, as a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, metrics, sampler
from mtu_export.bundle.denoising import Request
from mtu_export.bundle.runner import Loop, open_decoder, open_denoiser, open_loop
from mtu_export.spec import (
    BundleError,
    ParityError,
    PlanError,
    Runtime,
    RuntimeUnavailable,
    Schedule,
    Task,
    Verdict,
)

PIPELINE = "pipeline"
"""The component of a verdict on the loop."""
PASSES, LOOP = "passes", "loop"
"""Stages: each pass from the reference's history and the decoder; the loop running free."""


@dataclass(frozen=True, kw_only=True)
class GoldenLoop:
    """The reference's results for one request: m of each pass, x after it, the decoded image.

    ``outputs`` is empty in bundles before schema 1.3.
    """

    request: Request
    schedule: Schedule
    outputs: tuple[np.ndarray, ...]
    latents: tuple[np.ndarray, ...]
    image: np.ndarray

    @property
    def starts(self) -> list[np.ndarray]:
        """x before each pass."""
        return [sampler.start(self.schedule, self.request.noise), *self.latents[:-1]]

    def states_before(self, index: int) -> list[sampler.State]:
        """The reference's states before pass ``index``, newest first."""
        return list(zip(self.starts[:index], self.outputs[:index], strict=False))[::-1]


def prove_loop(
    source: Bundle, task: Task, floor_db: float, runtime: Runtime | None = None
) -> list[Verdict]:
    """The verdict of the passes and the figure of the loop; empty where there is no golden.

    ``floor_db`` applies to the worst of x after each pass and the picture that the decoder makes
    of the reference's last latent.
    """
    tensors = bundle.Goldens(source).loop(task.name)
    if not tensors:
        return []
    runtime = runtime or targets.runtime(targets.load(source.manifest.target))
    labels = {"component": PIPELINE, "task": task.name, "stage": PASSES, "floor_db": floor_db}
    runner, reason = runtime.runner()
    if runner is None:
        return [metrics.not_run(**labels, reason=str(reason))]
    loop = open_loop(source, task.name, runtime)
    golden = _golden_loop(loop, tensors)
    try:
        denoise = open_denoiser(loop, golden.request)
        after, first = _after_each_pass(denoise, golden)
        free = _free_latent(denoise, golden, first)
        del denoise
        decode = open_decoder(loop)
        image, free_image = decode(golden.latents[-1]), decode(free)
    except PlanError as error:
        raise BundleError(f"{bundle.GOLDENS}: loop/{task.name}: {error}") from None
    except RuntimeUnavailable as error:
        return [metrics.not_run(**labels, reason=str(error))]
    except ParityError as error:
        return [metrics.broken(**labels, runner=runner, reason=str(error))]
    if golden.outputs:
        expected = {f"x after pass {i}": x for i, x in enumerate(golden.latents)}
        actual = {f"x after pass {i}": x for i, x in enumerate(after)}
        decoded = ({**expected, "image": golden.image}, {**actual, "image": image})
        passes = metrics.judge([decoded[0]], [decoded[1]], **labels, runner=runner)
    else:
        reason = "its goldens are older than schema 1.3 and hold no output of the passes"
        passes = metrics.not_run(**labels, reason=reason)
    end = [{"x": golden.latents[-1], "image": golden.image}], [{"x": free, "image": free_image}]
    figure = metrics.judge(*end, **{**labels, "stage": LOOP, "floor_db": 0.0}, runner=runner)
    return [passes, replace(figure, passed=None)]


def _after_each_pass(
    denoise: sampler.Denoise, golden: GoldenLoop
) -> tuple[list[np.ndarray], np.ndarray]:
    """x after each pass that starts from the reference's states, and the m of the first pass."""
    schedule, outputs, after = golden.schedule, [], []
    for index, x in enumerate(golden.starts if golden.outputs else golden.starts[:1]):
        m = sampler.ask(denoise, x, schedule, index)
        states = [(x, m), *golden.states_before(index)]
        noise = sampler.fresh(schedule, golden.request.noise, index)
        after.append(sampler.advance(schedule.passes[index], states, noise))
        outputs.append(m)
    return after, outputs[0]


def _free_latent(denoise: sampler.Denoise, golden: GoldenLoop, first: np.ndarray) -> np.ndarray:
    """The last latent of the free-running loop, whose first output is known."""
    outputs = [first]

    def resumed(x: np.ndarray, timestep: float) -> np.ndarray:
        return outputs.pop() if outputs else denoise(x, timestep)

    *_, last = sampler.latents(golden.schedule, golden.request.noise, resumed)
    return last


def _golden_loop(loop: Loop, tensors: Mapping[str, np.ndarray]) -> GoldenLoop:
    """The golden loop of a bundle's goldens and manifest; raises ``BundleError``."""
    where, manifest = f"{bundle.GOLDENS}: loop/{loop.task.name}", loop.bundle.manifest
    golden = None if manifest.loop is None else manifest.loop.golden
    if golden is None or "noise" not in tensors or "image" not in tensors:
        raise BundleError(f"{where}: loop.golden or noise is missing")
    request = Request(
        prompt=golden.prompt,
        noise=tensors["noise"],
        steps=golden.steps,
        image=tensors.get("input"),
        mask=tensors.get("mask"),
    )
    if request.steps not in loop.schedules:
        raise BundleError(f"{bundle.MANIFEST}: loop.golden: no table for {request.steps} steps")
    schedule = loop.schedules[request.steps]
    version = tuple(map(int, manifest.schema_version.split(".")))
    has_outputs = version >= (1, 3) or "outputs/0" in tensors
    passes = range(len(schedule.passes))
    return GoldenLoop(
        request=request,
        schedule=schedule,
        outputs=tuple(tensors[f"outputs/{i}"] for i in passes if has_outputs),
        latents=tuple(tensors[f"latents/{i}"] for i in passes),
        image=tensors["image"],
    )
