"""When Python looks for cyclic garbage during an export."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (10_000, 10, 10)
"""Python's own are 700, 10 and 10: a captured graph has a million objects."""


class _Exports:
    """The exports of this process that run now, and what was set before the first of them."""

    lock = threading.Lock()
    running = 0
    thresholds: tuple[int, int, int] = (0, 0, 0)
    had_frozen = False


@contextmanager
def rare_collection() -> Iterator[None]:
    """Look for cyclic garbage less often, and leave out what :func:`set_aside` was told to.

    By default a quarter of an export's time goes into walking over modules and live graphs. At the
    end of the last export of any thread, what was set before holds again.
    """
    with _Exports.lock:
        if not _Exports.running:
            _Exports.thresholds, _Exports.had_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
            gc.set_threshold(*_THRESHOLDS)
        _Exports.running += 1
    try:
        yield
    finally:
        with _Exports.lock:
            _Exports.running -= 1
            if not _Exports.running:
                gc.set_threshold(*_Exports.thresholds)
                if not _Exports.had_frozen:
                    gc.unfreeze()


def set_aside() -> None:
    """Collect now; what is alive then, imported modules above all, is not looked at again.

    To be called where no graph and no weights are alive: their cycles would never be freed. Only
    collects where the caller had frozen objects of its own, or several exports run: what one sets
    aside may be another's graph.
    """
    gc.collect()
    with _Exports.lock:
        if _Exports.running == 1 and not _Exports.had_frozen:
            gc.freeze()
