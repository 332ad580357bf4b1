"""Goldens from somewhere else: met, refused in one line, or missed where the export proved them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle, targets
from mtu_export.bundle import runner, verification
from mtu_export.spec import BundleError
from tests.bundle.test_generate import request
from tests.support import handmade


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "b", "fill")


def with_golden(folder: Path, **changes: Any) -> Path:
    """Write what the loop itself makes as its golden; None takes a tensor out."""
    given = request("fill")
    latents, image = runner.generate(runner.open_loop(bundle.read(folder)), given)
    rows = {"noise": given.noise, "image": image, "input": given.image, "mask": given.mask}
    rows |= {f"latents/{i}": x for i, x in enumerate(latents)}
    rows |= {name.replace("_", "/"): value for name, value in changes.items()}
    bundle.write_goldens(folder, {}, {"fill": {k: v for k, v in rows.items() if v is not None}})
    handmade.reseal(folder)
    handmade.edit(folder, "loop", "golden", value={"prompt": given.prompt, "steps": given.steps})
    return folder


def test_the_golden_of_a_loop_is_met(copied: Path) -> None:
    found = bundle.read(with_golden(copied))
    (row,) = verification.loop(found, found.tasks[0])
    assert (row.component, row.passed, row.psnr_db) == ("pipeline", True, 300.0)
    wrong = bundle.read(with_golden(copied, image=np.ones((1, 3, 16, 24), np.float32)))
    assert verification.loop(wrong, wrong.tasks[0])[0].passed is False


@pytest.mark.parametrize(
    ("golden", "changes", "message"),
    [
        (None, {"noise": None}, "noise is missing"),
        (None, {"image": None}, "noise is missing"),
        (None, {"latents_4": None}, "loop/fill/latents/4 is missing"),
        (
            None,
            {"noise": np.zeros((1, 4, 9, 9), np.float32)},
            r"loop/fill/noise must be \[1, 4, 2, 3\]",
        ),
        (None, {"mask": None}, "task 'fill' needs --mask"),
        (
            None,
            {"mask": np.zeros((1, 1, 8, 8), np.float32)},
            r"loop/fill/mask must be \[1, 1, 16, 24\]",
        ),
        ({"prompt": "x", "steps": 3}, {}, "no table for 3 steps"),
        ({"prompt": "x", "steps": True}, {}, "loop.golden.steps: must be an integer, got True"),
        ({"prompt": 5, "steps": 4}, {}, "loop.golden.prompt: must be a string"),
        ([], {}, "loop.golden: must be an object"),
    ],
)
def test_goldens_of_a_loop_that_are_refused(
    copied: Path, golden: Any, changes: dict[str, Any], message: str
) -> None:
    with_golden(copied, **changes)
    if golden is not None:
        handmade.edit(copied, "loop", "golden", value=golden)
    with pytest.raises(BundleError, match=message):
        verification.loop(found := bundle.read(copied), found.tasks[0])


def of_two_tasks(folder: Path, *lost: str) -> Path:
    """A bundle with a second task that runs the files of the first, proved but for what is lost."""
    found = json.loads((folder / bundle.MANIFEST).read_text())
    found["tasks"].append({**found["tasks"][0], "name": "other"})
    for row in found["parts"]:
        row["entries"]["other"] = "model.onnx"
    (folder / bundle.MANIFEST).write_text(json.dumps(found))
    read, given, cases = bundle.read(folder), request("fill"), {}
    for part in read.parts:
        session = targets.runtime(targets.load("onnx")).open(part.path, "model.onnx")
        inputs = {spec.name: np.ones(spec.shape, spec.dtype) for spec in part.inputs}
        cases[f"{part.component}/fill"] = [(inputs, session(inputs))] * bundle.CASES
    cases["unet/other"] = cases["unet/fill"]
    latents, image = runner.generate(runner.open_loop(read, "fill"), given)
    loop: dict[str, Any] = {"noise": given.noise, "input": given.image, "mask": given.mask}
    loop |= {f"latents/{i}": x for i, x in enumerate(latents)} | {"image": image}
    loops = {f"loop/{task}": loop for task in ("fill", "other")}
    bundle.write_goldens(
        folder,
        {name: rows for name, rows in cases.items() if name not in lost},
        {name[5:]: rows for name, rows in loops.items() if name not in lost},
    )
    handmade.reseal(folder)
    handmade.edit(folder, "loop", "golden", value={"prompt": given.prompt, "steps": given.steps})
    row = {"psnr_db": 200.0, "max_abs": 0.0, "floor_db": 60, "runner": "none", "reason": None}
    proof = [
        {**row, "component": component, "task": task, "rung": rung, "passed": True}
        for component, rung in (("unet", "exported"), ("pipeline", "loop"))
        for task in ("fill", "other")
    ]
    handmade.edit(folder, "proof", value=proof)
    return folder


def test_what_the_export_proved_must_have_its_goldens(copied: Path, tmp_path: Path) -> None:
    """A task whose goldens are gone would be left out in silence, whatever it runs."""
    whole = shutil.copytree(copied, tmp_path / "whole")
    rows = verification.verify_bundle(bundle.read(of_two_tasks(Path(whole))))
    assert all(row.passed for row in rows)
    assert {(row.component, row.task) for row in rows if row.task == "other"} == {
        ("unet", "other"),
        ("pipeline", "other"),
    }
    for lost, said in (("unet/other", "3 cases of unet/other"), ("loop/other", "no loop/other")):
        folder = Path(shutil.copytree(copied, tmp_path / lost.replace("/", "-")))
        with pytest.raises(BundleError, match=said):
            verification.verify_bundle(bundle.read(of_two_tasks(folder, lost)))


def test_a_second_task_of_the_unet_must_have_goldens_of_its_own(copied: Path) -> None:
    """With its row of the proof gone too, it would run the first one's entry and no one see it."""
    folder = of_two_tasks(copied, "unet/other", "loop/other")
    recorded = bundle.read(folder).manifest.proof
    handmade.edit(folder, "proof", value=[v.to_json() for v in recorded if v.task != "other"])
    with pytest.raises(BundleError, match="has not 3 cases of unet/other"):
        verification.verify_bundle(bundle.read(folder))
