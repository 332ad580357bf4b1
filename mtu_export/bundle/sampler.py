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

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""``(input_scale · x [1, C, h, w], timestep) -> guided output [1, C, h, w]``, all float32."""


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


def start(schedule: Schedule, noise: np.ndarray) -> np.ndarray:
    """x before the first pass; ``noise`` is standard normal."""
    return np.float32(schedule.init_noise_sigma) * noise.astype(np.float32)


def ask(denoise: Denoise, x: np.ndarray, schedule: Schedule, index: int) -> np.ndarray:
    """The guided m of pass ``index`` at x.

    Raises ``ParityError`` for an output of another shape than x or one that is not finite.
    """
    step = schedule.passes[index]
    m = denoise(np.float32(step.input_scale) * x, step.timestep)
    if m.shape != x.shape or not np.isfinite(m).all():
        what = "NaN or Inf" if m.shape == x.shape else f"shape {list(m.shape)}"
        raise ParityError(
            f"pass {index} (timestep {step.timestep:g}): the denoiser gave {what}, "
            f"expected finite {list(x.shape)}"
        )
    return m.astype(np.float32)


def advance(step: Pass, history: Iterable[State]) -> np.ndarray:
    """x after a pass, from the states up to and with this pass, newest first."""
    terms = [
        a * x.astype(np.float64) + b * m.astype(np.float64)
        for a, b, (x, m) in zip(step.x, step.m, history, strict=False)
    ]
    total = np.zeros(terms[0].shape, np.float64)
    for term in terms:
        total += term
    return total.astype(np.float32)


def trajectory(
    schedule: Schedule, noise: np.ndarray, denoise: Denoise
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the guided m of each pass and x after it; see :func:`ask` for errors."""
    x = start(schedule, noise)
    history: deque[State] = deque(maxlen=HISTORY)
    for index, step in enumerate(schedule.passes):
        m = ask(denoise, x, schedule, index)
        history.appendleft((x, m))
        x = advance(step, history)
        yield m, x


def latents(schedule: Schedule, noise: np.ndarray, denoise: Denoise) -> Iterator[np.ndarray]:
    """Yield x after each pass, float32 [1, C, h, w]; the last is the result."""
    return (x for _, x in trajectory(schedule, noise, denoise))
