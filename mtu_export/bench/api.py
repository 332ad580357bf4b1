"""What the command line and scripts call: bundles and options in, a record out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtu_export import bundle
from mtu_export.bench import builds, fleet, suite, work
from mtu_export.bench.checkout import head_commit
from mtu_export.bench.devices import Device
from mtu_export.bench.record import Fleet, Run
from mtu_export.bench.suite import Contender, Suite, SuiteOptions
from mtu_export.bundle import Bundle
from mtu_export.spec import MtuExportError, PlanError, UnknownName
from mtu_export.spec.options import BenchOptions

Progress = Callable[[str], None]


def _silent(line: str) -> None:
    """Progress that nobody sees."""


def bench(
    bundles: Sequence[str | Path | Bundle],
    options: BenchOptions | None = None,
    *,
    progress: Progress = _silent,
    detail: Progress = _silent,
    state: Path | None = None,
    **values: Any,
) -> Run:
    """Measure bundles on a device; ``values`` are of ``BenchOptions``.

    >>> run = bench(["edit-onnx-int8"], mode="quick")  # doctest: +SKIP

    ``progress`` is told each step, ``detail`` what a runner says of it. ``state`` is a folder that
    keeps results, so that the same call continues a run that was stopped. Raises ``PlanError``,
    ``BundleError``, ``DeviceError``, ``ToolchainError``.
    """
    options = options or BenchOptions(**values)
    sources = [each if isinstance(each, Bundle) else bundle.read(Path(each)) for each in bundles]
    if not sources:
        raise PlanError("name at least one bundle")
    _check_names(sources, options)
    if options.device.partition(":")[0] == "web":
        from mtu_export.bench.devices import web

        return web.bench(sources, options, progress)
    settings = work.Settings(
        threads=options.threads,
        cpus=options.cpus,
        options=dict(text.split("=", 1) for text in options.engine_options),  # type: ignore[misc]
    )
    suite_options = SuiteOptions(
        mode=options.mode,  # type: ignore[arg-type]
        settings=settings,
        rounds=options.rounds,
        samples=options.samples,
        tasks=tuple(options.task),
        parts=tuple(options.part),
        commit=head_commit(),
        state=state,
    )
    with closing(_device(options, detail)) as device:
        groups = [_group(source, options, device, progress) for source in sources]
        fleets = [
            each
            for source in sources
            for each in _fleet(source, options, device, settings, progress)
        ]
        return Suite(device, suite_options, progress).run(groups, fleets)


def _check_names(sources: Sequence[Bundle], options: BenchOptions) -> None:
    """Refuse a task or part that no bundle has."""
    tasks = dict.fromkeys(task.name for source in sources for task in source.tasks)
    parts = dict.fromkeys(part.name for source in sources for part in source.parts)
    for kind, names, legal in (
        ("task", options.task, [*tasks]),
        ("part", options.part, [*parts, suite.IMAGE]),
    ):
        for name in names:
            if name not in legal:
                raise UnknownName(kind, name, legal)


def _device(options: BenchOptions, detail: Progress) -> Device:
    kind, _, serial = options.device.partition(":")
    if kind == "adb":
        from mtu_export.bench.devices import adb

        if options.app:
            return adb.connect_app(serial or None, keep=options.keep, progress=detail)
        return adb.connect(serial or None, runner=_runner, keep=options.keep, progress=detail)
    if kind == "ios":
        from mtu_export.bench.devices import ios

        if options.threads or options.cpus != "all":
            raise PlanError("--threads and --cpus are for --device host and adb: Core ML chooses")
        return ios.connect(serial or None, progress=detail)
    from mtu_export.bench.devices.host import Host

    return Host(options.runner, detail)


def _runner(arch: str) -> Path:
    """The C++ runner of an architecture; built where it is not there."""
    return builds.find_runner(arch) or builds.build_runner(arch)


def _group(
    source: Bundle, options: BenchOptions, device: Device, progress: Progress
) -> list[Contender]:
    """A bundle and, with ``--baseline``, what it is compared with, where the device runs it."""
    label = work.describe(source)
    group = [Contender(kind="bundle", bundle=source, label=label)]
    if not options.baseline or device.refuses(source) is not None:
        return group
    from mtu_export.bench import baselines

    tasks = [task.name for task in source.tasks if task.name in options.task]
    for each in baselines.baselines(source, options.model, tasks=tasks, progress=progress):
        read = None if each.folder is None else bundle.read(each.folder)
        group.append(
            Contender(kind=each.kind, bundle=read, label=label, task=each.task, reason=each.reason)
        )
    return group


def _fleet(
    source: Bundle,
    options: BenchOptions,
    device: Device,
    settings: work.Settings,
    progress: Progress,
) -> list[Fleet]:
    """The fleet of a bundle of several tasks, with ``--baseline`` alone."""
    if not options.baseline or len(source.tasks) < 2 or device.refuses(source) is not None:
        return []
    from mtu_export.bench import baselines

    singles = {}
    for each in baselines.fleet(source, options.model, progress=progress):
        if each.folder is not None:
            singles[each.task] = bundle.read(each.folder)
    progress("fleet: one multi-task bundle against a bundle for each task")
    try:
        return [fleet.measure(source, singles, device, replace(settings, samples=1))]
    except MtuExportError as error:
        progress(f"fleet: not measured: {error}")
        return []
