"""Which plots a group has: latency, size against dB, memory, and ratios to its baselines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtu_export.bench.record import IMAGE, Measurement
from mtu_export.bench.report import plots
from mtu_export.bench.report.groups import KINDS, Group, model_of
from mtu_export.bench.report.markup import Markup
from mtu_export.bench.report.plots import Mark, Point
from mtu_export.bench.report.tables import shown

EXPECTED = 0.03
"""What MTU may cost over a single-task model, as the method has it: nothing, within noise."""
_OVER = {
    "dense": "the single-task model",
    "unfolded": "the unfolded MTU",
    "plain": "the plain export",
    "single": "the task's own bundle",
}
_EQUAL_DB = 150.0
"""Where a plot shows tensors that do not differ at all."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with its heading, what its marks mean, and the styles of its legend."""

    title: str
    caption: str
    plot: Markup
    legend: Sequence[tuple[str, str]] = ()


def figures(group: Group) -> list[Figure]:
    """A group's plots; an emulated group has none of times."""
    untimed = [*_memory(group), *_accuracy(group)]
    return untimed if group.emulated else [*_ratios(group), *untimed, *_latency(group)]


def _legend(measurements: Iterable[Measurement]) -> list[tuple[str, str]]:
    kinds = dict.fromkeys(m.kind for m in measurements)
    return [(kind, name) for kind, name in KINDS.items() if kind in kinds]


def _name(m: Measurement, several: bool) -> str:
    words = [model_of(m), "" if m.kind == "bundle" else KINDS[m.kind]]
    if m.provider != "cpu":
        words.append(m.provider)
    if several and m.kind == "bundle":
        words.append(m.bundle.name)
    return " ".join(word for word in words if word)


def _several(measurements: Sequence[Measurement]) -> bool:
    """Whether bundles can only be told apart by their names."""
    keys = [(m.kind, model_of(m), m.provider, m.task) for m in measurements]
    return len(set(keys)) < len(keys)


def _ratios(group: Group) -> Iterable[Figure]:
    parts = {m.part for m in group.main_parts} | {IMAGE}
    for kind, over in _OVER.items():
        compared = [c for c in group.comparisons if c.baseline == kind and c.part in parts]
        if not compared:
            continue
        work = {(c.task, c.part): None for c in compared}
        marks = [
            Mark(
                label=model_of(c) + (f", {c.task} {c.part}" if len(work) > 1 else ""),
                value=c.ratio,
                rounds=c.rounds or (c.low, c.high),
                note=f"{c.ratio:.3f} ({c.low:.3f}–{c.high:.3f})",
            )
            for c in compared
        ]
        title = f"Time over that of {over}"
        if len(work) == 1:
            title += f": {compared[0].task} {compared[0].part}"
        caption = f"1 is the time of {over}; dots are rounds, the tick is their median"
        band = f"; the band is 1.00 ± {EXPECTED:.2f}" if kind == "dense" else ""
        plot = plots.ratios(title, marks, EXPECTED if kind == "dense" else 0.0)
        yield Figure(title=title, caption=f"{caption}{band}.", plot=plot)


def _latency(group: Group) -> Iterable[Figure]:
    """A panel for each size, task and part; of parts the one of most work, and whole pictures."""
    panels: dict[tuple[str, str, str], list[Measurement]] = {}
    wholes = [m for m in group.measured if m.part == IMAGE]
    for m in (*group.main_parts, *wholes):
        if m.latency is not None:
            size = f"{m.bundle.width} x {m.bundle.height}"
            panels.setdefault((m.task, m.part, size), []).append(m)
    for (task, part, size), measurements in panels.items():
        several = _several(measurements)
        marks = [
            Mark(
                label=_name(m, several),
                value=m.latency.median,
                style=m.kind,
                rounds=m.latency.rounds,
            )
            for m in sorted(measurements, key=lambda m: m.latency.median if m.latency else 0)
            if m.latency is not None
        ]
        title = f"Time of {task} {part}, {size}"
        yield Figure(
            title=title,
            caption="Median of all samples; dots are the rounds' medians.",
            plot=plots.bars(title, marks, "seconds"),
            legend=_legend(measurements),
        )


def _memory(group: Group) -> Iterable[Figure]:
    """One bar for each bundle: the task that takes most."""
    largest: dict[tuple[str, ...], tuple[float, Measurement]] = {}
    for m in group.main_parts:
        if m.memory is None or m.memory.run.anonymous is None:
            continue
        total = m.memory.run.anonymous + (m.memory.run.file or 0)
        key = (m.kind, m.bundle.name, m.bundle.manifest_sha256, m.provider)
        if key not in largest or total > largest[key][0]:
            largest[key] = total, m
    if not largest:
        return
    several = _several([m for _, m in largest.values()])
    marks = []
    for total, m in sorted(largest.values(), key=lambda pair: pair[0]):
        run = m.memory.run if m.memory else None
        anonymous, file = (run.anonymous or 0, run.file or 0) if run else (0, 0)
        marks.append(
            Mark(
                label=_name(m, several),
                value=total,
                parts=(("anonymous", anonymous), ("file", file)),
                note=f"{shown(anonymous, 'bytes')} + {shown(file, 'bytes')}",
            )
        )
    title = "Resident memory while it runs"
    yield Figure(
        title=title,
        caption="Of each bundle the task that takes most. What is file-backed can be dropped.",
        plot=plots.bars(title, marks, "bytes"),
        legend=(("anonymous", "anonymous"), ("file", "file-backed")),
    )


def _accuracy(group: Group) -> Iterable[Figure]:
    """The worst dB of each target and scheme against the bytes of its largest part."""
    points: dict[tuple[str, str], Point] = {}
    drawn = [m for m in group.main_parts if m.kind in ("bundle", "plain")]
    for m in drawn:
        if m.work is None or not m.work.bytes or not m.checks:
            continue
        decibels = min(_EQUAL_DB, max(0.0, min(check.psnr_db for check in m.checks)))
        label = _name(m, several=False)
        key = (label, f"{m.bundle.width} x {m.bundle.height}")
        old = points.get(key)
        if old is None or decibels < old.y:
            points[key] = Point(label=label, x=m.work.bytes, y=decibels, style=m.kind)
    if len(points) < 2:
        return
    title = "Size against PSNR"
    yield Figure(
        title=title,
        caption="Bytes of the denoiser (logarithmic) and its PSNR against PyTorch, dB, on this "
        "device, the worst of its tasks.",
        plot=plots.scatter(title, list(points.values()), "bytes", "decibels"),
        legend=_legend(drawn),
    )
