"""How near an artefact is to PyTorch: PSNR, floors, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mtu_export.spec import Arrays, Verdict

CEILING_DB = 300.0
"""Reported for equal tensors, whose PSNR is infinite."""


def psnr(reference: np.ndarray, found: np.ndarray) -> float:
    """20·log10(max|reference| / rmse) in dB; the convention of ml-stable-diffusion.

    Equal tensors give ``CEILING_DB``, anything not finite gives minus infinity.
    """
    if reference.shape != found.shape or not np.isfinite(found).all():
        return -np.inf
    wide = reference.astype(np.float64)
    rmse = np.sqrt(np.mean((wide - found.astype(np.float64)) ** 2))
    peak = np.abs(wide).max()
    if rmse == 0:
        return CEILING_DB
    return min(CEILING_DB, float(20 * np.log10(peak / rmse))) if peak > 0 else -np.inf


def snr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """10·log10(Σ reference² / Σ (reference − found)²) in dB, up to ``CEILING_DB``."""
    signal, noise = float(np.sum(reference**2)), float(np.sum((reference - found) ** 2))
    if not np.isfinite(noise):
        return -np.inf
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, float(10 * np.log10(signal / noise))) if signal > 0 else -np.inf


def judge(
    references: Sequence[Arrays],
    found: Sequence[Arrays],
    *,
    component: str,
    task: str,
    stage: str,
    floor_db: float,
    runner: str,
) -> Verdict:
    """The verdict of the worst case and tensor against ``floor_db``."""
    pairs = [
        (wanted[name], got.get(name, np.empty(0)))
        for wanted, got in zip(references, found, strict=True)
        for name in wanted
    ]
    worst = min(psnr(*pair) for pair in pairs)
    finite = bool(np.isfinite(worst))
    return Verdict(
        component=component,
        task=task,
        stage=stage,
        psnr_db=round(worst, 2) if finite else None,
        max_abs=max(float(np.abs(a - b).max()) for a, b in pairs) if finite else None,
        floor_db=floor_db,
        runner=runner,
        passed=worst >= floor_db,
        reason=None if finite else "the output holds NaN or Inf or has another shape",
    )


def not_run(*, component: str, task: str, stage: str, floor_db: float, reason: str) -> Verdict:
    """The verdict of an artefact that cannot run here; never a pass."""
    return Verdict(
        component=component,
        task=task,
        stage=stage,
        psnr_db=None,
        max_abs=None,
        floor_db=floor_db,
        runner=None,
        passed=None,
        reason=reason,
    )


def broken(
    *, component: str, task: str, stage: str, floor_db: float, runner: str, reason: str
) -> Verdict:
    """The verdict of an artefact whose runtime found it not fit to be compared."""
    row = not_run(component=component, task=task, stage=stage, floor_db=floor_db, reason=reason)
    return replace(row, runner=runner, passed=False)


def failure(verdicts: Sequence[Verdict]) -> str | None:
    """One line on the first verdict below its floor, or null."""
    for row in verdicts:
        if row.passed is False:
            got = row.reason or f"{row.psnr_db:.1f} dB, floor {row.floor_db:g} dB"
            return f"{row.component} of task {row.task!r} ({row.stage}, {row.runner}): {got}"
    return None
