"""When Python looks for cyclic garbage during an export."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (10_000, 10, 10)
"""Python's own are 700, 10 and 10: a captured graph has a million objects."""


@contextmanager
def rare_collection() -> Iterator[None]:
    """Look for cyclic garbage less often, and leave out what :func:`set_aside` was told to.

    By default a quarter of an export's time goes into walking over modules and live graphs. What
    was set before holds again at the end, also for objects that were frozen before.
    """
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not frozen:
            gc.unfreeze()


def set_aside() -> None:
    """Collect now; what is alive then, imported modules above all, is not looked at again.

    To be called where no graph and no weights are alive: their cycles would never be freed.
    """
    gc.collect()
    gc.freeze()
