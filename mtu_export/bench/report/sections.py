"""The tables of a group: times, work, memory, accuracy, comparisons, and what did not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mtu_export.bench.record import DeviceState, Measurement
from mtu_export.bench.report.groups import KINDS, Group, model_of
from mtu_export.bench.report.tables import Column, Table, Value

_WHAT = (Column("bundle"), Column("model"), Column("task"), Column("part"), Column("engine"))


def tables(group: Group) -> list[Table]:
    """Every table that has a row."""
    makers = (
        *(missing, latency, comparisons, images, loading, work),
        *(memory, accuracy, fleets, peaks, states),
    )
    return [table for table in (make(group) for make in makers) if table.rows]


def _what(m: Measurement) -> list[Value]:
    engine = m.engine.name if m.engine else None
    if engine and m.provider != "cpu":
        engine += f", {m.provider}"
    return [m.bundle.name, KINDS[m.kind], m.task, m.part, engine]


def missing(group: Group) -> Table:
    """What failed and what the device cannot run, with the reason."""
    rows = [
        [*_what(m)[:4], model_of(m), m.status, m.reason or "no reason recorded"]
        for m in group.measurements
        if m.status != "measured"
    ]
    caption = "What has no numbers, and why."
    columns = (*_WHAT[:4], Column("file"), Column("status"), Column("reason"))
    return Table(title="Failed and not run", caption=caption, columns=columns, rows=rows)


def latency(group: Group) -> Table:
    """Times of each part and of whole pictures that ran as one program."""
    rows: list[list[Value]] = []
    for m in group.measured:
        if m.latency is None:
            continue
        own = m.latency
        rows.append(
            [
                *_what(m),
                m.threads,
                own.median,
                own.p90,
                own.min,
                min(own.rounds, default=None),
                max(own.rounds, default=None),
                own.count,
            ]
        )
    names = ("median", "p90", "fastest", "lowest round", "highest round")
    columns = (
        *_WHAT,
        Column("threads", "count"),
        *(Column(name, "seconds") for name in names),
        Column("samples", "count"),
    )
    caption = (
        "One sample is one run of the part, or of the whole picture; the first is none. Lowest and "
        "highest round are medians of rounds."
    )
    if group.emulated:
        caption = "Emulated: these times are no speeds. " + caption
    return Table(title="Latency", caption=caption, columns=columns, rows=rows)


def loading(group: Group) -> Table:
    """From nothing to the first result, medians of the rounds."""
    rows: list[list[Value]] = []
    for m in group.measured:
        if m.rounds:
            columns = ((r.load_s, r.load_again_s, r.first_s) for r in m.rounds)
            rows.append([*_what(m), *map(_median, zip(*columns, strict=True))])
    names = ("load", "load again", "first pass")
    columns = (*_WHAT, *(Column(name, "seconds") for name in names))
    caption = (
        "Loading includes reading the file, from whatever cache; again is a second opening in the "
        "same process. The first pass may prepare weights."
    )
    if group.emulated:
        caption = "Emulated: these times are no speeds. " + caption
    return Table(title="Loading", caption=caption, columns=columns, rows=rows)


def _median(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.median(numbers)) if numbers else None


def comparisons(group: Group) -> Table:
    """Ratios of times from rounds that took turns."""
    rows = [
        [c.bundle, model_of(c), c.task, c.part, KINDS[c.baseline], c.ratio, c.low, c.high,
         len(c.rounds) or None]
        for c in group.comparisons
    ]  # fmt: skip
    columns = (
        Column("bundle"),
        Column("file"),
        Column("task"),
        Column("part"),
        Column("over"),
        Column("ratio", "ratio"),
        Column("lowest", "ratio"),
        Column("highest", "ratio"),
        Column("rounds", "count"),
    )
    caption = (
        "Time of the bundle over that of its baseline, round by round: the median of the rounds' "
        "ratios, and the extremes."
    )
    return Table(title="Against the baselines", caption=caption, columns=columns, rows=rows)


def images(group: Group) -> Table:
    """Whole pictures at the task's own steps."""
    rows: list[list[Value]] = []
    for m in group.measured:
        if m.image is not None:
            own = m.image
            measured = _median(own.measured_s)
            counts = [own.steps, own.passes, own.branches]
            rows.append([*_what(m)[:3], *counts, own.seconds, own.measured_steps, measured])
    columns = (
        *_WHAT[:3],
        Column("steps", "count"),
        Column("passes", "count"),
        Column("branches", "count"),
        Column("a picture", "seconds"),
        Column("steps measured", "count"),
        Column("picture measured", "seconds"),
    )
    caption = (
        "A picture is the sum of the parts' medians over all calls at the task's steps; what was "
        "measured is a whole picture as one program, at fewer steps."
    )
    return Table(title="Whole pictures", caption=caption, columns=columns, rows=rows)


