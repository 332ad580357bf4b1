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
from tests.bundle.test_generate import request, translation
from tests.support import handmade


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "b", "fill")


def golden_of(folder: Path, name: str = "fill") -> dict[str, np.ndarray | None]:
    """What the loop itself makes, as its golden."""
    asked, loop = request(name), runner.open_loop(bundle.read(folder), name)
    evaluation = runner.prepare(loop, asked)
    denoise, noise = runner.open_denoiser(loop, evaluation), asked.noise
    assert noise is not None
    golden: dict[str, np.ndarray | None] = {"noise": noise}
    golden |= {f"request/{picture}": value for picture, value in asked.pictures.items()}
    schedule, x = runner.schedule_of(loop, asked), noise
    passes = sampler.trajectory(schedule, noise, denoise, evaluation.start())
    for index, (m, x) in enumerate(passes):
        golden |= {f"outputs/{index}": m, f"latents/{index}": x}
    return {**golden, "picture": runner.decode(loop, evaluation, x)}


def write_golden(
    folder: Path, golden: dict[str, np.ndarray | None], name: str = "fill", **asked: Any
) -> Path:
    """Write the golden of a loop; what is None is left out."""
    tensors = {tensor: value for tensor, value in golden.items() if value is not None}
    bundle.write_goldens(folder, {}, {name: tensors})
    handmade.reseal(folder)
    handmade.edit(folder, "golden", value={"prompt": "a red cat", "steps": 4, **asked})
    return folder


def with_golden(folder: Path, **changes: Any) -> Path:
    """Write what the loop itself makes as its golden; None takes a tensor out."""
    renamed = {name.replace("_", "/"): value for name, value in changes.items()}
    return write_golden(folder, {**golden_of(folder), **renamed})


def test_the_golden_of_a_loop_is_met(copied: Path) -> None:
    exported = bundle.read(with_golden(copied))
    passes, free = prove_loop(exported, exported.tasks[0], 60.0)
    assert (passes.part, passes.stage, passes.passed) == ("pipeline", "passes", True)
    assert passes.psnr_db == free.psnr_db == 300.0
    assert (free.stage, free.passed, free.floor_db) == ("loop", None, 0.0)
    assert free.runner
    wrong = bundle.read(with_golden(copied, picture=np.ones((1, 3, 16, 24), np.float32)))
    verdict = prove_loop(wrong, wrong.tasks[0], 60.0)[0]
    assert (verdict.passed, verdict.reason) == (False, "the worst is picture")


def test_a_pass_is_proved_from_the_references_history(copied: Path) -> None:
    """A reference that took another way: each pass of it is met, and the free loop ends elsewhere.

    So a chaotic loop, which turns a rounding into another picture, is no failure of its parts.
    """
    golden, asked = golden_of(copied), request("fill")
    loop = runner.open_loop(bundle.read(copied), "fill")
    evaluation = runner.prepare(loop, asked)
    denoise, schedule = runner.open_denoiser(loop, evaluation), loop.schedules[4, None]
    start = sampler.start(schedule, np.asarray(asked.noise))
    states = [(start, np.asarray(golden["outputs/0"]))]
    x = np.asarray(golden["latents/0"])
    golden["latents/0"] = x = x + np.float32(1e-4) * np.float32(np.abs(x).max())
    for index in range(1, 5):
        states.insert(0, (x, sampler.ask(denoise, x, schedule, index)))
        x = sampler.advance(schedule.passes[index], states)
        golden |= {f"outputs/{index}": states[0][1], f"latents/{index}": x}
    golden["picture"] = runner.decode(loop, evaluation, x)
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


def test_a_golden_with_a_start_and_noise_in_every_pass(tmp_path: Path) -> None:
    """The noise of every pass is the golden's own: with that of another pass it is not met."""
    folder = handmade.write(tmp_path / "b", "img2img")
    golden = golden_of(folder, "img2img")
    exported = bundle.read(write_golden(folder, golden, "img2img", strength=0.5))
    passes, free = prove_loop(exported, exported.tasks[0], 60.0)
    assert passes.psnr_db == free.psnr_db == 300.0
    noise = np.asarray(golden["noise"])[[0, 2, 1]]
    wrong = write_golden(folder, {**golden, "noise": noise}, "img2img", strength=0.5)
    assert prove_loop(bundle.read(wrong), exported.tasks[0], 60.0)[0].passed is False
    lost = write_golden(folder, {**golden, "noise": noise[:1]}, "img2img", strength=0.5)
    with pytest.raises(BundleError, match=r"loop/img2img/noise must be \[3, 4, 2, 3\]"):
        prove_loop(bundle.read(lost), exported.tasks[0], 60.0)


