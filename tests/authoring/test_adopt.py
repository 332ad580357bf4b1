"""Foreign layouts become checkpoints: equal to their own forward, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtu_export import MTUUNet2DConditionModel, cli, exporter
from mtu_export.authoring.adopt import adopt, survey
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.models.mtu import config as mtu_config
from mtu_export.spec import CheckpointError, OutputExists, PlanError
from tests.support.foreign import (
    BLOCK,
    EXAMPLES,
    FF,
    ZERO,
    example,
    inputs,
    put,
    save,
    stacked_state,
)


@pytest.mark.parametrize("kind", ["stacked", "modulelist"])
def test_an_adopted_example_equals_its_own_forward(kind: str, tmp_path: Path) -> None:
    foreign, weights = save(kind, tmp_path / "foreign")
    adopt(weights, tmp_path / "out", EXAMPLES / f"{kind}.json")
    ours = MTUUNet2DConditionModel.from_pretrained(str(tmp_path / "out"), subfolder="unet").eval()
    outputs = []
    for task in foreign.tasks:
        want = foreign(task, *inputs(task))
        with torch.no_grad():
            actual = ours(*inputs(task), task=task).sample
        outputs.append(want)
        decibels = psnr(want.numpy(), actual.numpy())
        print(f"{kind} {task}: adopted {decibels:.1f} dB")
        assert decibels >= 110
    assert psnr(outputs[0].numpy(), outputs[1].numpy()) < 40  # the tasks are not alike


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("stacked", "fill"),
        pytest.param("stacked", "t2i", marks=pytest.mark.exhaustive),
        pytest.param("stacked", "edit", marks=pytest.mark.exhaustive),
        pytest.param("modulelist", "t2i", marks=pytest.mark.exhaustive),
        pytest.param("modulelist", "edit", marks=pytest.mark.exhaustive),
    ],
)
def test_an_exported_example_equals_its_own_forward(kind: str, task: str, tmp_path: Path) -> None:
    import onnxruntime

    foreign, weights = save(kind, tmp_path / "foreign")
    adopt(weights, tmp_path / "out", EXAMPLES / f"{kind}.json")
    settings = {"model": tmp_path / "out", "task": task, "scheme": "fp32"}
    bundle = exporter.export(options.resolve(target="onnx", out=tmp_path / task, **settings))
    (model,) = bundle.folder.rglob("*.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = inputs(task)
    names = ("sample", "timestep", "encoder_hidden_states")
    (output,) = session.run(None, {n: v.numpy() for n, v in zip(names, x, strict=True)})
    decibels = psnr(foreign(task, *x).numpy(), np.asarray(output))
    print(f"{kind} {task}: exported {decibels:.1f} dB")
    assert decibels >= 90


# -------------------------------------------------------------------------------- the algebra


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    axis=st.integers(0, 2),
    order=st.permutations(range(3)),
    swap=st.booleans(),
    out_axis=st.integers(0, 1),
    cut=st.integers(1, 31),
)
def test_inverse_operations_come_back_to_the_byte(
    dtype: torch.dtype,
    axis: int,
    order: list[int],
    swap: bool,
    out_axis: int,
    cut: int,
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny: Callable[..., Path],
) -> None:
    source = make_tiny("tiny", tasks=["t2i", "fill"], experts=4)
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: value.to(dtype) for name, value in load_file(file).items()}
    folder = tmp_path_factory.mktemp("algebra")
    save_file(state, folder / "wanted.safetensors", metadata={"format": "pt"})

    def pop(names: list[str], swapped: bool = False) -> list[Tensor]:
        tensors = [state.pop(name) for name in names]
        return [torch.cat(tensor.chunk(2)[::-1]) if swapped else tensor for tensor in tensors]

    for path in sorted({name.split(".ff.")[0] for name in state if ".ff." in name}):
        experts = [f"{path}.ff.experts.{i}" for i in range(4)]
        rows = pop([f"{e}.proj.weight" for e in experts], swap)
        state[f"{path}.w1"] = torch.stack(rows, axis).permute(order).contiguous()
        state[f"{path}.b1"] = torch.stack(pop([f"{e}.proj.bias" for e in experts], swap))
        state[f"{path}.w2"] = torch.cat(pop([f"{e}.out.weight" for e in experts]), out_axis)
        (first,) = pop([f"{path}.ff.router.fc1.weight"])
        state[f"{path}.low"], state[f"{path}.high"] = first[:cut].clone(), first[cut:].clone()
    state["first"] = torch.cat(pop([f"conv_in.{task}.bias" for task in ("t2i", "fill")]))
    for i, row in enumerate(state.pop("task_embedding.weight")):
        state[f"e.{i}"] = row.clone()
    back = {"transpose": np.argsort(order).tolist(), "split": {"axis": axis, "as": "i"}}
    halves = {"swap_halves": 0} if swap else {}
    sizes = {"axis": 0, "as": "task", "sizes": [32, 32]}
    low = {"axis": 0, "by": "half", "order": ["low", "high"]}
    expert = "{b}.ff.experts.{i}."
    rules = [
        {"from": "{b...}.w1", "to": expert + "proj.weight", **back, **halves},
        {
            "from": "{b...}.b1",
            "to": expert + "proj.bias",
            "split": {"axis": 0, "as": "i"},
            **halves,
        },
        {
            "from": "{b...}.w2",
            "to": expert + "out.weight",
            "split": {"axis": out_axis, "as": "i", "parts": 4},
        },
        {"from": "{b...}.{half:low|high}", "to": "{b}.ff.router.fc1.weight", "concat": low},
        {"from": "first", "to": "conv_in.{task}.bias", "split": sizes},
        {"from": "e.{n}", "to": "task_embedding.weight", "stack": {"axis": 0, "by": "n"}},
        {"from": "{all...}", "to": "{all}"},
    ]
    save_file(state, folder / "foreign.safetensors")
    shutil.copy(source / "unet" / "config.json", folder / "config.json")
    table = {"values": {"task": ["t2i", "fill"]}, "rules": rules}
    (folder / "map.json").write_text(json.dumps(table))
    adopt(folder / "foreign.safetensors", folder / "out", folder / "map.json")
    adopted = folder / "out" / "unet"
    assert (adopted / file.name).read_bytes() == (folder / "wanted.safetensors").read_bytes()
    expected = json.loads((folder / "config.json").read_text())
    assert json.loads((adopted / "config.json").read_text()) == expected
    shutil.rmtree(folder)


# --------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gate_first": True}, "keys that format 1 does not know: gate_first; null in the map's"),
        (
            {"num_experts": None},
            "config: num_experts: must be a positive integer, at most 128, got None",
        ),
        ({"num_experts": 10**6}, "config: num_experts: must be a positive integer, at most 128"),
        (
            {"task_norm": "inside"},
            "config: task_norm: must be 'replace' or 'stacked', got 'inside'",
        ),
        ({"mtu_format": 2}, "config: mtu_format 2 needs a newer mtu-export"),
        ({"tasks": []}, "config: tasks must be a list of task objects and preset names"),
        ({"tasks": ["draw"]}, "unknown task preset 'draw'; choose from: t2i, edit"),
        ({"tasks": ["/etc/task.json"]}, "unknown task preset '/etc/task.json'"),
        ({"tasks": ["t2i", "t2i"]}, "config: task 't2i' appears twice"),
        ({"tasks": [{"name": "t2i"}]}, "config: tasks[0]: key 'conditioning' is missing"),
        ({"tasks": [7]}, "config: tasks[0]: must be an object, got 7"),
        ({"act_fn": [1]}, "does not describe a UNet"),
    ],
)
def test_a_config_that_describes_no_checkpoint_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights, table = put(tmp_path, {"w": ZERO}, example(config=config))
    with pytest.raises((PlanError, CheckpointError), match=re.escape(message)):
        survey(weights, table)


def test_the_config_beside_is_merged_and_null_leaves_a_foreign_key_out(
    tmp_path: Path, relight: str
) -> None:
    document = example()
    beside = {**document["config"], "_class_name": "Other", "gate_first": True, "num_experts": 9}
    beside |= {"_rescale": 4, "_diffusers_version": "0.30.0"}
    task = {**json.loads(Path(relight).read_text()), "name": "fill"}
    task["conditioning"] = [{"kind": "image_latent", "channels": 5}]
    document["config"] = {"gate_first": None, "num_experts": 4, "tasks": ["t2i", "edit", task]}
    weights, table = put(tmp_path, stacked_state(), document)
    (tmp_path / "config.json").write_text(json.dumps(beside))
    adopt(weights, tmp_path / "out", table)
    written = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert written["_class_name"] == "MTUUNet2DConditionModel"
    assert written["_rescale"] == 4
    assert "gate_first" not in written
    assert (written["num_experts"], written["mtu_format"], written["sample_size"]) == (4, 1, 16)
    assert written["tasks"][2] == {
        **task,
        "conditioning": [{"kind": "image_latent", "channels": 5}],
    }


def test_what_the_source_lacks_is_filled_and_one_tensor_serves_several(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in stacked_state().items()}
    for name in [n for n in state if n.endswith((".ff.b2", ".norm.1.weight", ".norm.2.weight"))]:
        del state[name]
    document = example(fill=[{"to": "{b...}.ff.experts.{i}.out.bias", "value": 0}])
    document["rules"] = [entry for entry in document["rules"] if not entry["from"].endswith(".b2")]
    targets = [f"{{b}}.norm3.{task}.weight" for task in ("t2i", "edit", "fill")]
    document["rules"].insert(0, {"from": "unet.{b...}.ff.norm.0.weight", "to": targets})
    adopt(*put(tmp_path, state, document)[:1], tmp_path / "out", tmp_path / "map.json")
    adopted = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in adopted.values()} == {torch.float16}
    assert not adopted[f"{BLOCK}.ff.experts.2.out.bias"].any()
    for task in ("t2i", "edit", "fill"):
        assert torch.equal(adopted[f"{BLOCK}.norm3.{task}.weight"], state[f"{FF}.norm.0.weight"])


def test_one_expert_needs_no_router(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = make_tiny("tiny", tasks=["edit"], experts=1)
    state = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    fill = [{"to": to, "value": 0} for to in ("{b...}.ff.router.{r...}", "task_embedding.weight")]
    document = {"rules": [{"from": "{a...}", "to": "{a}"}], "fill": fill}
    bare = {n: v for n, v in state.items() if ".router." not in n and "embedding.w" not in n}
    shutil.copy(source / "unet" / "config.json", tmp_path)
    adopt(*put(tmp_path, bare, document)[:1], tmp_path / "out", tmp_path / "map.json")
    outputs = []
    for folder in (source, tmp_path / "out"):
        unet = MTUUNet2DConditionModel.from_pretrained(str(folder), subfolder="unet").eval()
        with torch.no_grad():
            outputs.append(unet(*inputs("edit"), task="edit").sample)
    assert torch.equal(*outputs)


# ---------------------------------------------------------------------------- sources and outputs


def test_a_pipeline_keeps_its_other_parts(tmp_path: Path) -> None:
    source, document = tmp_path / "pipe", example()
    (source / "unet").mkdir(parents=True)
    save_file(dict(stacked_state()), source / "unet" / "model.safetensors")
    (source / "unet" / "config.json").write_text(json.dumps(document.pop("config")))
    (source / "scheduler").mkdir()
    (source / "scheduler" / "scheduler_config.json").write_text("{}")
    (source / "LICENSE").write_text("terms")
    index = {"_class_name": "X", "unet": ["a", "B"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (source / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "map.json").write_text(json.dumps(document))
    adopt(source, tmp_path / "out", tmp_path / "map.json")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert "scheduler/scheduler_config.json" in names
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    with pytest.raises(PlanError, match="lies inside the source"):
        adopt(source, source / "out", tmp_path / "map.json")
    with pytest.raises(OutputExists):
        adopt(source, tmp_path / "out", tmp_path / "map.json")
    (tmp_path / "out" / "map.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match="is or holds the source"):
        adopt(source, tmp_path / "out", tmp_path / "out" / "map.json", force=True)
    adopt(source, tmp_path / "out", tmp_path / "map.json", force=True)
    with pytest.raises(PlanError, match="is or holds the source"):
        adopt(source, source, tmp_path / "map.json", force=True)


def test_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    weights, table = put(tmp_path, stacked_state(), example())
    whole = weights.read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'
    for content, message in (
        (b"PK\x03\x04" + b"x" * 99, "is a pickle, not safetensors: refused"),
        (b"\x80\x04" + b"x" * 99, "is a pickle, not safetensors: refused"),
        (whole[:-1], "is not a whole safetensors file"),
        (whole[:5], "is not a whole safetensors file"),
        (b"", "is not a whole safetensors file"),
        (len(header).to_bytes(8, "little") + header, "is not a whole safetensors file"),
    ):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            survey(weights, table)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, message in (
        ("model.bin", r"model\.bin is a pickle: refused"),
        ("a.safetensors", "is not a whole safetensors file"),
        ("b.safetensors", r"weights of several names \(a, b\); name one file"),
    ):
        (folder / name).write_bytes(b"x" * 20)
        with pytest.raises(CheckpointError, match=message):
            survey(folder, table)
    (folder / "b.safetensors").unlink()
    (folder / "._a.safetensors").write_bytes(b"x")  # as macOS leaves on other file systems
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a whole"):
        survey(folder, table)
    (folder / "b.safetensors.index.json").write_text('{"weight_map": {"x": "../w.safetensors"}}')
    with pytest.raises(CheckpointError, match="is not a safetensors file here"):
        survey(folder, table)
    for name in ("nowhere.safetensors", "none/nowhere.safetensors", "nowhere"):
        with pytest.raises(CheckpointError, match=r"is missing|no checkpoint folder"):
            survey(str(tmp_path / name), table)
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="is a pickle"):
        survey(tmp_path / "model.ckpt", table)


# ------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["mtu-export", "adopt", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_a_dry_run_prints_what_maps_to_what(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    put(tmp_path, stacked_state(), example())
    code, out, err = run("w.safetensors", "out", "--map", "map.json", "--dry-run")
    assert code == 0
    assert err == "✓ map\n"
    lines = {tuple(part for part in line.split("  ") if part) for line in out.splitlines()}
    lines = {tuple(part.strip() for part in line_) for line_ in lines}
    assert ("source", "stored", "operations", "target", "shape") in lines
    operations = "transpose [0, 2, 1], axis 0 [3], swap halves of axis 0"
    target = f"{BLOCK}.ff.experts.3.proj.weight"
    assert (f"{FF}.w1", "F32 [4, 64, 128]", operations, target, "[128, 64]") in lines
    assert ("ema_steps", "I64 []", "(dropped)") in lines
    assert (
        "task_embed.edit",
        "F32 [24]",
        "stack on axis 0 as edit",
        "task_embedding.weight",
        "[3, 24]",
    ) in lines
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.json", "w.safetensors"]


def test_a_dry_run_that_does_not_fit_prints_how_far_it_goes(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    state = {**stacked_state(), "vae.\x1b[2J": ZERO}
    del state["unet.conv_out.bias"]
    put(tmp_path, state, example())
    code, out, err = run("w.safetensors", "--map", "map.json", "--dry-run")
    assert code == 3
    assert "\x1b" not in out + err
    assert any(line.endswith("(no rule takes it)") for line in out.splitlines())
    assert any(line.split() == ["(nothing)", "conv_out.bias", "[4]"] for line in out.splitlines())
    *_, line = err.splitlines()
    assert line.startswith("error: map.json does not fit: no rule takes 'vae.")
    assert "nothing makes 'conv_out.bias'" in line
    code, out, err = run("w.safetensors", "--map", "map.json", "--dry-run", "--json")
    result = json.loads(out)
    assert code == 3
    assert result["missing"] == ["conv_out.bias"]
    assert result["leftover"] == ["vae.\x1b[2J"]
    assert result["dropped"] == ["ema_steps"]
    assert len(result["problems"]) == 2
    code, out, err = run("w.safetensors", "out", "--map", "map.json")
    assert (code, out) == (3, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.json", "w.safetensors"]


def test_the_command_makes_a_checkpoint(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    put(tmp_path, stacked_state(), example())
    assert run("w.safetensors", "out")[:2] == (2, "")
    assert run("w.safetensors", "--map", "map.json")[0] == 2
    assert run("w.safetensors", "out", "--map", "none.json")[2].endswith("'none.json'\n")
    code, out, err = run("w.safetensors", "out", "--map", "map.json")
    assert (code, out, err) == (0, "out\n", "✓ map\n✓ adopt\n")
    code, _, err = run("w.safetensors", "out", "--map", "map.json")
    assert code == 2
    assert "exists" in err
    code, out, _ = run("w.safetensors", "out", "--map", "map.json", "--force", "--json")
    assert code == 0
    assert json.loads(out)["checkpoint"] == "out"
    assert mtu_config.read_config(tmp_path / "out")["num_experts"] == 4
