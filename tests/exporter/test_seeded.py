"""Seeded inputs look like the real ones, and come again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mtu_export.exporter import golden_inputs, options
from mtu_export.models import mtu


def test_goldens_are_of_the_seed_alone(tiny_sdxl: Path) -> None:
    plan = options.resolve(target="onnx", model=tiny_sdxl, task="fill")
    task = plan.tasks[0]
    specs = mtu.graph(mtu.load(tiny_sdxl).components["unet"], plan, task).inputs
    goldens = golden_inputs.goldens(specs, task, plan)
    others = golden_inputs.goldens(specs, task, replace(plan, seed=1))
    assert [float(case["timestep"][0]) for case in goldens] == [981.0, 501.0, 21.0]
    for golden in goldens:
        assert set(np.unique(golden["sample"][:, 4])) == {0.0, 1.0}
        assert golden["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]
        for case in others:
            assert not np.array_equal(golden["sample"], case["sample"])
    again = golden_inputs.goldens(specs, task, plan)
    assert all(
        np.array_equal(a["sample"], b["sample"]) for a, b in zip(goldens, again, strict=True)
    )
