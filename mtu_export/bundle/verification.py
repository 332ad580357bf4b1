"""A bundle against its goldens: every part in its own runtime, its weights, its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mtu_export import bundle, targets
from mtu_export.bundle import Bundle, Part, metrics, witness
from mtu_export.bundle.loop_proof import PASSES, PIPELINE, prove_loop
from mtu_export.bundle.structure import structure_of
from mtu_export.spec import (
    Arrays,
    BundleError,
    IntWeights,
    ParityError,
    Runtime,
    RuntimeUnavailable,
    Scheme,
    Task,
    ToolchainError,
    Verdict,
)
from mtu_export.spec.catalog import SCHEMES

Cases = Sequence[tuple[Arrays, Arrays]]
PASSES_DB, PASSES_LOSS_DB = 60.0, 10.0
"""Other kernels move a pass of int8 weights by a few dB; passes above 60 dB are right."""
RUNTIMES = "runtimes"
"""The stage of a verdict on two runtimes of one artefact."""


def verify_bundle(
    source: Bundle, floor_db: float | None = None, runner: str | None = None
) -> list[Verdict]:
    """Run every part of a bundle against its goldens; read structure where nothing runs.

    Then the witness of its weights, and the loop where the bundle has a golden of it. The floor
    is the scheme's, or ``floor_db``; floors that the bundle records are ignored. ``runner`` names
    one of the target's runtimes; with ``both`` their outputs are compared with each other too.
    Raises ``PlanError`` for a floor out of range, ``BundleError`` where the files contradict the
    manifest, ``UnknownName``, and ``ToolchainError`` where the named runtime cannot run here.
    """
    metrics.require_floor(floor_db)
    target = source.manifest.target
    schemes = [source.manifest.scheme.name, *(part.scheme.name for part in source.parts)]
    if target not in targets.names() or any(name not in SCHEMES for name in schemes):
        raise BundleError(f"{bundle.MANIFEST}: unknown target or scheme")
    runtimes = targets.runtimes(targets.load(target), runner)
    if runner is not None and all(runtime.runner()[0] is None for runtime in runtimes):
        raise ToolchainError(f"{runner} cannot run here: {runtimes[0].runner()[1]}")
    goldens = bundle.Goldens(source)
    recorded = {(v.component, v.task, v.stage): v for v in source.proof}
    verdicts = []
    for part in source.parts:
        scheme = SCHEMES[part.scheme.name]
        for task in part.entries:
            cases = goldens.cases(part.component, task)
            before = recorded.get((part.component, task, stage_of(scheme)))
            if not cases and task not in part.proved and before is None:
                continue
            if not cases or len(cases) < bundle.CASES:
                raise BundleError(
                    f"{bundle.GOLDENS} has not {bundle.CASES} cases of {part.component}/{task}"
                )
            floor = part_floor(scheme, part, floor_db)
            of_task = prove_part(target, runtimes, part, task, cases, floor)
            verdicts += [_with_recorded_floor(verdict, before, floor) for verdict in of_task]
            if not any(verdict.passed is False for verdict in of_task):
                verdicts += witness.check(source, part, task, cases[0][0])
    for task in source.tasks:
        before = recorded.get((PIPELINE, task.name, PASSES))
        for runtime in runtimes:
            verdicts += _verify_loop(source, task, before, floor_db, runtime)
    return verdicts


def _verify_loop(
    source: Bundle,
    task: Task,
    recorded: Verdict | None,
    floor_db: float | None,
    runtime: Runtime,
) -> list[Verdict]:
    """The verdicts of a task's loop; its floor rises with what the export reached.

    A floor for int8 weights is low, and a wrong scale or guidance may be above it.
    """
    least = pass_floor(SCHEMES[source.manifest.scheme.name], floor_db)
    reached = None if recorded is None else recorded.psnr_db
    floor = least if reached is None else max(least, min(reached - PASSES_LOSS_DB, PASSES_DB))
    verdicts = prove_loop(source, task, floor, runtime)
    if not verdicts and recorded is not None:
        raise BundleError(f"{bundle.GOLDENS} has no loop/{task.name}, which the export ran")
    return [_with_recorded_floor(verdict, recorded, least) for verdict in verdicts]


def _with_recorded_floor(verdict: Verdict, recorded: Verdict | None, floor_db: float) -> Verdict:
    """A failed verdict that says so where the export passed with a lower floor than ours."""
    if verdict.passed is not False or recorded is None or recorded.floor_db >= floor_db:
        return verdict
    note = f"it was exported with --min-psnr {recorded.floor_db:g}: give the same to verify"
    return replace(verdict, reason=f"{verdict.reason}; {note}" if verdict.reason else note)


def part_floor(scheme: Scheme, part: Part, floor_db: float | None) -> float:
    """The floor of a part: the scheme's for its activations, or ``floor_db``."""
    return scheme.floor(part.scheme.activations) if floor_db is None else floor_db


