"""Statistics of samples in rounds: what a record says of times, and of two things that took turns.

A *round* is one process. Samples of a round share its process, its memory layout and the state of
the machine; so spread is told by rounds, not by samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtu_export.bench.record import Comparison, Measurement, Round, Summary
from mtu_export.spec import PlanError


def medians(rounds: Sequence[Round]) -> tuple[float, ...]:
    """The median of each round's samples; a round without samples has none."""
    return tuple(float(np.median(r.samples_s)) for r in rounds if r.samples_s)


def summarize(rounds: Sequence[Round]) -> Summary | None:
    """Statistics of all samples; None where there is no sample.

    ``p90`` interpolates between the samples beside it.
    """
    samples = np.array([second for r in rounds for second in r.samples_s])
    if not samples.size:
        return None
    return Summary(
        median=float(np.median(samples)),
        p90=float(np.quantile(samples, 0.9)),
        min=float(samples.min()),
        count=int(samples.size),
        rounds=medians(rounds),
    )


def ratios(subject: Sequence[Round], baseline: Sequence[Round]) -> tuple[float, ...]:
    """Ratio of medians of each pair of rounds, in the order in which they took turns.

    Rounds that either side has not finished are left out.
    """
    pairs = zip(subject, baseline, strict=False)
    both = [(medians([a]), medians([b])) for a, b in pairs if a.samples_s and b.samples_s]
    return tuple(a[0] / b[0] for a, b in both if a[0] > 0 and b[0] > 0)


def comparison(subject: Measurement, baseline: Measurement) -> Comparison | None:
    """How much longer the subject took than the baseline that it took turns with.

    None where no pair of rounds was measured. Raises ``PlanError`` where the two are not the same
    work: another task or part.
    """
    if (subject.task, subject.part) != (baseline.task, baseline.part):
        raise PlanError(
            f"{subject.task}/{subject.part} and {baseline.task}/{baseline.part} are not the same "
            "work; compare one task and part"
        )
    values = ratios(subject.rounds, baseline.rounds)
    if not values:
        return None
    return Comparison(
        subject=subject.kind,
        baseline=baseline.kind,
        bundle=subject.bundle.name,
        target=subject.bundle.target,
        scheme=subject.bundle.scheme,
        task=subject.task,
        part=subject.part,
        provider=subject.provider,
        ratio=float(np.median(values)),
        low=min(values),
        high=max(values),
        rounds=values,
    )
