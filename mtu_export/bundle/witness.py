"""Witnesses: numbers in the manifest that change with a part's weights, on any machine.

A floor accepts whatever is close enough to PyTorch, so it cannot tell an export's weights from
slightly different ones. A witness can: from the same weights and inputs, a target's runtime
computes the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtu_export import targets
from mtu_export.bundle import MANIFEST, Bundle, Part, metrics
from mtu_export.spec import Arrays, BundleError, Runtime, Verdict

STAGE = "witness"
FLOOR_DB = 100.0
"""SNR: other kernels on one machine agree to 133 dB; flipped int8 codes are below 100."""


def measure(
    target: str, part: Part, cases: Mapping[str, Sequence[tuple[Arrays, Arrays]]]
) -> dict[str, list[float]]:
    """The witness of each task's first case; empty where no runtime of the target has one."""
    runtime, _ = _runtime(target)
    if runtime is None or runtime.witness is None:
        return {}
    witness = {}
    for task, pairs in cases.items():
        numbers = runtime.witness(part.path, part.entry_of(task), pairs[0][0])
        if bool(np.isfinite(numbers).all()):
            witness[task] = list(numbers)
    return witness


def check(source: Bundle, part: Part, task: str, inputs: Arrays) -> list[Verdict]:
    """The verdict of a part's weights; empty for a target whose runtimes have no witness.

    ``inputs`` are those of the task's first golden case. "Not run" where the manifest has no
    witness. Raises ``BundleError`` for one that is malformed.
    """
    runtime, reason = _runtime(source.manifest.target)
    if runtime is None and reason is None:
        return []
    labels = {"part": part.name, "task": task, "stage": STAGE, "floor_db": FLOOR_DB}
    recorded = _recorded(part, task)
    if recorded is None:
        reason = f"the manifest has no witness of the weights of {part.name}"
    if runtime is None or runtime.witness is None or recorded is None:
        return [metrics.not_run(**labels, reason=str(reason))]
    numbers = np.array(runtime.witness(part.path, part.entry_of(task), inputs))
    if len(recorded) != len(numbers):
        raise BundleError(f"{MANIFEST}: the witness of {part.name} is malformed")
    snr = metrics.snr_db(np.array(recorded, np.float64), numbers)
    passed = snr >= FLOOR_DB
    verdict = Verdict(
        **labels,
        psnr_db=round(snr, 2) if np.isfinite(snr) else None,
        max_abs=None,
        runner=runtime.runner()[0],
        passed=passed,
        reason=None if passed else "its weights are not those of the export",
    )
    return [verdict]


def _runtime(target: str) -> tuple[Runtime | None, str | None]:
    """A runtime with a witness that runs here, or the reason why the target's does not."""
    reason = None
    for runtime in targets.load(target).runtimes.values():
        if runtime.witness is not None:
            runner, reason = runtime.runner()
            if runner is not None:
                return runtime, None
    return None, reason


def _recorded(part: Part, task: str) -> tuple[float, ...] | None:
    witness = part.record.witness
    if witness and task not in witness:
        raise BundleError(f"{MANIFEST}: the witness of {part.name} has no task {task!r}")
    return witness.get(task)
