"""Words to plan: defaults, names, contradictions; no toolchain, no weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtu_export import bundle, checkpoint
from mtu_export.exporter import limits, manifest, options, schedule
from mtu_export.exporter.options import resolve
from mtu_export.exporter.reference import Reference
from mtu_export.spec import (
    CheckpointError,
    OutputExists,
    Pass,
    PlanError,
    Schedule,
    UnknownName,
    Unsupported,
)


def test_defaults(tiny: Path) -> None:
    plan = options.resolve(target="onnx", model=tiny, task="edit")
    assert (plan.size, plan.batch) == ((128, 128), 1)
    assert plan.latent_shape == (1, 4, 16, 16)
    assert plan.out == Path("edit-onnx-fp32")
    assert plan.scheme.name == "fp32"
    assert plan.options.opset == 20
    assert options.resolve(target="coreml", task="sr").checkpoint == checkpoint.EMBEDDED


def test_the_only_task_needs_no_name(make_tiny: Callable[..., Path]) -> None:
    assert options.resolve(target="onnx", model=make_tiny(tasks=["sr"])).tasks[0].name == "sr"


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"task": "paint"}, UnknownName, "unknown task 'paint'; choose from: t2i, edit, sr"),
        ({"task": None}, PlanError, "name a --task; this checkpoint has: t2i"),
        ({"target": "tflite"}, UnknownName, "'tflite'; choose from: coreml, executorch, onnx"),
        ({"scheme": "int3"}, UnknownName, "unknown scheme 'int3'; choose from: fp32, fp16, int8"),
        ({"batch": 0}, PlanError, "--batch"),
        ({"batch": 10**9}, PlanError, "--batch"),
        ({"min_psnr": float("nan")}, PlanError, "--min-psnr"),
        ({"seed": -1}, PlanError, "--seed"),
        ({"height": 100}, PlanError, "--height must be a multiple of 16"),
        ({"width": 10**6}, PlanError, "--width must be a multiple of 16"),
        ({"min_psnr": -3}, PlanError, "--min-psnr"),
        ({"options": {"opset": 7}}, Unsupported, "opset 7; choose from: 18"),
        ({"options": {"colour": 7}}, UnknownName, "unknown option of onnx 'colour'"),
        ({"model": "/nowhere/at/all"}, CheckpointError, "no checkpoint folder"),
        ({"target": "executorch", "scheme": "fp16"}, Unsupported, r"0\.88 x .* use int8 or fp32"),
        ({"target": "diffusers", "task": ["t2i", "sr"]}, Unsupported, "holds one task"),
        ({"target": "coreml", "options": {"deployment_target": "iOS9"}}, PlanError, "iOS16"),
    ],
)
def test_refusals(
    tiny: Path, overrides: dict[str, object], kind: type[Exception], message: str
) -> None:
    arguments = {"target": "onnx", "model": tiny, "task": "edit", **overrides}
    with pytest.raises(kind, match=message):
        options.resolve(**arguments)  # type: ignore[arg-type]


def test_an_existing_output_is_refused_before_any_work(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="pass --force"):
        options.resolve(target="onnx", model=tiny, task="edit", out=tmp_path)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(PlanError, match="replaces only what this command made"):
        options.resolve(target="onnx", model=tiny, task="edit", out=tmp_path, force=True)


def test_the_checkpoint_is_never_the_output(tiny: Path) -> None:
    with pytest.raises(PlanError, match="is or holds the source"):
        options.resolve(target="diffusers", model=tiny, task="edit", out=tiny, force=True)


def denoiser_record() -> bundle.PartRecord:
    """The record of a UNet of the task `edit`."""
    weights = {"bits": 32, "granularity": None}
    scheme = {"name": "fp32", "weights": weights, "activations": "float32", "kept_float": []}
    cost = dict.fromkeys(("parameters", "flops_conv_linear", "flops_total", "weight_bytes"), 1)
    record = {
        "name": "unet",
        "kind": "denoiser",
        "path": "unet",
        "bytes": 1,
        "sha256": "0" * 64,
        "cost": cost,
    }
    record |= {"entries": {"edit": "main"}, "inputs": [], "outputs": [], "scheme": scheme}
    return bundle.validated(bundle.PartRecord, json.dumps(record))


def test_a_task_has_steps_that_have_a_schedule(tiny: Path) -> None:
    for baked, steps in (([4, 8], 8), ([4, 20, 50], 20), ((), 20)):
        plan = options.resolve(target="onnx", model=tiny, task="edit", bake_steps=baked, out="b")
        baked_ = schedule.bake(schedule.load(None, "ddim"), plan.steps, required=False)
        references = [Reference(plan, plan.tasks[0], baked_.golden_table(None), baked_.golden)]
        described = manifest.describe(
            plan, manifest.identity(plan), [denoiser_record()], baked_, references
        )
        (task,) = described.tasks
        assert task.steps == steps


def options_of(tiny: Path, task: object, **options: object) -> Any:
    settings: Any = {"target": "coreml", "model": tiny, "task": task, "options": options}
    return resolve(**settings).options


def test_several_tasks_get_a_system_that_knows_functions(tiny: Path) -> None:
    assert options_of(tiny, "edit").deployment_target == "iOS17"
    assert options_of(tiny, ["edit", "t2i"]).deployment_target == "iOS18"
    asked = options_of(tiny, ["edit", "t2i"], deployment_target="macOS15")
    assert asked.deployment_target == "macOS15"
    with pytest.raises(Unsupported, match=r"iOS17 does not know; choose .*iOS18 or macOS15, or"):
        options_of(tiny, ["edit", "t2i"], deployment_target="iOS17")


def test_a_hub_source_is_its_name_and_commit(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the name of the snapshot's folder; and a folder has no revision."""
    asked: list[object] = []

    def locate(model: object, revision: object = None, variant: object = None) -> Path:
        asked.append((model, revision))
        return tiny

    monkeypatch.setattr(checkpoint, "place_of", locate)
    settings: Any = {"target": "onnx", "task": "edit"}
    plan = options.resolve(model="owner/name", revision="main", **settings)
    assert asked == [("owner/name", "main")]
    assert (plan.source, plan.revision) == ("owner/name", tiny.name)
    assert manifest.identity(plan)["source"] == "owner/name"
    monkeypatch.undo()
    with pytest.raises(PlanError, match=r"--revision is for a checkpoint on the hub"):
        options.resolve(model=tiny, revision="main", **settings)


