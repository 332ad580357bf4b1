"""The denoising loop over a schedule's table, in numpy alone: the reference for an app's own.

The state is float32, as it is on a phone. A product is float32's; a sum is formed in float64 and
rounded once. That keeps the loop about as near to diffusers as diffusers' own float32 allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtu_export.spec import HISTORY, Guidance, ParityError, PlanError, Schedule

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""``(input_scale · x [1, C, h, w], timestep) -> guided output [1, C, h, w]``, all float32."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One pass of the denoiser in a guided step: what it is told.

    Without ``text`` the prompt is empty; without ``image`` the image latent is zero.
    """

    text: bool
    image: bool


_BRANCHES = {
    "none": (Branch(text=True, image=True),),
    "text": (Branch(text=False, image=True), Branch(text=True, image=True)),
    "text_image": (
        Branch(text=False, image=False),
        Branch(text=False, image=True),
        Branch(text=True, image=True),
    ),
}


def branches(guidance: Guidance) -> tuple[Branch, ...]:
    """The passes of one step, in the order in which :func:`guide` takes their outputs."""
    return _BRANCHES[guidance.kind]


def guide(guidance: Guidance, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The guided output, float32, of one output a branch (checkpoint.md, ``guidance.kind``).

    ``text``: ε_∅ + s_T(ε_T − ε_∅); ``text_image``: ε_∅∅ + s_I(ε_I∅ − ε_∅∅) + s_T(ε_IT − ε_I∅).
    Raises ``PlanError`` for another number of outputs or unequal shapes.
    """
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


def latents(schedule: Schedule, noise: np.ndarray, denoise: Denoise) -> Iterator[np.ndarray]:
    """Yield x after each pass, float32 [1, C, h, w]; the last is the result.

    ``noise`` is standard normal. Raises ``ParityError`` for an output of another shape than
    ``noise`` or one that is not finite, with the pass.
    """
    x = np.float32(schedule.init_noise_sigma) * noise.astype(np.float32)
    past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=HISTORY)
    for index, row in enumerate(schedule.passes):
        m = denoise(np.float32(row.input_scale) * x, row.timestep)
        if m.shape != x.shape or not np.isfinite(m).all():
            what = "NaN or Inf" if m.shape == x.shape else f"shape {list(m.shape)}"
            raise ParityError(
                f"pass {index} (timestep {row.timestep:g}): the denoiser gave {what}, "
                f"expected finite {list(x.shape)}"
            )
        past.appendleft((x, m.astype(np.float32)))
        total = np.zeros(x.shape, np.float64)
        for a, b, (x_k, m_k) in zip(row.x, row.m, past, strict=False):
            total += a * x_k.astype(np.float64) + b * m_k.astype(np.float64)
        x = total.astype(np.float32)
        yield x
