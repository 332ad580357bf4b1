"""A bundle against its goldens: every part in its own runtime, its weights, its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mtu_export import bundle, targets
from mtu_export.bundle import PIPELINE, Bundle, Part, TaskRecord, metrics, witness
from mtu_export.bundle.loop_proof import PASSES, prove_loop
from mtu_export.bundle.structure import structure_of
from mtu_export.spec import (
    Arrays,
    BundleError,
    IntWeights,
    ParityError,
    Runtime,
    RuntimeUnavailable,
    Scheme,
    Structure,
    ToolchainError,
    Verdict,
)
from mtu_export.spec.catalog import SCHEMES

Cases = Sequence[tuple[Arrays, Arrays]]
GOOD_PASS_DB = 60.0
"""No wrong coefficient or scale leaves a pass above it, so it is never a failure."""
KERNEL_LOSS_DB = 10.0
"""How far a pass may fall below the export's: other kernels cost int8 weights a few dB."""
RUNTIMES = "runtimes"
"""The stage of a verdict that compares two runtimes on one artefact."""


def verify_bundle(
    source: Bundle, floor_db: float | None = None, runner: str | None = None
) -> list[Verdict]:
    """Run every part of a bundle against its goldens, then its witness, then each task's loop.

    Where no runtime is here, a part's structure is checked and its verdict is "not run". The floor
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
    recorded = {(v.part, v.task, v.stage): v for v in source.proof}
    verdicts = []
    for part in source.parts:
        scheme = SCHEMES[part.scheme.name]
        for task in part.entries:
            cases = goldens.cases(part.name, task)
            recorded_verdict = recorded.get((part.name, task, stage_of(scheme)))
            if not cases and task not in part.proved and recorded_verdict is None:
                continue
            if not cases or len(cases) < bundle.CASES:
                raise BundleError(
                    f"{bundle.GOLDENS} has fewer than {bundle.CASES} cases of {part.name}/{task}"
                )
            floor = part_floor(scheme, part, floor_db)
            of_task = prove_part(target, runtimes, part, task, cases, floor)
            verdicts += [
                _with_recorded_floor(verdict, recorded_verdict, floor) for verdict in of_task
            ]
            if not any(verdict.passed is False for verdict in of_task):
                verdicts += witness.check(source, part, task, cases[0][0])
    for task in source.tasks:
        recorded_verdict = recorded.get((PIPELINE, task.name, PASSES))
        for runtime in runtimes:
            verdicts += _verify_loop(source, task, recorded_verdict, floor_db, runtime)
    return verdicts


def _verify_loop(
    source: Bundle,
    task: TaskRecord,
    recorded: Verdict | None,
    floor_db: float | None,
    runtime: Runtime,
) -> list[Verdict]:
    """The verdicts of a task's loop.

    A wrong scale or guidance can stay above the low floor for int8 weights. So the floor is raised
    to what the export reached, less ``KERNEL_LOSS_DB``, but never above ``GOOD_PASS_DB``.
    """
    least = pass_floor(SCHEMES[source.manifest.scheme.name], floor_db)
    reached = None if recorded is None else recorded.psnr_db
    floor = least if reached is None else max(least, min(reached - KERNEL_LOSS_DB, GOOD_PASS_DB))
    verdicts = prove_loop(source, task, floor, runtime)
    if not verdicts and recorded is not None:
        raise BundleError(f"{bundle.GOLDENS} has no loop/{task.name}, which the export ran")
    if not verdicts and {*task.flow.parts} <= {part.name for part in source.parts}:
        labels = {"part": PIPELINE, "task": task.name, "stage": PASSES, "floor_db": least}
        verdicts = [metrics.not_run(**labels, reason=f"{bundle.GOLDENS} holds no loop of it")]
    return [_with_recorded_floor(verdict, recorded, least) for verdict in verdicts]


def _with_recorded_floor(verdict: Verdict, recorded: Verdict | None, floor_db: float) -> Verdict:
    """A failed verdict with a note where the export was judged by a lower floor."""
    if verdict.passed is not False or recorded is None or recorded.floor_db >= floor_db:
        return verdict
    note = f"it was exported with --min-psnr {recorded.floor_db:g}: give the same to verify"
    return replace(verdict, reason=f"{verdict.reason}; {note}" if verdict.reason else note)


def part_floor(scheme: Scheme, part: Part, floor_db: float | None) -> float:
    """The floor of a part: the scheme's for its activations, or ``floor_db``."""
    return scheme.floor(part.scheme.activations) if floor_db is None else floor_db


def pass_floor(scheme: Scheme, floor_db: float | None) -> float:
    """The floor of a loop's passes: the scheme's, or ``floor_db`` where that is lower."""
    return min(scheme.pass_floor_db, *([] if floor_db is None else [floor_db]), metrics.CEILING_DB)


def stage_of(scheme: Scheme) -> str:
    """The stage of an artefact's verdict: a quantised one of integer weights, else exported."""
    return "quantised" if isinstance(scheme.weights, IntWeights) else "exported"


def prove_part(
    target: str,
    runtimes: Sequence[Runtime],
    part: Part,
    task: str,
    cases: Cases,
    floor_db: float,
) -> list[Verdict]:
    """Check a part's structure, then run it in each runtime; compare two that ran."""
    structure = structure_of(target, part, task)
    _require_label(target, part, structure)
    _check_cases(part, task, cases)
    stage, entry = stage_of(SCHEMES[part.scheme.name]), part.entry_of(task)
    labels = {"part": part.name, "task": task, "floor_db": floor_db}
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


def _require_label(target: str, part: Part, structure: Structure) -> None:
    """Refuse a scheme that the file contradicts: the label chooses the floor."""
    info, where = targets.load(target).info, f"{bundle.MANIFEST}: {part.name}"
    integer = isinstance(SCHEMES[part.scheme.name].weights, IntWeights)
    if (
        integer
        and info.integer_operators
        and not {*info.integer_operators} & {*structure.operators}
    ):
        raise BundleError(
            f"{where}: its scheme is {part.scheme.name}, the file has no such weights"
        )
    shown = {*info.activation_operators} & {*structure.operators}
    if part.scheme.activations == "dynamic_int8" and not (info.int8_activations or shown):
        raise BundleError(f"{where}: {target} quantises no activations")


def _check_cases(part: Part, task: str, cases: Cases) -> None:
    """Refuse goldens whose tensors are not the part's inputs and outputs."""
    shapes = {spec.name: spec.shape for spec in part.inputs_of(task)}
    for inputs, outputs in cases:
        if set(outputs) != {spec.name for spec in part.outputs}:
            raise BundleError(f"{bundle.GOLDENS}: outputs of {task!r} are not those of the part")
        if shapes != {name: value.shape for name, value in inputs.items()}:
            raise BundleError(f"{bundle.GOLDENS}: inputs of {task!r} are not those of the part")
