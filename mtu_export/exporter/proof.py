"""Verdicts of parts that an export has just written, and the error for a failed one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from mtu_export import targets
from mtu_export.bundle import Part, metrics, verification
from mtu_export.spec import Arrays, ParityError, Plan, Task, Verdict
from mtu_export.spec.catalog import SCHEMES

Cases = Sequence[tuple[Arrays, Arrays]]


def prove_fresh_part(plan: Plan, part: Part, task: str, cases: Cases) -> list[Verdict]:
    """Verdicts of a task's entry of a part; ``plan`` has the part's scheme."""
    runtimes = targets.runtimes(targets.load(plan.target))
    floor = verification.part_floor(plan.scheme, part, plan.floor_db)
    return verification.prove_part(plan.target, runtimes, part, task, cases, floor)


def prove_fold(
    part: str, expected: Sequence[Arrays], actual: Sequence[Arrays], task: Task
) -> Verdict:
    """The verdict of a specialised part against the live one, both in PyTorch."""
    version = importlib.metadata.version("torch")
    return metrics.judge(
        expected,
        actual,
        part=part,
        task=task.name,
        stage="folded",
        floor_db=SCHEMES["fp32"].floor_db,
        runner=f"torch {version}",
    )


def refuse_failure(verdicts: Sequence[Verdict], hint: str | None = None) -> None:
    """Raise ``ParityError`` for the first verdict below its floor."""
    line = metrics.failure(verdicts)
    if line is not None:
        raise ParityError(f"parity below the floor: {line}" + (f"; {hint}" if hint else ""))
