"""Goldens from somewhere else: met, refused in one line, or missed where the export proved them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export import bundle, targets
from mtu_export.bundle import runner, sampler, verification
from mtu_export.bundle.loop_proof import prove_loop
from mtu_export.spec import BundleError
from tests.bundle.test_generate import request
from tests.support import handmade


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "b", "fill")


def golden_of(folder: Path) -> dict[str, np.ndarray | None]:
    """What the loop itself makes, as its golden."""
    asked, loop = request("fill"), runner.open_loop(bundle.read(folder), "fill")
    denoise = runner.open_denoiser(loop, asked)
    golden: dict[str, np.ndarray | None] = {
        "noise": asked.noise,
        "input": asked.image,
        "mask": asked.mask,
    }
    x = asked.noise
    passes = sampler.trajectory(loop.schedules[asked.steps], asked.noise, denoise)
    for index, (m, x) in enumerate(passes):
        golden |= {f"outputs/{index}": m, f"latents/{index}": x}
    return {**golden, "image": runner.open_decoder(loop)(x)}


def write_golden(folder: Path, golden: dict[str, np.ndarray | None]) -> Path:
    """Write the golden of a loop; what is None is left out."""
    tensors = {name: value for name, value in golden.items() if value is not None}
    bundle.write_goldens(folder, {}, {"fill": tensors})
    handmade.reseal(folder)
    asked = request("fill")
    handmade.edit(folder, "loop", "golden", value={"prompt": asked.prompt, "steps": asked.steps})
    return folder


def with_golden(folder: Path, **changes: Any) -> Path:
    """Write what the loop itself makes as its golden; None takes a tensor out."""
    renamed = {name.replace("_", "/"): value for name, value in changes.items()}
    return write_golden(folder, {**golden_of(folder), **renamed})


def test_the_golden_of_a_loop_is_met(copied: Path) -> None:
    exported = bundle.read(with_golden(copied))
    passes, free = prove_loop(exported, exported.tasks[0], 60.0)
    assert (passes.component, passes.stage, passes.passed) == ("pipeline", "passes", True)
    assert passes.psnr_db == free.psnr_db == 300.0
    assert (free.stage, free.passed, free.floor_db) == ("loop", None, 0.0)
    assert free.runner
    wrong = bundle.read(with_golden(copied, image=np.ones((1, 3, 16, 24), np.float32)))
    verdict = prove_loop(wrong, wrong.tasks[0], 60.0)[0]
    assert (verdict.passed, verdict.reason) == (False, "the worst is image")


def test_a_pass_is_proved_from_the_references_history(copied: Path) -> None:
    """A reference that took another way: each pass of it is met, and the free loop ends elsewhere.

    So a chaotic loop, which turns a rounding into another picture, is no failure of its parts.
    """
    golden = golden_of(copied)
    loop = runner.open_loop(bundle.read(copied), "fill")
    denoise = runner.open_denoiser(loop, request("fill"))
    schedule = loop.schedules[4]
    start = sampler.start(schedule, request("fill").noise)
    states = [(start, np.asarray(golden["outputs/0"]))]
    x = np.asarray(golden["latents/0"])
    golden["latents/0"] = x = x + np.float32(1e-4) * np.float32(np.abs(x).max())
    for index in range(1, 5):
        states.insert(0, (x, sampler.ask(denoise, x, schedule, index)))
        x = sampler.advance(schedule.passes[index], states)
        golden |= {f"outputs/{index}": states[0][1], f"latents/{index}": x}
    golden["image"] = runner.open_decoder(loop)(x)
    exported = bundle.read(write_golden(copied, golden))
    passes, free = prove_loop(exported, exported.tasks[0], 60.0)
    assert (passes.passed, passes.reason) == (True, None)
    assert passes.psnr_db is not None
    assert free.psnr_db is not None
    assert 75 < passes.psnr_db < 85, "the step of pass 0 that was moved, and no other"
    for index in (0, 3):
        moved = {**golden, f"latents/{index}": np.asarray(golden[f"latents/{index}"]) * 1.01}
        moved = {name: np.asarray(value, np.float32) for name, value in moved.items()}
        wrong = bundle.read(write_golden(copied, moved))
        assert prove_loop(wrong, wrong.tasks[0], 60.0)[0].passed is False


def test_goldens_before_outputs_were_stored_are_not_run(copied: Path) -> None:
    lost: dict[str, Any] = {f"outputs_{i}": None for i in range(5)}
    handmade.edit(with_golden(copied, **lost), "schema_version", value="1.2")
    exported = bundle.read(copied)
    passes, free = prove_loop(exported, exported.tasks[0], 60.0)
    assert (passes.passed, free.psnr_db) == (None, 300.0)
    assert "older than schema 1.3" in str(passes.reason)
    handmade.edit(copied, "schema_version", value="1.3")
    exported = bundle.read(copied)
    with pytest.raises(BundleError, match="outputs/0 is missing"):
        prove_loop(exported, exported.tasks[0], 60.0)


@pytest.mark.parametrize(
    ("golden", "changes", "message"),
    [
        (None, {"noise": None}, "noise is missing"),
        (None, {"image": None}, "noise is missing"),
        (None, {"latents_4": None}, "loop/fill/latents/4 is missing"),
        (None, {"outputs_2": None}, "loop/fill/outputs/2 is missing"),
        (None, {"outputs_2": np.zeros((1, 4, 9, 9), np.float32)}, r"outputs/2 must be \[1, 4"),
        (None, {"noise": np.zeros((1, 4, 9, 9), np.float32)}, r"loop/fill/noise must be \[1, 4, 2"),
        (None, {"mask": None}, "task 'fill' needs --mask"),
        (None, {"mask": np.zeros((1, 1, 8, 8), np.float32)}, r"loop/fill/mask must be \[1, 1, 16"),
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
        prove_loop(exported := bundle.read(copied), exported.tasks[0], 60.0)


def of_two_tasks(folder: Path, *lost: str) -> Path:
    """A bundle with a second task that runs the files of the first, proved but for what is lost."""
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["tasks"].append({**manifest["tasks"][0], "name": "other"})
    for row in manifest["parts"]:
        row["entries"]["other"] = "model.onnx"
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    read, asked, cases = bundle.read(folder), request("fill"), {}
    for part in read.parts:
        session = targets.runtime(targets.load("onnx")).open(part.path, "model.onnx")
        inputs = {spec.name: np.ones(spec.shape, spec.dtype) for spec in part.inputs}
        cases[f"{part.component}/fill"] = [(inputs, session(inputs))] * bundle.CASES
    cases["unet/other"] = cases["unet/fill"]
    loop: dict[str, Any] = golden_of(folder)
    loops = {f"loop/{task}": loop for task in ("fill", "other")}
    bundle.write_goldens(
        folder,
        {name: tensors for name, tensors in cases.items() if name not in lost},
        {name[5:]: tensors for name, tensors in loops.items() if name not in lost},
    )
    handmade.reseal(folder)
    handmade.edit(folder, "loop", "golden", value={"prompt": asked.prompt, "steps": asked.steps})
    row = {"psnr_db": 200.0, "max_abs": 0.0, "floor_db": 60, "runner": "none", "reason": None}
    proof = [
        {**row, "component": component, "task": task, "rung": stage, "passed": True}
        for component, stage in (("unet", "exported"), ("pipeline", "passes"))
        for task in ("fill", "other")
    ]
    handmade.edit(folder, "proof", value=proof)
    return folder


def test_what_the_export_proved_must_have_its_goldens(copied: Path, tmp_path: Path) -> None:
    """A task whose goldens are gone would be left out in silence, whatever it runs."""
    whole = shutil.copytree(copied, tmp_path / "whole")
    verdicts = verification.verify_bundle(bundle.read(of_two_tasks(Path(whole))))
    assert all(verdict.passed for verdict in verdicts if verdict.stage != "loop")
    assert {
        (verdict.component, verdict.task) for verdict in verdicts if verdict.task == "other"
    } == {
        ("unet", "other"),
        ("pipeline", "other"),
    }
    for lost, message in (("unet/other", "3 cases of unet/other"), ("loop/other", "no loop/other")):
        folder = Path(shutil.copytree(copied, tmp_path / lost.replace("/", "-")))
        with pytest.raises(BundleError, match=message):
            verification.verify_bundle(bundle.read(of_two_tasks(folder, lost)))


def test_a_second_task_of_the_unet_must_have_goldens_of_its_own(copied: Path) -> None:
    """With its row of the proof gone too, it would run the first one's entry and no one see it."""
    folder = of_two_tasks(copied, "unet/other", "loop/other")
    recorded = bundle.read(folder).manifest.proof
    handmade.edit(folder, "proof", value=[v.to_json() for v in recorded if v.task != "other"])
    with pytest.raises(BundleError, match="has fewer than 3 cases of unet/other"):
        verification.verify_bundle(bundle.read(folder))
