"""A bundle's flow against the reference's: each pass on its own, and the loop running free.

A loop of few steps can be chaotic: rounding in one pass can grow into a different picture although
every part is correct. So each pass is proved from the reference's latent and solver history, which
the goldens store: an error of a table, text, conditioning, guidance or part shows in a single pass,
and rounding does not accumulate. The free-running loop is reported beside it, as a figure. A flow
without a loop is proved by its picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import PIPELINE, Bundle, TaskRecord, metrics, sampler
from mtu_export.bundle.evaluation import Request
from mtu_export.bundle.runner import Loop, decode, open_denoiser, open_loop, prepare, schedule_of
from mtu_export.spec import (
    Arrays,
    BundleError,
    ParityError,
    Pass,
    PlanError,
    Runtime,
    RuntimeUnavailable,
    Schedule,
    Session,
    Verdict,
)

PASSES, LOOP = "passes", "loop"
"""Stages: each pass from the reference's history and the decoder; the loop running free."""


@dataclass(frozen=True, kw_only=True)
class GoldenLoop:
    """The reference's results for one request: m of each pass, x after it, the picture.

    Without a loop there are no passes.
    """

    request: Request
    outputs: tuple[np.ndarray, ...]
    latents: tuple[np.ndarray, ...]
    picture: np.ndarray

    def states_before(self, index: int, start: np.ndarray) -> list[sampler.State]:
        """The reference's states before pass ``index``, newest first; ``start`` is the first x."""
        starts = [start, *self.latents]
        return list(zip(starts[:index], self.outputs[:index], strict=True))[::-1]


def prove_loop(
    source: Bundle, task: TaskRecord, floor_db: float, runtime: Runtime | None = None
) -> list[Verdict]:
    """The verdict of the passes and the figure of the loop; empty where there is no golden.

    ``floor_db`` applies to the worst of x after each pass and the picture of the reference's last
    latent.
    """
    tensors = bundle.Goldens(source).loop(task.name)
    if not tensors:
        return []
    runtime = runtime or targets.runtime(targets.load(source.manifest.target))
    labels = {"part": PIPELINE, "task": task.name, "stage": PASSES, "floor_db": floor_db}
    runner, reason = runtime.runner()
    if runner is None:
        return [metrics.not_run(**labels, reason=str(reason))]
    loop = open_loop(source, task.name, runtime)
    golden = golden_loop(loop, tensors)
    try:
        expected, actual, free = _results(loop, golden)
    except PlanError as error:
        raise BundleError(f"{bundle.GOLDENS}: loop/{task.name}: {error}") from None
    except RuntimeUnavailable as error:
        return [metrics.not_run(**labels, reason=str(error))]
    except ParityError as error:
        return [metrics.broken(**labels, runner=runner, reason=str(error))]
    passes = metrics.judge([expected], [actual], **labels, runner=runner)
    if free is None:
        return [passes]
    end = {"x": golden.latents[-1], "picture": golden.picture}
    labels = {**labels, "stage": LOOP, "floor_db": 0.0}
    return [passes, replace(metrics.judge([end], [free], **labels, runner=runner), passed=None)]


@np.errstate(all="ignore")  # what is not finite is refused
def _results(loop: Loop, golden: GoldenLoop) -> tuple[Arrays, Arrays, Arrays | None]:
    """What is compared: the reference's and ours of each pass and picture; ours, running free."""
    evaluation = prepare(loop, golden.request)
    if not loop.task.flow.has_loop:
        picture = decode(loop, evaluation, None)
        return {"picture": golden.picture}, {"picture": picture}, None
    schedule = schedule_of(loop, golden.request)
    denoise, noise = open_denoiser(loop, evaluation), golden.request.noise
    assert noise is not None
    start = sampler.start(schedule, noise, evaluation.start())
    after, first = _after_each_pass(denoise, golden, schedule, start)
    free = _free_latent(denoise, schedule, noise, evaluation.start(), first)
    del denoise
    decoder: dict[str, Session] = {}
    picture = decode(loop, evaluation, golden.latents[-1], decoder)
    names = [f"x after pass {i}" for i in range(len(after))]
    expected = {**dict(zip(names, golden.latents, strict=True)), "picture": golden.picture}
    actual = {**dict(zip(names, after, strict=True)), "picture": picture}
    return expected, actual, {"x": free, "picture": decode(loop, evaluation, free, decoder)}


def _after_each_pass(
    denoise: sampler.Denoise, golden: GoldenLoop, schedule: Schedule, start: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """x after each pass that starts from the reference's states, and the m of the first pass."""
    outputs, after, noise = [], [], golden.request.noise
    assert noise is not None
    for index, x in enumerate([start, *golden.latents[:-1]]):
        m = sampler.ask(denoise, x, schedule, index)
        states = [(x, m), *golden.states_before(index, start)]
        after.append(
            sampler.advance(schedule.passes[index], states, sampler.fresh(schedule, noise, index))
        )
        outputs.append(m)
    return after, outputs[0]


def _free_latent(
    denoise: sampler.Denoise,
    schedule: Schedule,
    noise: np.ndarray,
    start: np.ndarray | None,
    first: np.ndarray,
) -> np.ndarray:
    """The last latent of the free-running loop, whose first output is known."""
    outputs = [first]

    def resumed(x: np.ndarray, step: Pass) -> np.ndarray:
        return outputs.pop() if outputs else denoise(x, step)

    *_, (_, last) = sampler.trajectory(schedule, noise, resumed, start)
    return last


def golden_loop(loop: Loop, tensors: Mapping[str, np.ndarray]) -> GoldenLoop:
    """The golden of a bundle's task; raises ``BundleError``."""
    where, golden = f"{bundle.GOLDENS}: loop/{loop.task.name}", loop.bundle.manifest.golden
    has_loop = loop.task.flow.has_loop
    if golden is None or "picture" not in tensors or (has_loop and "noise" not in tensors):
        raise BundleError(f"{where}: golden, picture or noise is missing")
    inputs = loop.task.inputs
    request = Request(
        prompt=golden.prompt,
        negative_prompt=golden.negative_prompt if loop.task.takes_negative_prompt else None,
        noise=tensors["noise"] if has_loop else None,
        steps=golden.steps or 1,
        strength=None if loop.task.flow.start is None else golden.strength,
        pictures={name: tensors[f"request/{name}"] for name in inputs.pictures},
        tensors={name: tensors[f"request/{name}"] for name in inputs.tensors},
    )
    count = 0
    if has_loop:
        try:
            count = len(schedule_of(loop, request).passes)
        except PlanError as error:
            raise BundleError(f"{bundle.MANIFEST}: golden: {error}") from None
    return GoldenLoop(
        request=request,
        outputs=tuple(tensors[f"outputs/{i}"] for i in range(count)),
        latents=tuple(tensors[f"latents/{i}"] for i in range(count)),
        picture=tensors["picture"],
    )