def pass_floor(scheme: Scheme, floor_db: float | None) -> float:
    """The floor of a loop's passes: the scheme's, which a lower ``floor_db`` lowers, too."""
    return min(scheme.pass_floor_db, *([] if floor_db is None else [floor_db]), metrics.CEILING_DB)


def stage_of(scheme: Scheme) -> str:
    """The last stage of the way torch → folded → exported → quantised that an artefact took."""
    return "quantised" if isinstance(scheme.weights, IntWeights) else "exported"


def prove_part(
    target: str,
    runtimes: Sequence[Runtime],
    part: Part,
    task: str,
    cases: Cases,
    floor_db: float,
) -> list[Verdict]:
    """Structure first, then each runtime that is here; two that ran are compared."""
    structure = structure_of(target, part, task)
    _check_cases(part, task, cases)
    stage, entry = stage_of(SCHEMES[part.scheme.name]), part.entry_of(task)
    labels = {"component": part.component, "task": task, "floor_db": floor_db}
    expected = [outputs for _, outputs in cases]
    checked = f"its structure was checked ({sum(structure.operators.values())} operators)"
    verdicts: list[Verdict] = []
    results: list[tuple[str, list[Arrays]]] = []
    for runtime in runtimes:
        runner, reason = runtime.runner()
        if runner is None:
            verdicts.append(metrics.not_run(**labels, stage=stage, reason=f"{reason}; {checked}"))
            continue
        try:
            session = runtime.open(part.path, entry)
            outputs: list[Arrays] = [session(inputs) for inputs, _ in cases]
        except RuntimeUnavailable as error:
            verdicts.append(metrics.not_run(**labels, stage=stage, reason=f"{error}; {checked}"))
            continue
        except ParityError as error:
            verdicts.append(metrics.broken(**labels, stage=stage, runner=runner, reason=str(error)))
            continue
        verdicts.append(metrics.judge(expected, outputs, **labels, stage=stage, runner=runner))
        results.append((runner, outputs))
    for runner, outputs in results[1:]:
        pair = f"{runner} against {results[0][0]}"
        verdicts.append(
            metrics.judge(results[0][1], outputs, **labels, stage=RUNTIMES, runner=pair)
        )
    return verdicts


def _check_cases(part: Part, task: str, cases: Cases) -> None:
    """Refuse goldens whose tensors are not the part's inputs and outputs."""
    shapes = {spec.name: spec.shape for spec in part.inputs_of(task)}
    for inputs, outputs in cases:
        if set(outputs) != {spec.name for spec in part.outputs}:
            raise BundleError(f"{bundle.GOLDENS}: outputs of {task!r} are not those of the part")
        if shapes != {name: value.shape for name, value in inputs.items()}:
            raise BundleError(f"{bundle.GOLDENS}: inputs of {task!r} are not those of the part")
