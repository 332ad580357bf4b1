"""How close an artefact is to PyTorch: PSNR, floors, verdicts.

PSNR here is 20·log10(max|reference| / rmse), with the reference's own largest value as its peak
(the convention of ml-stable-diffusion): it is for tensors of any range. The PSNR of pictures has
the fixed peak of their range, 2 for −1..1 or 255 for 8 bits. The two differ by
20·log10(2 / max|reference|): they agree on a picture that reaches black and white and differs
from one that does not. For normal values of a latent's size, PSNR is about 12 dB above SNR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mtu_export.spec import Arrays, PlanError, Verdict

CEILING_DB = 300.0
"""Reported for equal tensors, whose PSNR is infinite."""


def psnr(reference: np.ndarray, actual: np.ndarray) -> float:
    """20·log10(max|reference| / rmse) in dB.

    Equal tensors give ``CEILING_DB``, anything not finite gives minus infinity.
    """
    if reference.shape != actual.shape or not np.isfinite(actual).all():
        return -np.inf
    wide = reference.astype(np.float64)
    rmse = np.sqrt(np.mean((wide - actual.astype(np.float64)) ** 2))
    peak = np.abs(wide).max()
    if rmse == 0:
        return CEILING_DB
    return min(CEILING_DB, float(20 * np.log10(peak / rmse))) if peak > 0 else -np.inf


def snr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """10·log10(Σ reference² / Σ (reference − actual)²) in dB, up to ``CEILING_DB``."""
    signal, noise = float(np.sum(reference**2)), float(np.sum((reference - actual) ** 2))
    if not np.isfinite(noise):
        return -np.inf
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, float(10 * np.log10(signal / noise))) if signal > 0 else -np.inf


def require_floor(min_psnr: float | None) -> None:
    """Raise ``PlanError`` for a ``--min-psnr`` that is not a PSNR in dB."""
    if min_psnr is not None and not 0 <= min_psnr <= CEILING_DB:
        raise PlanError(f"--min-psnr must be from 0 to {CEILING_DB:g} dB, got {min_psnr}")


def judge(
    references: Sequence[Arrays],
    actual: Sequence[Arrays],
    *,
    part: str,
    task: str,
    stage: str,
    floor_db: float,
    runner: str,
) -> Verdict:
    """The verdict of the worst case and tensor against ``floor_db``."""
    pairs = [
        (name, reference[name], outputs.get(name, np.empty(0)))
        for reference, outputs in zip(references, actual, strict=True)
        for name in reference
    ]
    worst, name = min((psnr(expected, output), name) for name, expected, output in pairs)
    finite, passed = bool(np.isfinite(worst)), worst >= floor_db
    reason = None if finite else "the output holds NaN or Inf or has another shape"
    if finite and not passed and len(references[0]) > 1:
        reason = f"the worst is {name}"
    return Verdict(
        part=part,
        task=task,
        stage=stage,
        psnr_db=round(worst, 2) if finite else None,
        max_abs=max(float(np.abs(a - b).max()) for _, a, b in pairs) if finite else None,
        floor_db=floor_db,
        runner=runner,
        passed=passed,
        reason=reason,
    )


def not_run(*, part: str, task: str, stage: str, floor_db: float, reason: str) -> Verdict:
    """The verdict of an artefact that cannot run here; never a pass."""
    return Verdict(
        part=part,
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
    *, part: str, task: str, stage: str, floor_db: float, runner: str, reason: str
) -> Verdict:
    """The verdict of an artefact whose runtime failed, with no output to compare."""
    verdict = not_run(part=part, task=task, stage=stage, floor_db=floor_db, reason=reason)
    return replace(verdict, runner=runner, passed=False)


def failure(verdicts: Sequence[Verdict]) -> str | None:
    """One line on the first verdict below its floor, or None."""
    for verdict in verdicts:
        if verdict.passed is False:
            where = f"{verdict.part} of task {verdict.task!r}"
            texts = [] if verdict.reason is None else [verdict.reason]
            if verdict.psnr_db is not None:
                texts.insert(0, f"{verdict.psnr_db:.1f} dB, floor {verdict.floor_db:g} dB")
            why = "; ".join(texts)
            return f"{where} ({verdict.stage}, {verdict.runner}): {why}"
    return None
