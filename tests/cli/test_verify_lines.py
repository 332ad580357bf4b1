"""What `verify` says of verdicts that nothing here measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtu_export import bundle
from mtu_export.targets.onnx import running
from tests.support import handmade
from tests.support.typed import run

TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"


def test_a_bundle_of_which_nothing_ran_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "runner", lambda: (None, "onnxruntime is not installed"))
    code, _, err = run(["verify", str(TESTDATA)], monkeypatch, capfd)
    assert code == 4
    assert "edit-onnx-int8 ran here: onnxruntime is not installed" in err


def test_a_recorded_verdict_is_shown_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The fold needs the checkpoint: what the bundle says of it is neither a pass nor a failure."""
    folder = handmade.copy(TESTDATA, tmp_path / "bundle")
    proof = bundle.read_manifest(folder).proof
    index = next(i for i, verdict in enumerate(proof) if verdict.stage == "folded")
    handmade.edit(folder, "proof", index, "passed", value=False)
    code, out, _ = run(["verify", str(folder)], monkeypatch, capfd)
    (line,) = [line for line in out.splitlines() if "folded" in line]
    assert code == 0
    assert "recorded" in line
    assert "FAILED" not in line
