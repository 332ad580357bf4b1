"""What is replaced is put back, whichever thread ends first."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mtu_export.exporter.collection import rare_collection, set_aside
from mtu_export.spec.replacing import replaced


class Library:
    value = "theirs"


def interleaved(enter: Callable[[], AbstractContextManager[None]]) -> None:
    """Enter in one thread, then in another; leave the first before the second."""
    first_in, second_tries = threading.Event(), threading.Event()

    def first() -> None:
        with enter():
            first_in.set()
            second_tries.wait(10)

    def second() -> None:
        first_in.wait(10)
        second_tries.set()
        with enter():
            pass

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_two_threads_leave_the_library_as_it_was() -> None:
    interleaved(lambda: replaced(Library, "value", lambda before: f"ours over {before}"))
    assert Library.value == "theirs"


def test_two_exports_leave_the_collector_as_it_was() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()

    @contextmanager
    def export() -> Iterator[None]:
        with rare_collection():
            set_aside()
            yield

    interleaved(export)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_objects_that_the_caller_froze_stay_and_no_others_join_them() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        for _ in range(2):
            with rare_collection():
                set_aside()
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()
