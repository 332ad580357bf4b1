"""Python's garbage collector during an export."""

from __future__ import annotations

import gc
import weakref

from mtu_export.exporter.collection import rare_collection, set_aside


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_was_set_before_holds_again() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with rare_collection():
        assert gc.get_threshold()[0] > before[0]
        set_aside()
        assert gc.get_freeze_count() > frozen
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


def test_objects_that_the_caller_froze_stay_frozen() -> None:
    gc.freeze()
    try:
        with rare_collection():
            set_aside()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_cycles_made_later_are_freed_inside_and_those_set_aside_afterwards() -> None:
    with rare_collection():
        early = _Cycle()
        before = weakref.ref(early)
        set_aside()
        late = _Cycle()
        after = weakref.ref(late)
        del early, late
        gc.collect()
        assert after() is None
        assert before() is not None
    gc.collect()
    assert before() is None
