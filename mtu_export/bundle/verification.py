"""Artefacts against their goldens, each in its own runtime; the loop; what a layer loses."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, Part, denoising, metrics, runner
from mtu_export.spec import (
    Arrays,
    BundleError,
    IntWeights,
    ParityError,
    Plan,
    PlanError,
    Runtime,
    RuntimeUnavailable,
    Scheme,
    Task,
    ToolchainError,
    Verdict,
)
from mtu_export.spec.catalog import SCHEMES

Cases = Sequence[tuple[Arrays, Arrays]]
PIPELINE = "pipeline"
"""The component of a verdict on the whole loop."""
LOOP = "loop"
LOOP_DB, LOOP_LOSS_DB = 60.0, 10.0
"""Other kernels move an int8 loop by a few dB; a loop above 60 dB is right."""
WITNESS_DB = 100.0
"""Other kernels on one machine agree on a witness to 133 dB; flipped int8 codes are below 100."""
RUNTIMES = "runtimes"
"""The stage of a verdict on two runtimes of one artefact."""


def verify_bundle(
    found: Bundle, floor_db: float | None = None, runner: str | None = None
) -> list[Verdict]:
    """Run every artefact of a bundle against its goldens; read structure where nothing runs.

    Then the loop, where the bundle has a golden of it. The floor of a part is ``floor_db``, else
    what the export recorded, else the scheme's; and where the export left a witness of a part,
    the part must still be the same within ``WITNESS_DB``. ``runner`` names one of the target's
    runtimes; with ``both`` they are compared with one another too. Raises ``BundleError`` where
    the files contradict the manifest, ``UnknownName``, and ``ToolchainError`` where the runtime
    that was named cannot run here.
    """
    name = found.manifest["target"]
    schemes = {part.component: part.scheme.get("name") for part in found.parts}
    schemes[PIPELINE] = found.manifest["scheme"]["name"]
    if name not in targets.names() or any(row not in SCHEMES for row in schemes.values()):
        raise BundleError(f"{bundle.MANIFEST}: unknown target or scheme")
    runtimes = targets.runtimes(targets.load(name), runner)
    if runner is not None and all(row.runner()[0] is None for row in runtimes):
        raise ToolchainError(f"{runner} cannot run here: {runtimes[0].runner()[1]}")
    goldens = bundle.Goldens(found)
    recorded = {(v.component, v.task, v.stage): v for v in found.proof}
    verdicts = []
    for part in found.parts:
        scheme = SCHEMES[part.scheme["name"]]
        for task in part.entries:
            cases = goldens.cases(part.component, task)
            before = recorded.get((part.component, task, stage_of(scheme)))
            if not cases and task not in part.proved and before is None:
                continue
            if not cases or len(cases) < bundle.CASES:
                raise BundleError(
                    f"{bundle.GOLDENS} has not {bundle.CASES} cases of {part.component}/{task}"
                )
            floor = scheme.floor(part.scheme["activations"]) if before is None else before.floor_db
            floor = _floor(floor if floor_db is None else floor_db)
            rows = _entry(name, runtimes, part, task, cases, stage_of(scheme), floor)
            verdicts += _witnessed(found, part, task, cases[0][0], rows)
    for task in found.tasks:
        before = recorded.get((PIPELINE, task.name, LOOP))
        floor = None if before is None else _loop_floor(before)
        for runtime in runtimes:
            rows = loop(found, task, floor, runtime)
            if not rows and before is not None:
                raise BundleError(f"{bundle.GOLDENS} has no loop/{task.name}, which the export ran")
            verdicts += rows
    return verdicts


def _loop_floor(recorded: Verdict) -> float:
    """The recorded floor, or what the export reached less ``LOOP_LOSS_DB``, up to ``LOOP_DB``.

    An int8 loop's floor is low, and a wrong scale or guidance would be above it.
    """
    reached = recorded.psnr_db
    near = 0.0 if reached is None else min(reached - LOOP_LOSS_DB, LOOP_DB)
    return max(_floor(recorded.floor_db), near)


def _floor(floor: float) -> float:
    if not 0 <= floor <= metrics.CEILING_DB:
        raise BundleError(f"{bundle.MANIFEST}: a floor of {floor:g} dB is none")
    return floor


def witness(
    plan: Plan, row: Mapping[str, Any], folder: Path, cases: Mapping[str, Cases]
) -> dict[str, Any]:
    """What a part's row of the manifest says of its weights; empty where no runtime can.

    ``{"witness": {task: [numbers]}}``, each of the task's first case.
    """
    runtime = _witness(tuple(targets.load(plan.target).runtimes.values()))
    if runtime is None or runtime.witness is None:
        return {}
    found = bundle.part(folder, row)
    said = {}
    for task, rows in cases.items():
        numbers = runtime.witness(found.path, found.entries[task], rows[0][0])
        if bool(np.isfinite(numbers).all()):
            said[task] = list(numbers)
    return {"witness": said} if said else {}


def _witness(runtimes: Sequence[Runtime]) -> Runtime | None:
    rows = (row for row in runtimes if row.witness is not None and row.runner()[0] is not None)
    return next(rows, None)


def _witnessed(
    found: Bundle,
    part: Part,
    task: str,
    inputs: Arrays,
    verdicts: list[Verdict],
) -> list[Verdict]:
    """The verdicts of a part, failed where its weights are not those of the export.

    Whatever runtime was asked for: any one of the target's is witness.
    """
    row = next(r for r in found.manifest["parts"] if r["component"] == part.component)
    said = row.get("witness")
    runtime = _witness(tuple(targets.load(found.manifest["target"]).runtimes.values()))
    failed = any(verdict.passed is False for verdict in verdicts)
    if failed or said is None or runtime is None or runtime.witness is None:
        return verdicts
    where = f"{bundle.MANIFEST}: the witness of {part.component}"
    if not isinstance(said, dict):
        raise BundleError(f"{where} is malformed")
    if task not in said:
        raise BundleError(f"{where} has no task {task!r}")
    then = said[task]
    numbers = [v for v in then if isinstance(v, (int, float))] if isinstance(then, list) else []
    now = np.array(runtime.witness(part.path, part.entries[task], inputs))
    if len(numbers) != len(now):
        raise BundleError(f"{where} is malformed")
    same = metrics.snr_db(np.array(numbers, np.float64), now)
    if same >= WITNESS_DB:
        return verdicts
    reason = f"its weights are not those of the export: only {same:.0f} dB alike"
    return [replace(v, passed=False, reason=reason) if v.passed else v for v in verdicts]


def stage_of(scheme: Scheme) -> str:
    """The last stage of the way torch → folded → exported → quantised that an artefact took."""
    return "quantised" if isinstance(scheme.weights, IntWeights) else "exported"


def part(
    plan: Plan, row: Mapping[str, Any], folder: Path, task: str, cases: Cases
) -> list[Verdict]:
    """Verdicts of a part that was just written, from its row of the manifest."""
    floor = plan.scheme.floor(row["scheme"]["activations"])
    floor = floor if plan.floor_db is None else plan.floor_db
    found = bundle.part(folder, row)
    runtimes = targets.runtimes(targets.load(plan.target))
    return _entry(plan.target, runtimes, found, task, cases, stage_of(plan.scheme), floor)


def _entry(
    target_name: str,
    runtimes: Sequence[Runtime],
    part: Part,
    task: str,
    cases: Cases,
    stage: str,
    floor: float,
) -> list[Verdict]:
    """Structure first, then each runtime that is here; two that ran are compared."""
    target, entry = targets.load(target_name), part.entries[task]
    structure = target.structure(part.path, entry)
    for what, said, is_there in (
        ("inputs", part.inputs_of(task), structure.inputs),
        ("outputs", part.outputs, structure.outputs),
    ):
        if said != is_there:
            raise BundleError(f"{part.path.name}: its {what} are not those of the manifest")
    for inputs, outputs in cases:
        if set(outputs) != {s.name for s in part.outputs}:
            raise BundleError(f"{bundle.GOLDENS}: outputs of {task!r} are not those of the part")
        if {s.name: s.shape for s in part.inputs_of(task)} != {
            k: v.shape for k, v in inputs.items()
        }:
            raise BundleError(f"{bundle.GOLDENS}: inputs of {task!r} are not those of the part")
    row = {"component": part.component, "task": task, "floor_db": floor}
    checked = f"its structure was checked ({sum(structure.operators.values())} operators)"
    verdicts: list[Verdict] = []
    ran: list[tuple[str, list[Arrays]]] = []
    for runtime in runtimes:
        runner, reason = runtime.runner()
        if runner is None:
            verdicts.append(metrics.not_run(**row, stage=stage, reason=f"{reason}; {checked}"))
            continue
        try:
            session = runtime.open(part.path, entry)
            found: list[Arrays] = [session(inputs) for inputs, _ in cases]
        except RuntimeUnavailable as error:
            verdicts.append(metrics.not_run(**row, stage=stage, reason=f"{error}; {checked}"))
            continue
        except ParityError as error:
            verdicts.append(metrics.broken(**row, stage=stage, runner=runner, reason=str(error)))
            continue
        wanted = [outputs for _, outputs in cases]
        verdicts.append(metrics.judge(wanted, found, **row, stage=stage, runner=runner))
        ran.append((runner, found))
    for runner, found in ran[1:]:
        pair = f"{runner} against {ran[0][0]}"
        verdicts.append(metrics.judge(ran[0][1], found, **row, stage=RUNTIMES, runner=pair))
    return verdicts


def loop(
    found: Bundle, task: Task, floor: float | None = None, runtime: Runtime | None = None
) -> list[Verdict]:
    """The verdict of a bundle's loop against the golden request; none where there is no golden.

    The worst of the last latent and the picture counts.
    """
    golden = bundle.Goldens(found).loop(task.name)
    if not golden:
        return []
    runtime = runtime or targets.runtime(targets.load(found.manifest["target"]))
    scheme = SCHEMES[found.manifest["scheme"]["name"]]
    row = {
        "component": PIPELINE,
        "task": task.name,
        "stage": LOOP,
        "floor_db": scheme.loop_floor_db if floor is None else floor,
    }
    name, reason = runtime.runner()
    if name is None:
        return [metrics.not_run(**row, reason=str(reason))]
    request = _request(found, golden)
    known = runner.open_loop(found, task.name, runtime)
    if request.steps not in known.schedules:
        raise BundleError(f"{bundle.MANIFEST}: loop.golden: no table for {request.steps} steps")
    last = f"latents/{len(known.schedules[request.steps].passes) - 1}"
    if last not in golden:
        raise BundleError(f"{bundle.GOLDENS}: loop/{task.name}/{last} is missing")
    try:
        latents, image = runner.generate(known, request)
    except RuntimeUnavailable as error:
        return [metrics.not_run(**row, reason=str(error))]
    except ParityError as error:
        return [metrics.broken(**row, runner=name, reason=str(error))]
    except PlanError as error:
        raise BundleError(f"{bundle.GOLDENS}: loop/{task.name}: {error}") from None
    wanted = {"latent": golden[last], "image": golden["image"]}
    got = {"latent": latents[-1], "image": image}
    return [metrics.judge([wanted], [got], **row, runner=name)]


def _request(found: Bundle, golden: Mapping[str, np.ndarray]) -> denoising.Request:
    """The request that the loop's golden was made of."""
    said = (found.manifest.get("loop") or {}).get("golden")
    if not isinstance(said, dict) or not isinstance(said.get("prompt"), str):
        raise BundleError(f"{bundle.MANIFEST}: loop.golden says no prompt")
    steps = said.get("steps")
    if type(steps) is not int or "noise" not in golden or "image" not in golden:
        raise BundleError(f"{bundle.MANIFEST}: loop.golden says no steps, or noise is missing")
    return denoising.Request(
        prompt=said["prompt"],
        noise=golden["noise"],
        steps=steps,
        image=golden.get("input"),
        mask=golden.get("mask"),
    )


def folded(wanted: Sequence[Arrays], found: Sequence[Arrays], task: Task) -> Verdict:
    """The verdict of the folded UNet against the live router, both in PyTorch."""
    version = importlib.metadata.version("torch")
    return metrics.judge(
        wanted,
        found,
        component="unet",
        task=task.name,
        stage="folded",
        floor_db=SCHEMES["fp32"].floor_db,
        runner=f"torch {version}",
    )


def refuse_failure(verdicts: Sequence[Verdict], more: str | None = None) -> None:
    """Raise ``ParityError`` for the first verdict below its floor."""
    line = metrics.failure(verdicts)
    if line is not None:
        raise ParityError(f"parity below the floor: {line}" + (f"; {more}" if more else ""))
