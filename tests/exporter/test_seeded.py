"""Seeded inputs look like the real ones, and come again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mtu_export.exporter import options
from mtu_export.exporter.reference import Reference
from mtu_export.spec import Arrays


def test_goldens_are_of_the_seed_alone(tiny_sdxl: Path) -> None:
    plan = options.resolve(target="onnx", model=tiny_sdxl, task="fill")
    (task,) = plan.tasks
    graph = plan.model.load("unet").graph(task, plan.size, plan.batch)

    def seeded(seed: int) -> tuple[Arrays, ...]:
        reference = Reference(replace(plan, seed=seed), task, None, None)
        return reference.golden_inputs(reference.flow.call("unet"), graph)

    goldens, others, again = seeded(plan.seed), seeded(plan.seed + 1), seeded(plan.seed)
    assert [float(case["timestep"][0]) for case in goldens] == [981.0, 501.0, 21.0]
    for golden in goldens:
        assert set(np.unique(golden["sample"][:, 4])) == {0.0, 1.0}
        assert golden["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]
        for case in others:
            assert not np.array_equal(golden["sample"], case["sample"])
    assert all(
        np.array_equal(a["sample"], b["sample"]) for a, b in zip(goldens, again, strict=True)
    )
