"""The questions that a report answers, in sentences of numbers that its records have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtu_export.bench.record import Comparison, Fleet, Kind, Measurement
from mtu_export.bench.report.groups import Group, model_of
from mtu_export.bench.report.tables import Column, Table, Value, shown
from mtu_export.bench.statistics import medians

_MOST_REASONS = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one group says: a sentence, where it was measured, and the figures by file."""

    sentence: str
    where: str
    table: Table


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question, with a finding of each group that has an answer."""

    question: str
    findings: Sequence[Finding]
    reasons: Sequence[str] = ()
    """Why there is none, where the records say why."""

    @property
    def none(self) -> str:
        """What stands where there is no finding."""
        if not self.reasons:
            return "Not measured."
        more = len(self.reasons) - _MOST_REASONS
        ending = f"; and {more} more" if more > 0 else ""
        return f"Not measured: {'; '.join(self.reasons[:_MOST_REASONS])}{ending}."


def answers(groups: Sequence[Group]) -> list[Answer]:
    """Of real measurements alone: an emulator's times are no speeds."""
    real = [group for group in groups if not group.emulated]
    questions: list[tuple[str, Callable[[Group], Finding | None], Kind | None]] = [
        ("What does MTU cost against a single-task model?", _cost, "dense"),
        ("What does folding the router save?", _fold, "unfolded"),
        ("What does int8 bring?", _int8, None),
        ("What does one bundle for several tasks save?", _sharing, None),
        ("What do the rewrites bring over the toolchain's plain export?", _plain, "plain"),
    ]
    return [
        Answer(
            question=question,
            findings=[finding for finding in map(answer, real) if finding],
            reasons=_reasons(real, kind),
        )
        for question, answer, kind in questions
    ]


def _reasons(groups: Sequence[Group], kind: Kind | None) -> list[str]:
    measurements = [m for group in groups for m in group.measurements if m.kind == kind]
    lines = {
        f"{model_of(m)} {m.status}, {m.reason or 'no reason recorded'}": None
        for m in measurements
        if m.status != "measured"
    }
    return list(lines)


@dataclass(kw_only=True)
class _Ratios:
    """Of one target and scheme over its baseline: times by task, their rounds, and the rest."""

    tasks: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    bytes: float | None = None
    memory: float | None = None
    decibels: tuple[float, float] | None = None

    @property
    def row(self) -> list[Value]:
        """Cells below ``_HEAD``."""
        time = float(np.median(self.times)) if self.times else None
        ends = (min(self.rounds, default=None), max(self.rounds, default=None))
        return [", ".join(dict.fromkeys(self.tasks)), time, *ends, self.bytes, self.memory]


_HEAD = (
    Column("file"),
    Column("tasks"),
    Column("time", "ratio"),
    Column("lowest round", "ratio"),
    Column("highest round", "ratio"),
    Column("bytes", "ratio"),
    Column("memory", "ratio"),
)


def _times(values: Iterable[float | None], digits: int = 2) -> str | None:
    """Ratios in words: "1.00 times", "0.98 to 1.01 times"; None where there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    ends = [f"{value:.{digits}f}" for value in (min(numbers), max(numbers))]
    return f"{' to '.join(dict.fromkeys(ends))} times"


def _spread(every: Iterable[_Ratios], note: str = "") -> str:
    rounds = [value for one in every for value in one.rounds]
    return f" (rounds {min(rounds):.2f} to {max(rounds):.2f}{note})" if rounds else ""


# --------------------------------------------------------------------- against the baselines


def _against(group: Group, baseline: Kind) -> dict[str, _Ratios]:
    """The part that does most of the work over its baseline, by target and scheme."""
    parts = {m.part for m in group.main_parts}
    result: dict[str, _Ratios] = {}
    for c in group.comparisons:
        if (c.subject, c.baseline) != ("bundle", baseline) or c.part not in parts:
            continue
        own = result.setdefault(model_of(c), _Ratios())
        own.tasks.append(c.task)
        own.times.append(c.ratio)
        own.rounds += [c.low, c.high]
        pair = _pair(group, c)
        if pair is not None:
            own.bytes, own.memory = _sizes(*pair)
    return result


def _pair(group: Group, c: Comparison) -> tuple[Measurement, Measurement] | None:
    """What was compared: a bundle's baselines follow it, up to the next bundle."""
    wanted = (c.target, c.scheme, c.task, c.part, c.provider)
    subject: Measurement | None = None
    for m in group.measured:
        if (m.bundle.target, m.bundle.scheme, m.task, m.part, m.provider) != wanted:
            continue
        if m.kind == c.subject:
            subject = m if m.bundle.name == c.bundle else None
        elif m.kind == c.baseline and subject is not None:
            return subject, m
    return None


def _sizes(one: Measurement, other: Measurement) -> tuple[float | None, float | None]:
    """Bytes and resident memory of one over those of the other."""
    size = one.work.bytes / other.work.bytes if one.work and other.work else None
    memory = [_resident(m) for m in (one, other)]
    return size, memory[0] / memory[1] if memory[0] and memory[1] else None


def _resident(m: Measurement) -> int | None:
    if m.memory is None or m.memory.run.anonymous is None:
        return None
    return m.memory.run.anonymous + (m.memory.run.file or 0)


