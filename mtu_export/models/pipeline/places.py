"""Where the tensors come from that a family adds to a stock UNet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which tensors of a family's UNet come from which tensor of a stock UNet.

    - ``pattern``: regular expression for the whole name of the family's tensors; ``kind``: what
      ``inspect`` counts them as.
    - ``stock``: template of the stock tensor's name; None where the tensors are new.
    - ``axis``: the tensors of one stock name are its slices along this axis, in the order of their
      numbers, in each of ``halves`` equal parts; None: each is as large as the stock tensor.
    - ``rescaled``: the first half is the stock one times the checkpoint's factor of value rows.
    - ``by_task``: the first axis is that of the tasks.
    """

    pattern: str
    kind: str
    stock: str | None = None
    axis: int | None = None
    halves: int = 1
    rescaled: bool = False
    by_task: bool = False
