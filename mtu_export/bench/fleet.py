"""One multi-task bundle against a fleet of single-task bundles: disk, memory, switch time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtu_export import bundle
from mtu_export.bench import job as jobs
from mtu_export.bench import work
from mtu_export.bench.devices import Device
from mtu_export.bench.job import JobPart, Result
from mtu_export.bench.record import Fleet
from mtu_export.bench.work import Settings
from mtu_export.bundle import Bundle, Part
from mtu_export.spec import Arrays, MtuExportError, PlanError


def measure(
    one: Bundle, singles: Mapping[str, Bundle], device: Device, settings: Settings
) -> Fleet:
    """Measure the denoisers of all tasks, loaded side by side in one process.

    ``singles`` are the single-task bundles by task. A switch is opening another task's entry and
    its first pass, the first task's still open. What cannot be measured is None with its reason.
    """
    tasks = [task.name for task in one.tasks]
    missing = [task for task in tasks if task not in singles]
    if missing or len(tasks) < 2:
        raise PlanError(f"a fleet needs a bundle for each of {', '.join(tasks)}")
    fleet = Fleet(
        target=one.manifest.target,
        scheme=one.manifest.scheme.name,
        tasks=tuple(tasks),
        one_bytes=_denoiser(one, tasks[0]).bytes,
        fleet_bytes=sum(_denoiser(singles[task], task).bytes for task in tasks),
    )
    update: dict[str, object] = {}
    for name, bundles in (("one", dict.fromkeys(tasks, one)), ("fleet", singles)):
        try:
            result = _run({task: bundles[task] for task in tasks}, device, settings)
        except MtuExportError as error:
            return fleet.model_copy(update={"reason": str(error)})
        if result.status == "failed" or result.memory is None:
            return fleet.model_copy(update={"reason": f"{name}: {result.reason}"})
        run, second = result.memory.run, tasks[1]
        if run.anonymous is not None and run.file is not None:
            update[f"{name}_memory"] = run.anonymous + run.file
        first_pass = result.calls[second].seconds[0]
        update[f"{name}_switch_s"] = result.load_s[second] + first_pass
    return fleet.model_copy(update=update)


def _denoiser(source: Bundle, task: str) -> Part:
    name = work.denoiser_of(source, source.task(task))
    if name is None:
        raise PlanError(f"task {task!r} has no loop, so no denoiser to compare")
    return source.part(name)


def _run(bundles: Mapping[str, Bundle], device: Device, settings: Settings) -> Result:
    """One pass of each task's denoiser, all of them loaded in one process."""
    folders = {each.folder.resolve(): number for number, each in enumerate(bundles.values())}
    parts: dict[str, JobPart] = {}
    tensors: dict[str, np.ndarray] = {}
    program = []
    for task, source in bundles.items():
        part = _denoiser(source, task)
        prefix = f"{folders[source.folder.resolve()]}/"
        parts[task] = work.job_part(source, part, task, prefix)
        inputs = _inputs(source, part, task)
        tensors |= {f"{task}/{name}": value for name, value in inputs.items()}
        program.append(
            {
                "op": "call",
                "part": task,
                "inputs": {name: f"{task}/{name}" for name in inputs},
                "outputs": {output.name: f"out/{task}/{output.name}" for output in part.outputs},
            }
        )
    with tempfile.TemporaryDirectory(prefix="mtu-fleet-") as name:
        root = Path(name)
        for folder, number in folders.items():
            (root / str(number)).symlink_to(folder, target_is_directory=True)
        any_task, any_bundle = next(iter(bundles.items()))
        part = _denoiser(any_bundle, any_task).name
        job = work.part_job(any_bundle, any_task, part, settings)
        job = replace(
            job,
            folder=root,
            identity=jobs.stamp(*[work.identity(each) for each in bundles.values()]),
            parts=parts,
            tensors=tensors,
            program=program,
            samples=1,
            warmup=0,
            load_again=False,
        )
        return device.run(job)


def _inputs(source: Bundle, part: Part, task: str) -> Arrays:
    """The first golden inputs of a task's denoiser."""
    cases: Sequence[tuple[Arrays, Arrays]] = bundle.Goldens(source).cases(part.name, task)
    if not cases:
        raise PlanError(f"{bundle.GOLDENS} has no case of {part.name} for task {task!r}")
    return cases[0][0]
