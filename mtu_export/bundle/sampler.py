"""The denoising loop over a schedule's table, in numpy: the reference for an app's.

The state is float32, as it is on a phone. Guidance and the next x are formed in float64 and rounded
once, which keeps the loop about as close to diffusers as its float32 arithmetic allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtu_export.spec import HISTORY, Guidance, ParityError, Pass, PlanError, Schedule

Denoise = Callable[[np.ndarray, Pass], np.ndarray]
"""``(input_scale · x [1, C, h, w], pass) -> guided output [1, C, h, w]``, float32."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The inputs of one denoiser call in a guided step.

    Without ``text`` the prompt is empty; without ``image`` the image latent is zero.
    """

    text: bool
    image: bool


_NO_GUIDANCE = Guidance(kind="none")
_BRANCHES = {
    "none": (Branch(text=True, image=True),),
    "text": (Branch(text=False, image=True), Branch(text=True, image=True)),
    "text_image": (
        Branch(text=False, image=False),
        Branch(text=False, image=True),
        Branch(text=True, image=True),
    ),
}


def effective(guidance: Guidance) -> Guidance:
    """``guidance``, or none where its scales turn it off, as in diffusers.

    That is a text scale of at most 1, and with ``text_image`` an image scale below 1, too:
    ``do_classifier_free_guidance`` of diffusers' pipelines. Only the prompt's branch is left.
    """
    text, image = guidance.text, guidance.image
    is_off = (text is not None and text <= 1) or (image is not None and image < 1)
    return _NO_GUIDANCE if is_off else guidance


def branches(guidance: Guidance) -> tuple[Branch, ...]:
    """The denoiser calls of one step, in the order in which :func:`guide` takes their outputs."""
    return _BRANCHES[effective(guidance).kind]


def guide(guidance: Guidance, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The guided output, float32, of one output per branch (``runtime/README.md``, "Guidance").

    ``text``: ε_∅ + s_T(ε_T − ε_∅); ``text_image``: ε_∅∅ + s_I(ε_I∅ − ε_∅∅) + s_T(ε_IT − ε_I∅).
    Raises ``PlanError`` for another number of outputs or unequal shapes.
    """
    guidance = effective(guidance)
    shapes = {output.shape for output in outputs}
    if len(outputs) != guidance.passes or len(shapes) != 1:
        raise PlanError(
            f"guidance {guidance.kind!r} takes {guidance.passes} outputs of one shape, "
            f"got {[output.shape for output in outputs]}"
        )
    wide = [output.astype(np.float64) for output in outputs]
    scales = {
        "none": (),
        "text": (guidance.text,),
        "text_image": (guidance.image, guidance.text),
    }[guidance.kind]
    total = wide[0]
    for scale, before, after in zip(scales, wide[:-1], wide[1:], strict=True):
        total = total + scale * (after - before)
    return total.astype(np.float32)


State = tuple[np.ndarray, np.ndarray]
"""x before a pass and the guided m of that pass, float32 [1, C, h, w] each."""


def start(schedule: Schedule, noise: np.ndarray, picture: np.ndarray | None = None) -> np.ndarray:
    """x before the first pass, float32 [1, C, h, w].

    ``noise`` is standard normal, [1 + P, C, h, w] for P passes, or [1, C, h, w] where none draws;
    ``picture`` is the scaled latent [1, C, h, w] of a picture, where the schedule starts from one.
    Both coefficients are rounded to float32; the sum is formed in float64 and rounded once. Raises
    ``PlanError`` for other shapes, and for a picture that is missing or not taken.
    """
    _check_noise(schedule, noise)
    first = noise[:1].astype(np.float32).astype(np.float64)
    if schedule.strength is None:
        if picture is not None:
            raise PlanError("this schedule starts from noise alone and takes no picture")
        return (np.float64(np.float32(schedule.start_noise)) * first).astype(np.float32)
    if picture is None or picture.shape != first.shape:
        got = "none" if picture is None else str(list(picture.shape))
        raise PlanError(f"the start takes a picture's latent {list(first.shape)}, got {got}")
    total = np.float64(np.float32(schedule.start_noise)) * first
    total += np.float64(np.float32(schedule.start_picture)) * picture.astype(np.float64)
    return total.astype(np.float32)


def _check_noise(schedule: Schedule, noise: np.ndarray) -> None:
    """Refuse noise of another number of arrays than the passes take, and of another rank."""
    counts = {1 + len(schedule.passes), 1 + schedule.draws}
    if noise.ndim != 4 or len(noise) not in counts:
        legal = " or ".join(f"[{count}, C, h, w]" for count in sorted(counts))
        raise PlanError(f"the noise must be {legal}, got {list(noise.shape)}")


def fresh(schedule: Schedule, noise: np.ndarray, index: int) -> np.ndarray | None:
    """n_{index+1}, the noise [1, C, h, w] of a pass; None where no pass draws any."""
    return noise[index + 1 : index + 2] if schedule.draws else None


def ask(denoise: Denoise, x: np.ndarray, schedule: Schedule, index: int) -> np.ndarray:
    """The guided m of pass ``index`` at x.

    Raises ``ParityError`` for an output of another shape than x or one that is not finite.
    """
    step = schedule.passes[index]
    m = denoise(np.float32(step.input_scale) * x, step)
    if m.shape != x.shape or not np.isfinite(m).all():
        what = "NaN or Inf" if m.shape == x.shape else f"shape {list(m.shape)}"
        raise ParityError(
            f"pass {index} (timestep {step.timestep:g}): the denoiser gave {what}, "
            f"expected finite {list(x.shape)}"
        )
    return m.astype(np.float32)


def advance(step: Pass, history: Iterable[State], noise: np.ndarray | None = None) -> np.ndarray:
    """x after a pass, from the states up to and with this pass, newest first.

    ``noise`` [1, C, h, w] is the pass's own; raises ``PlanError`` where the pass draws and it is
    missing or has another shape.
    """
    terms = [
        a * x.astype(np.float64) + b * m.astype(np.float64)
        for a, b, (x, m) in zip(step.x, step.m, history, strict=False)
    ]
    total = np.zeros(terms[0].shape, np.float64)
    for term in terms:
        total += term
    if step.noise:
        if noise is None or noise.shape != total.shape:
            got = "none" if noise is None else str(list(noise.shape))
            raise PlanError(f"the pass takes noise {list(total.shape)}, got {got}")
        total += step.noise * noise.astype(np.float64)
    return total.astype(np.float32)


def trajectory(
    schedule: Schedule, noise: np.ndarray, denoise: Denoise, picture: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the guided m of each pass and x after it; see :func:`start`, :func:`ask` for errors."""
    x = start(schedule, noise, picture)
    history: deque[State] = deque(maxlen=HISTORY)
    for index, step in enumerate(schedule.passes):
        m = ask(denoise, x, schedule, index)
        history.appendleft((x, m))
        x = advance(step, history, fresh(schedule, noise, index))
        yield m, x


def latents(
    schedule: Schedule, noise: np.ndarray, denoise: Denoise, picture: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield x after each pass, float32 [1, C, h, w]; the last is the result."""
    return (x for _, x in trajectory(schedule, noise, denoise, picture))


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal float32 noise [1 + P, C, h, w] of a seed: numpy's PCG64, the same on every machine.

    One stream: that of the start first, then pass by pass.
    """
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
