"""PSNR as the field defines it, and verdicts that can fail."""

from __future__ import annotations

import numpy as np
import pytest

from mtu_export.bundle import metrics


def test_psnr_is_the_published_formula() -> None:
    reference = np.array([1.0, -2.0, 4.0], np.float32)
    actual = reference + np.array([0.1, -0.1, 0.1], np.float32)
    assert metrics.psnr(reference, actual) == pytest.approx(20 * np.log10(4 / 0.1), abs=1e-4)
    assert metrics.psnr(reference, reference) == metrics.CEILING_DB
    assert metrics.psnr(reference, actual * np.nan) == -np.inf
    assert metrics.psnr(reference, actual[:2]) == -np.inf
    assert metrics.psnr(np.zeros(3), np.ones(3)) == -np.inf


def _judge(actual: np.ndarray, floor: float) -> metrics.Verdict:
    reference = np.linspace(-1, 1, 50, dtype=np.float32)
    return metrics.judge(
        [{"y": reference}, {"y": reference}],
        [{"y": reference}, {"y": actual}],
        part="unet",
        task="edit",
        stage="exported",
        floor_db=floor,
        runner="test 1",
    )


def test_the_worst_case_decides() -> None:
    reference = np.linspace(-1, 1, 50, dtype=np.float32)
    near = reference + np.float32(1e-3)
    passed, failed = _judge(near, 50), _judge(near, 70)
    assert passed.passed is True
    assert failed.passed is False
    assert passed.psnr_db == pytest.approx(60, abs=0.1)
    assert "floor 70 dB" in str(metrics.failure([passed, failed]))
    assert metrics.failure([passed]) is None


def test_nan_fails_with_a_reason() -> None:
    verdict = _judge(np.full(50, np.nan, np.float32), 10)
    assert verdict.passed is False
    assert verdict.psnr_db is None
    assert "NaN" in str(verdict.reason)


def test_not_run_is_never_a_pass() -> None:
    verdict = metrics.not_run(part="unet", task="t", stage="r", floor_db=1, reason="no Mac")
    assert verdict.passed is None
    assert metrics.failure([verdict]) is None


def test_a_verdict_without_a_figure_is_a_line_too() -> None:
    """NaN has no PSNR: the reason alone is shown."""
    labels = {"part": "unet", "task": "edit", "stage": "folded", "floor_db": 90.0}
    verdict = metrics.broken(**labels, runner="torch", reason="NaN first appears in conv_in")
    assert metrics.failure([verdict]) == (
        "unet of task 'edit' (folded, torch): NaN first appears in conv_in"
    )
