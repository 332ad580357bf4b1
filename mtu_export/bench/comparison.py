"""A verdict between two records of one device: is B slower than A, beyond noise?

The unit of replication is the round (one process), as the highest level that a record repeats
determines what it can tell (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM
2013). The logarithms of the rounds' medians are compared by Welch's t interval:

- A round counts by its median, so that outliers of samples do not move it.
- The variance of a round is at least that of a median of its samples (within-run noise). A few
  rounds tell little of their own variance, so it is averaged with that of everything else of the
  record, the large matrix products (``peaks``) included, which the same drift has met; each half
  counts its degrees of freedom (moderated t: Smyth, "Linear models and empirical Bayes methods",
  2004, with the prior's weight fixed at that of the data).
- Two runs differ by more than their rounds show (order of linking, environment, memory layout:
  Mytkowicz et al., "Producing wrong data without doing anything obviously wrong", ASPLOS 2009):
  ``RUN_DRIFT`` is added for each run.
- B is slower where the interval of ``LEVEL`` lies above 1 *and* the ratio is at least
  ``SMALLEST_EFFECT`` above it; faster likewise.
- An interval that reaches further than ``COARSEST`` from its ratio could hide a regression: where
  it shows no difference, the pair is "unclear" (too noisy) instead.
- The matrix products are the control: where they moved by the same rule, the machine, or the
  runner as a whole, was not the same. Then a verdict must also hold relative to the control; one
  that does not is "unclear", and the answer is to measure again, both in one sitting.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mtu_export.bench.record import Measurement, Run
from mtu_export.bench.statistics import medians
from mtu_export.spec import PlanError

LEVEL = 0.98
SMALLEST_EFFECT = 0.05
RUN_DRIFT = 0.01
COARSEST = 1.25
FEWEST_ROUNDS = 2
SHOWN_DB, DECIBELS, EXACT_DB = 0.05, 1.0, 80.0
"""A loss of more dB is worse, where it ends below EXACT_DB: above, the order of roundings shows."""
BYTES = 0.01
"""A bundle that is larger by more than this share."""
MEMORY, LEAST_MEMORY = 0.10, 4_000_000
"""Anonymous memory that grew by more than this share and more than so many bytes."""

Verdict = Literal[
    "slower", "faster", "no difference", "unclear", "fails now", "runs now",
    "not comparable", "not measured", "only in A", "only in B",
]  # fmt: skip
Key = tuple[str, ...]
KEY = ("kind", "target", "scheme", "size", "task", "part", "provider", "engine")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A ratio of times, B over A, and where it lies with the confidence of ``LEVEL``."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["slower", "faster", "no difference"]:
        """By interval and smallest effect."""
        if self.low > 1 and self.ratio >= 1 + SMALLEST_EFFECT:
            return "slower"
        if self.high < 1 and self.ratio <= 1 / (1 + SMALLEST_EFFECT):
            return "faster"
        return "no difference"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A quantity that a record has without noise, or nearly so."""

    what: str
    before: float
    after: float
    worse: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One measurement of both records."""

    key: Key
    bundle: str
    verdict: Verdict
    reason: str | None = None
    latency: Interval | None = None
    control: Interval | None = None
    changes: tuple[Change, ...] = ()

    @property
    def regression(self) -> bool:
        """Slower, failing, or worse in dB, bytes or memory."""
        return self.verdict in ("slower", "fails now") or any(c.worse for c in self.changes)

    @property
    def doubtful(self) -> bool:
        """Measured twice, and no verdict."""
        return self.verdict in ("unclear", "not comparable")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All pairs, and what a shell is told."""

    pairs: tuple[Pair, ...]

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 a regression, 2 something that both measured has no verdict."""
        if any(pair.regression for pair in self.pairs):
            return 1
        compared = any(pair.latency is not None for pair in self.pairs)
        return 2 if not compared or any(pair.doubtful for pair in self.pairs) else 0

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        pairs = [{**asdict(p), "key": dict(zip(KEY, p.key, strict=True))} for p in self.pairs]
        settings = {"level": LEVEL, "smallest_effect": SMALLEST_EFFECT, "run_drift": RUN_DRIFT}
        return {"exit": self.exit_code, **settings, "pairs": pairs}


def compare(before: Run, after: Run) -> Outcome:
    """Pair the measurements of two records and judge each.

    Raises ``PlanError`` where the records are not of the same device.
    """
    reason = _other_device(before, after)
    if reason:
        raise PlanError(f"the records cannot be compared: {reason}")
    variances = _pooled_variance(before), _pooled_variance(after)
    pairs = [_judge(key, a, b, (before, after), variances) for key, a, b in _paired(before, after)]
    return Outcome(pairs=tuple(pairs))


# --------------------------------------------------------------------------- what is comparable


def _other_device(before: Run, after: Run) -> str | None:
    a, b = before.device, after.device
    if a.emulated != b.emulated:
        return f"{'A' if a.emulated else 'B'} ran in an emulator, the other did not"
    libc = [(device.libc or "").partition(" ")[0] or None for device in (a, b)]
    attributes: list[tuple[str, Any, Any]] = [
        (name, getattr(a, name), getattr(b, name))
        for name in ("kind", "model", "soc", "arch", "cores", "governor")
    ]
    for name, one, two in [*attributes, ("libc", *libc)]:
        if one is not None and two is not None and one != two:
            return f"{name} is {one} in A and {two} in B"
    return None


def _other_conditions(a: Measurement, b: Measurement) -> str | None:
    if a.emulated or b.emulated:
        return "emulated: its times are no speeds"
    if a.threads != b.threads:
        return f"threads: {a.threads} in A, {b.threads} in B"
    if a.mask != b.mask and a.mask and b.mask:
        return f"mask of cores: {a.mask} in A, {b.mask} in B"
    fewest = min(len(medians(a.rounds)), len(medians(b.rounds)))
    if fewest < FEWEST_ROUNDS:
        return f"{fewest} round shows no drift; at least {FEWEST_ROUNDS} are needed"
    return None


def _key(m: Measurement) -> Key:
    size = f"{m.bundle.width}x{m.bundle.height}"
    engine = m.engine.name if m.engine else ""
    words = (m.kind, m.bundle.target, m.bundle.scheme, size, m.task, m.part, m.provider, engine)
    return tuple(map(str, words))


def _paired(
    before: Run, after: Run
) -> Iterable[tuple[Key, Measurement | None, Measurement | None]]:
    """Measurements by key; several of one key are told apart by their bundle's name."""
    sides: list[dict[Key, dict[str, Measurement]]] = [defaultdict(dict), defaultdict(dict)]
    for side, run in zip(sides, (before, after), strict=True):
        for m in run.measurements:
            side[_key(m)].setdefault(m.bundle.name, m)
    # one that never ran has no engine: it stands for whatever the other side ran
    for side, other in (sides, sides[::-1]):
        for key in [k for k in side if not k[-1]]:
            full = [k for k in other if k[:-1] == key[:-1] and k[-1]]
            if len(full) == 1 and full[0] not in side:
                side[full[0]] = side.pop(key)
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = dict(sides[0].get(key, {})), dict(sides[1].get(key, {}))
        if len(a) == len(b) == 1:
            yield key, next(iter(a.values())), next(iter(b.values()))
            continue
        for name in dict.fromkeys([*a, *b]):
            yield key, a.get(name), b.get(name)