def _baseline(group: Group, baseline: Kind, subject: str, over: str) -> Finding | None:
    every = _against(group, baseline)
    if not every:
        return None
    times = _times(one_time for one in every.values() for one_time in one.times)
    sentence = f"{subject} {times} the time of {over}{_spread(every.values())}."
    rows = [[model, *own.row] for model, own in every.items()]
    caption = f"The denoiser over that of {over}."
    return _finding(group, sentence, caption, _HEAD, rows)


def _finding(
    group: Group,
    sentence: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Value]],
) -> Finding:
    table = Table(title=sentence, caption=caption, columns=columns, rows=rows)
    return Finding(sentence=sentence, where=group.title, table=table)


def _cost(group: Group) -> Finding | None:
    return _baseline(group, "dense", "MTU takes", "the single-task model")


def _fold(group: Group) -> Finding | None:
    return _baseline(group, "unfolded", "Folded, MTU takes", "MTU with its router in the graph")


def _plain(group: Group) -> Finding | None:
    return _baseline(group, "plain", "The bundle takes", "the plain export")


# -------------------------------------------------------------------------------------- schemes


def _int8(group: Group) -> Finding | None:
    """Each int8 bundle against the same bundle in float32, or else float16."""
    by_scheme: dict[tuple[str, ...], dict[str, Measurement]] = {}
    for m in group.main_parts:
        if m.kind == "bundle":
            size = f"{m.bundle.width} x {m.bundle.height}"
            key = (m.bundle.target, m.bundle.source_sha256, size, m.task, m.part, m.provider)
            by_scheme.setdefault(key, {}).setdefault(m.bundle.scheme, m)
    every: dict[str, _Ratios] = {}
    for schemes in by_scheme.values():
        base = schemes.get("fp32") or schemes.get("fp16")
        if "int8" in schemes and base is not None:
            name = f"{model_of(schemes['int8'])} over {base.bundle.scheme}"
            _add(every.setdefault(name, _Ratios()), schemes["int8"], base)
    if not every:
        return None
    size = _times(own.bytes for own in every.values())
    times = _times(time for own in every.values() for time in own.times)
    words = [f"{size} the bytes"] if size else []
    spread = _spread(every.values(), ", not in turns")
    words += [f"{times} the time of floats{spread}"] if times else []
    worst = [own.decibels for own in every.values() if own.decibels]
    if worst:
        ends = [shown(min(side), "decibels") for side in zip(*worst, strict=True)]
        words.append(f"at worst {ends[0]} instead of {ends[1]}")
    columns = (*_HEAD, Column("worst PSNR", "decibels"), Column("in floats", "decibels"))
    rows = [[n, *own.row, *(own.decibels or (None, None))] for n, own in every.items()]
    sentence = f"int8 has {', '.join(words)}."
    return _finding(
        group,
        sentence,
        "The denoiser over that in floats; each round of one against each of the other.",
        columns,
        rows,
    )


def _add(own: _Ratios, int8: Measurement, base: Measurement) -> None:
    """They did not take turns, so any round may stand against any other."""
    own.tasks.append(int8.task)
    one, other = (medians(m.rounds) for m in (int8, base))
    if one and other and min(other) > 0:
        own.times.append(float(np.median(one)) / float(np.median(other)))
        own.rounds += [min(one) / max(other), max(one) / min(other)]
    own.bytes, own.memory = _sizes(int8, base)
    decibels = [min((c.psnr_db for c in m.checks), default=None) for m in (int8, base)]
    if decibels[0] is not None and decibels[1] is not None:
        old = own.decibels or (decibels[0], decibels[1])
        own.decibels = min(old[0], decibels[0]), min(old[1], decibels[1])


# -------------------------------------------------------------------------------------- sharing


def _sharing(group: Group) -> Finding | None:
    fleets = [f for f in group.fleets if f.one_bytes and f.fleet_bytes]
    if not fleets:
        return None
    size = _times(f.one_bytes / f.fleet_bytes for f in fleets)
    words = [f"One denoiser for {_counts(fleets)} tasks has {size} the bytes of one for each"]
    memory = _times(_over(f.one_memory, f.fleet_memory) for f in fleets)
    words += [f"{memory} the memory"] if memory else []
    times = _times(time for own in _against(group, "single").values() for time in own.times)
    words += [f"{times} the time of a pass"] if times else []
    switches = [f for f in fleets if f.one_switch_s is not None and f.fleet_switch_s is not None]
    if switches:
        sides = zip(*((f.one_switch_s or 0, f.fleet_switch_s or 0) for f in switches), strict=True)
        ends = [shown(max(side), "seconds") for side in sides]
        words.append(f"and takes {ends[0]} to another task instead of {ends[1]}")
    rows = [
        [model_of(f), ", ".join(f.tasks), f.one_bytes / f.fleet_bytes,
         _over(f.one_memory, f.fleet_memory), f.one_switch_s, f.fleet_switch_s]
        for f in fleets
    ]  # fmt: skip
    columns = (
        *_HEAD[:2],
        Column("bytes", "ratio"),
        Column("memory", "ratio"),
        Column("one: switch", "seconds"),
        Column("several: switch", "seconds"),
    )
    return _finding(
        group,
        ", ".join(words) + ".",
        "The denoiser of one bundle over those of several.",
        columns,
        rows,
    )


def _counts(fleets: Sequence[Fleet]) -> str:
    return " or ".join(map(str, sorted({len(f.tasks) for f in fleets})))


def _over(one: int | None, other: int | None) -> float | None:
    return one / other if one and other else None