# ----------------------------------------------------------------- limits of the bundle's contract


def with_tasks(source: Path, folder: Path, **values: list[Any]) -> Path:
    """The checkpoint's configs; each value repeated with names of its own as its tasks."""
    config = json.loads((source / "unet" / "config.json").read_text("utf-8"))
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config | values), "utf-8")
    return folder


def test_more_tasks_than_a_bundle_holds_are_refused_before_any_weight(
    tiny: Path, tmp_path: Path
) -> None:
    first = json.loads((tiny / "unet" / "config.json").read_text("utf-8"))["tasks"][0]
    for count in (64, 65):
        tasks = [first | {"name": f"t{number}"} for number in range(count)]
        model = with_tasks(tiny, tmp_path / str(count), tasks=tasks)
        options = {"target": "onnx", "model": model, "all_tasks": True, "out": tmp_path / "out"}
        if count == 64:
            assert len(resolve(**options).tasks) == 64
        else:
            with pytest.raises(PlanError, match="at most 64 tasks, got 65; export several bundles"):
                resolve(**options)


def test_more_conditioning_than_a_bundle_holds_is_refused(tiny: Path, tmp_path: Path) -> None:
    first = json.loads((tiny / "unet" / "config.json").read_text("utf-8"))["tasks"][0]
    settings: Any = {"target": "onnx", "height": 128, "width": 128}
    for count in (15, 16):
        tasks = [first | {"conditioning": [{"kind": "mask", "channels": 1}] * count}]
        model = with_tasks(tiny, tmp_path / str(count), tasks=tasks)
        if count == 15:
            (task,) = resolve(model=model, **settings).tasks
            assert len(task.conditioning) == 15
        else:
            with pytest.raises(PlanError, match="'t2i': at most 15 conditioning entries, got 16"):
                resolve(model=model, **settings)


def test_more_loras_and_licences_than_a_bundle_holds_are_refused(
    tiny: Path, tmp_path: Path
) -> None:
    loras = [f"{tmp_path}/{number}.safetensors" for number in range(65)]
    for name in loras:
        Path(name).touch()
    with pytest.raises(PlanError, match="at most 64 --lora, got 65"):
        resolve(target="onnx", model=tiny, task="edit", lora=loras)
    model = with_tasks(tiny, tmp_path / "checkpoint")
    for number in range(61):
        (model / f"LICENSE-{number}").write_text("x")
    with pytest.raises(PlanError, match="at most 60 LICENSE files, got 61"):
        resolve(target="onnx", model=model, task="edit", height=128, width=128)


def test_step_counts_whose_tables_no_manifest_holds_are_refused(tiny: Path) -> None:
    """By their sum before anything is loaded; what passes it, by the tables themselves."""
    options = {"target": "onnx", "model": tiny, "task": "edit"}
    assert resolve(**options, bake_steps=[*range(1, 181)]).steps[-1] == 180
    with pytest.raises(PlanError, match=r"at most 16,574 steps .* in all, got 20,100; bake fewer"):
        resolve(**options, bake_steps=[*range(1, 201)])


@pytest.mark.parametrize("passes", [5_000, 9_999])
def test_tables_that_leave_the_manifest_no_room_are_refused(passes: int) -> None:
    long = (1 / 3, -1 / 3, 0.0, 0.0)
    first = Pass(timestep=999.0, input_scale=1 / 3, x=(1 / 3, 0.0, 0.0, 0.0), m=(1 / 3, 0, 0, 0))
    rest = [Pass(timestep=1 / 3, input_scale=1 / 3, x=long, m=long)] * (passes - 1)
    tables: Any = {(passes, None): Schedule(start_noise=1.0, passes=(first, *rest))}
    if passes == 5_000:
        limits.require_tables_fit(tables)
    else:
        with pytest.raises(PlanError, match="at most 3,000,000 bytes of loop tables"):
            limits.require_tables_fit(tables | {(5_000, None): tables[passes, None]})