# ------------------------------------------------------------------------------------- judging


def _judge(
    key: Key,
    a: Measurement | None,
    b: Measurement | None,
    runs: tuple[Run, Run],
    variances: tuple[float, float],
) -> Pair:
    shown = a or b
    bundle = shown.bundle.name if shown else ""
    if a is None or b is None:
        return Pair(key=key, bundle=bundle, verdict="only in B" if a is None else "only in A")
    if a.status != "measured" or b.status != "measured":
        verdict: Verdict = "not measured"
        if a.status == "measured" and b.status == "failed":
            verdict = "fails now"
        elif a.status == "failed" and b.status == "measured":
            verdict = "runs now"
        return Pair(key=key, bundle=bundle, verdict=verdict, reason=b.reason or a.reason)
    changes = tuple(_changes(a, b))
    if not a.rounds and not b.rounds:
        reason = "no rounds of its own"
        return Pair(key=key, bundle=bundle, verdict="not measured", reason=reason, changes=changes)
    reason = _other_conditions(a, b)
    if reason:
        verdict = "not comparable"
        return Pair(key=key, bundle=bundle, verdict=verdict, reason=reason, changes=changes)
    raw = interval(_series(a), _series(b), variances)
    control = _control({key[1], key[-1]}, runs, variances)
    verdict, reason = raw.verdict, None
    if control is not None and control.verdict != "no difference":
        both = _relative(raw, control)
        if both.verdict != verdict:
            verdict = "unclear"
            reason = f"the large matrix product took {control.ratio:.2f} times A's time too"
            if raw.verdict == "no difference":
                reason = f"the large matrix product took {control.ratio:.2f} times A's time"
    if verdict == "no difference" and raw.high > COARSEST * raw.ratio:
        verdict, reason = "unclear", "too noisy: more rounds, or a quieter machine"
    return Pair(
        key=key, bundle=bundle, verdict=verdict, reason=reason, latency=raw, control=control,
        changes=changes,
    )  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Logarithms of the rounds' medians, and the variance of such a median within a round."""

    logs: np.ndarray
    within: float

    @property
    def variance(self) -> float:
        """Of one round."""
        between = float(np.var(self.logs, ddof=1)) if self.logs.size > 1 else 0.0
        return max(between, self.within)