def work(group: Group) -> Table:
    """Bytes, parameters, FLOPs and the speed that follows."""
    rows = [
        [*_what(m), m.work.bytes, m.work.parameters, m.work.flops_conv_linear, m.work.flops_total,
         m.gflops, m.share_of_peak]
        for m in group.measured
        if m.work is not None
    ]  # fmt: skip
    columns = (
        *_WHAT,
        Column("weights and graph", "bytes"),
        Column("parameters", "count"),
        Column("convolutions + linear", "flops"),
        Column("with attention", "flops"),
        Column("GFLOP/s", "number"),
        Column("of peak", "share"),
    )
    caption = (
        "A multiply-add is two FLOPs; attention's two products are in the second count, which "
        "GFLOP/s refers to. Peak is a large float32 matrix product in the same engine and run; "
        "int8 kernels and Winograd convolutions may pass it: they do less than is counted."
    )
    return Table(title="Bytes and work", caption=caption, columns=columns, rows=rows)


def memory(group: Group) -> Table:
    """Resident memory by phase."""
    rows: list[list[Value]] = []
    for m in group.measured:
        if m.memory is not None:
            own = m.memory
            phases = (own.start.anonymous, own.loaded.anonymous, own.run.anonymous, own.run.file)
            rows.append([*_what(m), *phases, own.run.peak, own.peak_total])
    columns = (
        *_WHAT,
        Column("before", "bytes"),
        Column("loaded", "bytes"),
        Column("run", "bytes"),
        Column("file-backed", "bytes"),
        Column("peak of the run", "bytes"),
        Column("peak of all", "bytes"),
    )
    caption = (
        "Resident memory of the runner's process: anonymous before the engine, after loading and "
        "after the samples; file-backed is mapped, and the system may drop it."
    )
    return Table(title="Memory", caption=caption, columns=columns, rows=rows)


def accuracy(group: Group) -> Table:
    """dB against PyTorch on the device that ran."""
    rows = [
        [*_what(m), c.name, c.psnr_db, c.floor_db, "ok" if c.passed else "below the floor"]
        for m in group.measurements
        for c in m.checks
    ]
    columns = (
        *_WHAT,
        Column("output"),
        Column("PSNR", "decibels"),
        Column("floor", "decibels"),
        Column("verdict"),
    )
    caption = (
        "Against the goldens, 20·log10(max|reference| / rmse), on the device that ran, after the "
        "timing and in a process of its own."
    )
    return Table(title="Accuracy", caption=caption, columns=columns, rows=rows)


def fleets(group: Group) -> Table:
    """One bundle for several tasks against a bundle for each."""
    rows = [
        [model_of(f), ", ".join(f.tasks), f.one_bytes, f.fleet_bytes, f.one_memory, f.fleet_memory,
         f.one_switch_s, f.fleet_switch_s, f.reason]
        for f in group.fleets
    ]  # fmt: skip
    columns = (
        Column("file"),
        Column("tasks"),
        Column("one: disk", "bytes"),
        Column("each: disk", "bytes"),
        Column("one: memory", "bytes"),
        Column("each: memory", "bytes"),
        Column("one: switch", "seconds"),
        Column("each: switch", "seconds"),
        Column("remark"),
    )
    caption = (
        "One bundle for all tasks against one bundle for each task; a switch is the time from one "
        "task's last pass to another's first."
    )
    return Table(title="One bundle or several", caption=caption, columns=columns, rows=rows)


def peaks(group: Group) -> Table:
    """The control of each engine."""
    rows = [
        [p.engine, f"{p.size} x {p.size}", p.seconds, min(p.rounds, default=None),
         max(p.rounds, default=None), p.gflops]
        for p in group.peaks
    ]  # fmt: skip
    columns = (
        Column("engine"),
        Column("matrices"),
        Column("median", "seconds"),
        Column("lowest round", "seconds"),
        Column("highest round", "seconds"),
        Column("GFLOP/s", "number"),
    )
    caption = "A large float32 matrix product in each engine: what this machine can do at best."
    return Table(title="Peak", caption=caption, columns=columns, rows=rows)


def states(group: Group) -> Table:
    """Heat, battery and clocks around the measurements, where the device tells them."""
    rows: list[list[Value]] = []
    for m in group.measured:
        if any(_tells(state) for state in (m.before, m.after)):
            rows.append([*_what(m)[:4], *_state(m.before), *_state(m.after)])
    names = ("thermal status", "°C", "battery", "GHz", "throttled")
    forms = ("count", "number", "share", "number", "text")
    columns = [Column(f"{name} {when}", form)  # type: ignore[arg-type]
               for when in ("before", "after")
               for name, form in zip(names, forms, strict=True)]  # fmt: skip
    caption = (
        "Thermal status is Android's, 0 to 6; the clock is the highest core's; throttled: the "
        "device did not cool down within the limit of waiting."
    )
    title = "State of the device"
    return Table(title=title, caption=caption, columns=(*_WHAT[:4], *columns), rows=rows)


def _tells(state: DeviceState | None) -> bool:
    return state is not None and any(value is not None for value in _state(state)[:4])


def _state(state: DeviceState | None) -> Sequence[Value]:
    if state is None:
        return (None,) * 5
    clock = max(state.clocks) / 1e6 if state.clocks else None
    throttled = "yes" if state.throttled else "no"
    return state.thermal_status, state.temperature, state.battery, clock, throttled
