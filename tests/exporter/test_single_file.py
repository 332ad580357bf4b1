"""A model in one file exports to what the folder exports to that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtu_export import exporter
from mtu_export.bundle import GOLDENS
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import assembly
from mtu_export.exporter.options import resolve
from tests.support import ldm

pytestmark = pytest.mark.slow
PARTS = ("text_encoder", "vae_decoder")


def goldens(model: Path, out: Path, **options: Any) -> dict[str, np.ndarray]:
    """Inputs and outputs of every part and of the loop, as PyTorch computes them."""
    exporter.export(resolve(target="reference", model=model, out=out, **options))
    return load_file(out / GOLDENS)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_its_parts_compute_what_those_of_the_folder_compute(kind: str, tmp_path: Path) -> None:
    folder, file = ldm.single(kind, tmp_path)
    predicts = {"prediction_type": "v_prediction"} if kind == "sd2" else {}
    expected = goldens(folder, tmp_path / "a", **predicts)
    actual = goldens(file, tmp_path / "b", tokenizer=[folder], **predicts)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "f":
            assert psnr(value, actual[name]) >= 120, name
        else:
            assert np.array_equal(value, actual[name]), name


def test_a_stopped_export_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = ldm.single("sd1", tmp_path)
    options: dict[str, Any] = {"target": "onnx", "model": file, "out": tmp_path / "out"}
    plan = resolve(**options, tokenizer=[folder], components=PARTS, skip_existing=True)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assembly, "_write_bundle", stop)
        with pytest.raises(KeyboardInterrupt):
            exporter.export(plan)
    seen: list[str] = []

    def watch(stage: str) -> Any:
        seen.append(stage)
        return exporter.unwatched(stage)

    bundle = exporter.export(plan, watch)
    assert {part.name for part in bundle.parts} == {*PARTS}
    assert {f"{name}: kept from the interrupted export" for name in PARTS} <= {*seen}
