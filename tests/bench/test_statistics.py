"""Statistics of rounds: what does not depend on order or unit, and what equal inputs give."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bench import statistics
from mtu_export.spec import PlanError
from tests.bench.records import measured, rounds_of

SECONDS = st.floats(1e-6, 1e3)
SAMPLES = st.lists(st.lists(SECONDS, min_size=1, max_size=12), min_size=1, max_size=6)


@settings(deadline=None)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(samples: list, order: random.Random) -> None:
    shuffled = [order.sample(part, len(part)) for part in samples]
    before, after = (statistics.summarize(rounds_of(*s)) for s in (samples, shuffled))
    assert before == after


@settings(deadline=None)
@given(SAMPLES, st.floats(0.01, 100))
def test_a_summary_has_the_unit_of_its_samples(samples: list, factor: float) -> None:
    scaled = [[factor * second for second in part] for part in samples]
    one, other = (statistics.summarize(rounds_of(*s)) for s in (samples, scaled))
    assert one is not None
    assert other is not None
    for name in ("median", "p90", "min", "rounds"):
        assert getattr(other, name) == pytest.approx(np.multiply(getattr(one, name), factor))


@settings(deadline=None)
@given(SAMPLES)
def test_the_summary_is_within_its_samples(samples: list) -> None:
    summary = statistics.summarize(rounds_of(*samples))
    assert summary is not None
    everything = sorted(second for part in samples for second in part)
    assert summary.min == everything[0]
    assert everything[0] <= summary.median <= summary.p90 * (1 + 1e-12)
    assert summary.p90 <= everything[-1] * (1 + 1e-12)
    assert summary.count == len(everything)
    assert len(summary.rounds) == len(samples)


@settings(deadline=None)
@given(SAMPLES)
def test_equal_inputs_have_the_ratio_one(samples: list) -> None:
    one = measured(rounds_of(*samples))
    result = statistics.comparison(one, one.model_copy(update={"kind": "dense"}))
    assert result is not None
    assert (result.subject, result.baseline) == ("bundle", "dense")
    assert (result.ratio, result.low, result.high) == (1, 1, 1)
    assert result.rounds == (1,) * len(samples)


@settings(deadline=None)
@given(SAMPLES, SAMPLES, st.floats(0.01, 100))
def test_a_ratio_has_no_unit_and_turns_over(one: list, other: list, factor: float) -> None:
    a, b = rounds_of(*one), rounds_of(*other)
    ratios = statistics.ratios(a, b)
    scaled = [rounds_of(*([factor * s for s in part] for part in side)) for side in (one, other)]
    assert statistics.ratios(*scaled) == pytest.approx(ratios)
    assert statistics.ratios(b, a) == pytest.approx([1 / ratio for ratio in ratios])
    assert len(ratios) == min(len(one), len(other))


def test_numbers() -> None:
    summary = statistics.summarize(rounds_of([3, 1, 2], [4, 10]))
    assert summary is not None
    assert (summary.median, summary.min, summary.count) == (3, 1, 5)
    assert summary.p90 == pytest.approx(7.6)
    assert summary.rounds == (2, 7)


def test_a_ratio_is_that_of_the_rounds_that_took_turns() -> None:
    """The machine became twice as slow: each round has its own baseline."""
    subject = measured(rounds_of([1.0], [2.2], [2.0]))
    baseline = measured(rounds_of([1.0], [2.0], [2.0], [9.0]), kind="dense")
    result = statistics.comparison(subject, baseline)
    assert result is not None
    assert (result.ratio, result.low, result.high) == (1.0, 1.0, pytest.approx(1.1))


def test_an_unfinished_round_is_left_out() -> None:
    empty = rounds_of([1.0])[0].model_copy(update={"samples_s": ()})
    (full,) = rounds_of([3.0])
    assert statistics.medians([empty, full]) == (3.0,)
    assert statistics.ratios([full, empty], [full, full]) == (1.0,)
    assert statistics.summarize([empty]) is None
    assert statistics.comparison(measured((empty,)), measured((full,))) is None


def test_other_work_is_refused() -> None:
    rounds = rounds_of([1.0])
    with pytest.raises(PlanError, match="t2i/denoiser and edit/denoiser are not the same work"):
        statistics.comparison(measured(rounds), measured(rounds, task="edit"))
