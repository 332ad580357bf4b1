"""Seeded inputs look like the real ones, and calibration never sees the goldens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtu_export import calibrate, plan
from mtu_export.models import mtu


def test_goldens_and_calibration_are_different_streams(tiny_sdxl: Path) -> None:
    found = plan.resolve(target="onnx", model=tiny_sdxl, task="fill")
    task = found.tasks[0]
    specs = mtu.graph(mtu.load(tiny_sdxl).components["unet"], found, task).inputs
    goldens = calibrate.goldens(specs, task, found)
    ranges = calibrate.calibration(specs, task, found)
    assert [float(case["timestep"][0]) for case in goldens] == [981.0, 501.0, 21.0]
    for golden in goldens:
        assert set(np.unique(golden["sample"][:, 4])) == {0.0, 1.0}
        assert golden["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]
        for case in ranges:
            assert not np.array_equal(golden["sample"], case["sample"])
    again = calibrate.goldens(specs, task, found)
    assert all(
        np.array_equal(a["sample"], b["sample"]) for a, b in zip(goldens, again, strict=True)
    )