def test_tasks_of_one_bundle_have_goldens_of_their_own_tables(tmp_path: Path) -> None:
    """Of ``t2i`` without a strength beside ``img2img``, whose passes draw noise."""
    folder = handmade.write(tmp_path / "b", "img2img")
    plain = handmade.write(tmp_path / "t2i", "t2i")
    row, other = (json.loads((f / bundle.MANIFEST).read_text()) for f in (folder, plain))
    row["tasks"].append(other["tasks"][0])
    row["loop"]["schedules"] += other["loop"]["schedules"]
    for part in row["parts"]:
        part["entries"] |= {} if part["name"] == "vae_encoder" else {"t2i": "model.onnx"}
    (folder / bundle.MANIFEST).write_text(json.dumps(row))
    loops: dict[str, Any] = {name: golden_of(folder, name) for name in ("img2img", "t2i")}
    bundle.write_goldens(folder, {}, loops)
    handmade.reseal(folder)
    golden = {"prompt": "a red cat", "steps": 4, "strength": 0.5}
    handmade.edit(folder, "golden", value=golden)
    exported = bundle.read(folder)
    for task in exported.tasks:
        assert prove_loop(exported, task, 60.0)[0].psnr_db == 300.0


def test_the_negative_prompt_of_a_golden_is_asked(copied: Path) -> None:
    golden = golden_of(copied)
    exported = bundle.read(write_golden(copied, golden, negative_prompt="a blue dog"))
    assert prove_loop(exported, exported.tasks[0], 60.0)[0].passed is False


def test_the_golden_of_a_flow_without_a_loop_is_its_picture(tmp_path: Path) -> None:
    folder = handmade.write_translator(tmp_path / "b")
    asked, loop = translation(), runner.open_loop(bundle.read(folder))
    given = {**asked.pictures, **asked.tensors}
    golden = {f"request/{name}": value for name, value in given.items()}
    golden["picture"] = runner.generate(loop, asked).image
    bundle.write_goldens(folder, {}, {"translate": golden})
    handmade.reseal(folder)
    handmade.edit(folder, "golden", value={"prompt": ""})
    exported = bundle.read(folder)
    (verdict,) = prove_loop(exported, exported.tasks[0], 60.0)
    assert (verdict.stage, verdict.psnr_db, verdict.passed) == ("passes", 300.0, True)
    del golden["request/labels"]
    bundle.write_goldens(folder, {}, {"translate": golden})
    handmade.reseal(folder)
    with pytest.raises(BundleError, match="loop/translate/request/labels is missing"):
        prove_loop(bundle.read(folder), exported.tasks[0], 60.0)


@pytest.mark.parametrize(
    ("golden", "changes", "message"),
    [
        (None, {"noise": None}, "golden, picture or noise is missing"),
        (None, {"picture": None}, "golden, picture or noise is missing"),
        (
            None,
            {"picture": np.zeros((1, 3, 8, 8), np.float32)},
            r"picture must be \[1, 3, 16, 24\]",
        ),
        (None, {"latents_4": None}, "loop/fill/latents/4 is missing"),
        (None, {"outputs_2": None}, "loop/fill/outputs/2 is missing"),
        (None, {"outputs_2": np.zeros((1, 4, 9, 9), np.float32)}, r"outputs/2 must be \[1, 4"),
        (None, {"noise": np.zeros((1, 4, 9, 9), np.float32)}, r"loop/fill/noise must be \[1, 4, 2"),
        (None, {"noise": np.zeros((6, 4, 2, 3), np.float32)}, r"loop/fill/noise must be \[1, 4, 2"),
        (None, {"request_mask": None}, "loop/fill/request/mask is missing"),
        (None, {"request_mask": np.zeros((1, 1, 8, 8), np.float32)}, r"mask must be \[1, 1, 16"),
        ({"prompt": "x", "steps": 3}, {}, "golden: the bundle has no table for 3 steps"),
        ({"prompt": "x"}, {}, "golden: the bundle has no table for 1 steps"),
        ({"prompt": "x", "steps": True}, {}, "golden.steps: must be an integer, got True"),
        ({"prompt": 5, "steps": 4}, {}, "golden.prompt: must be a string"),
        ([], {}, "golden: must be an object"),
        (handmade.DROP, {}, "golden, picture or noise is missing"),
    ],
)
def test_goldens_of_a_loop_that_are_refused(
    copied: Path, golden: Any, changes: dict[str, Any], message: str
) -> None:
    with_golden(copied, **changes)
    if golden is not None:
        handmade.edit(copied, "golden", value=golden)
    with pytest.raises(BundleError, match=message):
        prove_loop(exported := bundle.read(copied), exported.tasks[0], 60.0)