def _series(m: Measurement) -> Series:
    within = []
    for samples in (np.log(np.maximum(r.samples_s, 1e-12)) for r in m.rounds if r.samples_s):
        # 1.4826 MAD: the standard deviation without outliers; pi/2: of a median over of a mean
        spread = 1.4826 * float(np.median(np.abs(samples - np.median(samples))))
        within.append(math.pi / 2 * spread**2 / len(samples))
    return Series(_logs(medians(m.rounds)), float(np.mean(within)))


def _logs(seconds: Sequence[float]) -> np.ndarray:
    return np.log(np.maximum(seconds, 1e-12))


def _pooled_variance(run: Run) -> float:
    """Mean variance of a round over everything that the run has repeated."""
    series = [_series(m) for m in run.measurements if len(medians(m.rounds)) > 1]
    series += [Series(_logs(peak.rounds), 0.0) for peak in run.peaks if len(peak.rounds) > 1]
    return float(np.mean([s.variance for s in series])) if series else 0.0


def interval(a: Series, b: Series, pooled: tuple[float, float]) -> Interval:
    """Welch's interval of the ratio b / a, with moderated variances."""
    parts = []
    for series, prior in zip((a, b), pooled, strict=True):
        variance = (series.variance + prior) / 2
        parts.append((variance / series.logs.size, 2 * (series.logs.size - 1)))
    error = sum(part for part, _ in parts) + 2 * RUN_DRIFT**2
    freedom = error**2 / sum(max(part, 1e-18) ** 2 / df for part, df in parts)
    half = quantile_of_t((1 + LEVEL) / 2, freedom) * math.sqrt(error)
    return _interval(float(b.logs.mean() - a.logs.mean()), half)


def _interval(centre: float, half: float) -> Interval:
    return Interval(
        ratio=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half)
    )


def _relative(raw: Interval, control: Interval) -> Interval:
    """The interval of the ratio over the control's; errors add as squares."""
    halves = [math.log(i.high / i.low) / 2 for i in (raw, control)]
    return _interval(math.log(raw.ratio / control.ratio), math.hypot(*halves))


def _control(
    names: set[str], runs: tuple[Run, Run], variances: tuple[float, float]
) -> Interval | None:
    """Of the large matrix product in the engine (or target) of these names, if both have one."""
    peaks = [{peak.size: peak for peak in r.peaks if peak.engine in names} for r in runs]
    for size in peaks[0]:
        if size in peaks[1]:
            rounds = [side[size].rounds for side in peaks]
            if min(map(len, rounds)) >= FEWEST_ROUNDS:
                before, after = (Series(_logs(r), 0.0) for r in rounds)
                return interval(before, after, variances)
    return None


def quantile_of_t(share: float, freedom: float) -> float:
    """Quantile above the median of Student's t, for any degrees of freedom from 1 on.

    With t = sqrt(freedom) * tan(a) the density of a is proportional to cos(a)^(freedom - 1).
    """
    freedom = min(freedom, 1e4)
    angles = np.linspace(0, math.pi / 2, 4_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp((2 * share - 1) * mass[-1], mass, angles))
    return math.sqrt(freedom) * math.tan(angle)


def _changes(a: Measurement, b: Measurement) -> Iterable[Change]:
    """dB, bytes and anonymous memory that differ, and whether that is worse."""
    after = {check.name: check for check in b.checks}
    for check in a.checks:
        other = after.get(check.name)
        if other is None:
            continue
        if abs(other.psnr_db - check.psnr_db) > SHOWN_DB or other.passed != check.passed:
            lost = check.psnr_db - other.psnr_db > DECIBELS and other.psnr_db < EXACT_DB
            worse = lost or (check.passed and not other.passed)
            yield Change(
                what=f"dB of {check.name}",
                before=check.psnr_db,
                after=other.psnr_db,
                worse=worse,
            )
    sizes = [m.work.bytes if m.work else None for m in (a, b)]
    yield from _grown("bytes", sizes, BYTES)
    memory = [m.memory.run.anonymous if m.memory else None for m in (a, b)]
    if None not in memory and abs((memory[1] or 0) - (memory[0] or 0)) > LEAST_MEMORY:
        yield from _grown("anonymous memory", memory, MEMORY)


def _grown(what: str, sizes: Sequence[int | None], limit: float) -> Iterable[Change]:
    before, after = sizes
    if before is not None and after is not None and before != after:
        worse = after > before * (1 + limit)
        yield Change(what=what, before=float(before), after=float(after), worse=worse)