def of_two_tasks(folder: Path, *lost: str) -> Path:
    """A bundle with a second task that runs the files of the first, proved but for what is lost."""
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["tasks"].append({**manifest["tasks"][0], "name": "other"})
    for row in manifest["parts"]:
        row["entries"]["other"] = "model.onnx"
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    read, cases = bundle.read(folder), {}
    for part in read.parts:
        session = targets.runtime(targets.load("onnx")).open(part.path, "model.onnx")
        inputs = {spec.name: np.ones(spec.shape, spec.dtype) for spec in part.inputs}
        cases[f"{part.name}/fill"] = [(inputs, session(inputs))] * bundle.CASES
    cases["unet/other"] = cases["unet/fill"]
    loop: dict[str, Any] = golden_of(folder)
    loops = {f"loop/{task}": loop for task in ("fill", "other")}
    bundle.write_goldens(
        folder,
        {name: tensors for name, tensors in cases.items() if name not in lost},
        {name[5:]: tensors for name, tensors in loops.items() if name not in lost},
    )
    handmade.reseal(folder)
    handmade.edit(folder, "golden", value={"prompt": "a red cat", "steps": 4})
    row = {"psnr_db": 200.0, "max_abs": 0.0, "floor_db": 60, "runner": "none", "reason": None}
    proof = [
        {**row, "part": part, "task": task, "stage": stage, "passed": True}
        for part, stage in (("unet", "exported"), ("pipeline", "passes"))
        for task in ("fill", "other")
    ]
    handmade.edit(folder, "proof", value=proof)
    return folder


def test_what_the_export_proved_must_have_its_goldens(copied: Path, tmp_path: Path) -> None:
    """A task whose goldens are gone would be left out in silence, whatever it runs."""
    whole = shutil.copytree(copied, tmp_path / "whole")
    verdicts = verification.verify_bundle(bundle.read(of_two_tasks(Path(whole))))
    assert all(verdict.passed for verdict in verdicts if verdict.stage != "loop")
    assert {(verdict.part, verdict.task) for verdict in verdicts if verdict.task == "other"} == {
        ("unet", "other"),
        ("pipeline", "other"),
    }
    for lost, message in (("unet/other", "3 cases of unet/other"), ("loop/other", "no loop/other")):
        folder = Path(shutil.copytree(copied, tmp_path / lost.replace("/", "-")))
        with pytest.raises(BundleError, match=message):
            verification.verify_bundle(bundle.read(of_two_tasks(folder, lost)))


def test_a_second_task_of_an_entry_without_a_loop_is_not_a_pass(copied: Path) -> None:
    """With its rows of the proof gone too, its goldens are not missed, but it is said."""
    folder = of_two_tasks(copied, "unet/other", "loop/other")
    recorded = bundle.read(folder).manifest.proof
    handmade.edit(folder, "proof", value=[v.to_json() for v in recorded if v.task != "other"])
    verdicts = verification.verify_bundle(bundle.read(folder))
    (other,) = [verdict for verdict in verdicts if verdict.task == "other"]
    assert (other.part, other.stage, other.passed) == ("pipeline", "passes", None)
    assert other.reason == "goldens.safetensors holds no loop of it"


def test_every_entry_of_a_part_must_have_goldens(copied: Path) -> None:
    """A second entry is another graph: the goldens of the first say nothing of it."""
    folder = of_two_tasks(copied, "unet/other", "loop/other")
    recorded = bundle.read(folder).manifest.proof
    handmade.edit(folder, "proof", value=[v.to_json() for v in recorded if v.task != "other"])
    shutil.copy(folder / "unet" / "model.onnx", folder / "unet" / "other.onnx")
    handmade.edit(folder, "parts", 2, "entries", "other", value="other.onnx")
    handmade.reseal(folder)
    with pytest.raises(BundleError, match="has fewer than 3 cases of unet/other"):
        verification.verify_bundle(bundle.read(folder))
