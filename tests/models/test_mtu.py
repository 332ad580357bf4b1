"""The MTU model: format 1 in and out, the live router, the fold of whole UNets."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mtu_export import MTUUNet2DConditionModel, checkpoint, models
from mtu_export.authoring import upcycle
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import options
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.models.mtu.experts import transformer_blocks
from mtu_export.spec import CheckpointError, MissingWeights, UnknownName
from mtu_export.testing import architectures, random_parts
from tests.support.mtu_checkpoints import WEIGHTS, edit_config, edit_weights, inputs, load

SD2 = {
    **architectures.ARCHITECTURES["tiny"],
    "use_linear_projection": True,
    "attention_head_dim": [2, 4],
    "upcast_attention": True,
}


# ------------------------------------------------------------------------------------- the model


def test_the_files_that_are_no_families_are_shared_ones() -> None:
    assert models.names() == ("mtu", "sd")


def test_a_block_computes_the_formula_of_the_format(tiny: Path) -> None:
    """From the file's tensors and the published formula alone, without our modules."""
    tensors = {k: v.double() for k, v in load_file(tiny / WEIGHTS).items()}
    unet = load(tiny)
    path, block = transformer_blocks(unet)[0]
    names = [task.name for task in unet.tasks]
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for task in ("t2i", "relight"):
        p = f"{path}.ff.router"
        hidden = F.linear(
            tensors["task_embedding.weight"][names.index(task)],
            tensors[f"{p}.fc1.weight"],
            tensors[f"{p}.fc1.bias"],
        )
        w = F.linear(hidden.relu(), tensors[f"{p}.fc2.weight"], tensors[f"{p}.fc2.bias"]).softmax(0)
        norm = f"{path}.norm3.{task}"
        y = F.layer_norm(x, (32,), tensors[f"{norm}.weight"], tensors[f"{norm}.bias"], 1e-5)
        want = torch.zeros_like(x)
        for i, weight in enumerate(w):
            e = f"{path}.ff.experts.{i}"
            both = F.linear(y, tensors[f"{e}.proj.weight"], tensors[f"{e}.proj.bias"])
            value, gate = both.chunk(2, -1)
            out = F.linear(
                value * F.gelu(gate), tensors[f"{e}.out.weight"], tensors[f"{e}.out.bias"]
            )
            want += weight * out
        with unet.activate(unet.task(task)):
            actual = block.ff(block.norm3(x.float()))  # type: ignore[misc, operator]
        torch.testing.assert_close(actual.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_diffusers_saves_and_loads_it_sharded_or_not(tiny: Path, tmp_path: Path) -> None:
    first = MTUUNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    first.save_pretrained(tmp_path / "one" / "unet")
    first.save_pretrained(tmp_path / "many" / "unet", max_shard_size="300KB")
    assert len(list((tmp_path / "many" / "unet").glob("*.safetensors"))) > 2
    want = load(tiny).state_dict()
    for name in ("one", "many"):
        again = MTUUNet2DConditionModel.from_pretrained(tmp_path / name, subfolder="unet")
        for state in (load(tmp_path / name).state_dict(), again.state_dict()):
            assert state.keys() == want.keys()
            assert all(torch.equal(state[key], want[key]) for key in want)
        config = json.loads((tmp_path / name / "unet" / "config.json").read_text())
        assert {key for key in config if not key.startswith("_")} <= {
            *mtu_config.MTU_KEYS,
            *mtu.STOCK_KEYS,
        }


def test_the_task_decides(tiny: Path) -> None:
    unet = load(tiny)
    arguments = inputs(unet, "edit")
    with torch.no_grad():
        edit = unet(**arguments, task="edit").sample
        sr = unet(**arguments, task="sr").sample
    assert psnr(edit.numpy(), sr.numpy()) < 40
    with pytest.raises(UnknownName, match="'paint'; choose from: t2i, edit"):
        unet(**arguments, task="paint")
    with pytest.raises(ValueError, match="takes 4 channels, sample has 8"):
        unet(**arguments, task="t2i")


def test_it_trains_with_gradient_checkpointing(tiny: Path) -> None:
    """Two tasks, one backward (Eq. 2): recomputation must run each forward's own task."""
    gradients = []
    for recompute in (False, True):
        unet = copy.deepcopy(load(tiny)).train()
        unet.requires_grad_(True)
        if recompute:
            unet.enable_gradient_checkpointing()
        loss = sum(
            unet(**inputs(unet, task), task=task).sample.square().mean() for task in ("t2i", "sr")
        )
        loss.backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    plain, recomputed = gradients
    assert float(plain["task_embedding.weight"][0].abs().sum()) > 0
    assert plain["conv_in.edit.weight"] is None
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["replace", "stacked"])
@pytest.mark.parametrize("name", ["forward", "training", "weight", "eps", "active"])
def test_tasks_may_be_named_as_attributes_are(
    make_tiny: Callable[..., Path], tmp_path: Path, name: str, norm: str
) -> None:
    task = json.loads((make_tiny() / "unet" / "config.json").read_text())["tasks"][0]
    path = tmp_path / "task.json"
    path.write_text(json.dumps({**task, "name": name}), "utf-8")
    options = {"tasks": [str(path), "sr"], "task_norm": norm}
    if (name, norm) == ("weight", "stacked"):
        with pytest.raises(CheckpointError, match="no task can be named"):
            upcycle.write_random("tiny", tmp_path / "out", **options)  # type: ignore[arg-type]
        return
    upcycle.write_random("tiny", tmp_path / "out", **options)  # type: ignore[arg-type]
    unet = load(tmp_path / "out").train().eval()
    assert unet(**inputs(unet, name), task=name).sample.shape == (2, 4, 16, 16)


def test_keys_with_stock_defaults_may_be_left_out(tiny: Path, tmp_path: Path) -> None:
    folder = edit_config(tiny, tmp_path / "short")
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    for key in ("in_channels", "out_channels"):
        del config[key]
    path.write_text(json.dumps(config))
    resolved = options.resolve(target="onnx", model=folder, task="edit")
    graph = resolved.model.load("unet").graph(resolved.tasks[0], resolved.size, 1)
    assert graph.inputs[0].shape == (1, 8, 16, 16)


def test_a_newer_format_is_refused_before_its_keys(tiny: Path, tmp_path: Path) -> None:
    folder = edit_config(tiny, tmp_path / "new", mtu_format=2, tasks=[{"new_key": 1}], foo=1)
    with pytest.raises(CheckpointError, match="mtu_format 2 needs a newer"):
        options.resolve(target="onnx", model=folder, task="edit")


# -------------------------------------------------------------------------------------- the fold


def test_sd2_configuration(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = upcycle.mtu_config(SD2, presets.resolve_tasks(["edit"], SD2), 4, (8, 8), "replace")
    shapes = upcycle.tensor_shapes(config)
    tensors = ((name, random_parts.random_tensor(name, shape, 0)) for name, shape in shapes.items())
    checkpoint.write(tmp_path / "sd2" / "unet", config, tensors)
    unet = mtu.load(tmp_path / "sd2")
    arguments = inputs(unet, "edit")
    with torch.no_grad():
        want = unet(**arguments).sample
        got = mtu.specialise(unet, [unet.task(None)])["edit"].module(**arguments).sample
    assert psnr(want.numpy(), got.numpy()) > 110


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mtu_format": 2}, "mtu_format 2 needs a newer"),
        ({"mtu_format": None}, "mtu_format: must be 1, got None"),
        ({"norm_per_expert": True}, "unknown key 'norm_per_expert'"),
        ({"num_experts": 0}, "num_experts: must be a positive integer"),
        ({"task_norm": "both"}, "task_norm: must be 'replace' or 'stacked'"),
        ({"tasks": []}, "tasks: must have at least 1 item"),
        ({"num_experts": 3}, "weights do not fit"),
        ({"block_out_channels": [30, 60]}, "does not describe a UNet"),
        ({"act_fn": [1]}, "does not describe a UNet"),
        ({"down_block_types": [1, 2]}, "does not describe a UNet"),
        ({"norm_eps": float("nan")}, "NaN is not a finite double"),
        ({"_class_name": "UNet2DConditionModel"}, "is dense"),
        ({"_class_name": "os.system"}, "is not that of an MTU checkpoint"),
    ],
)
def test_configs_that_are_refused(
    tiny: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        mtu.load(edit_config(tiny, tmp_path / "bad", **changes))


def test_tasks_that_are_refused(tiny: Path, tmp_path: Path) -> None:
    entries = json.loads((tiny / "unet" / "config.json").read_text())["tasks"]
    cases = {
        "appears twice": [entries[0], entries[0]],
        "unknown key 'colour'": [{**entries[0], "colour": 1}],
        "is not legal": [{**entries[0], "name": "a/b"}],
        "steps must be": [{**entries[0], "steps": 0}],
        "unknown guidance kind": [{**entries[0], "guidance": {"kind": "cfg"}}],
        "guidance 'text' takes text": [{**entries[0], "guidance": {"kind": "text"}}],
        "unknown conditioning kind": [
            {**entries[0], "conditioning": [{"kind": "depth", "channels": 1}]}
        ],
        "channels must be 1": [{**entries[0], "conditioning": [{"kind": "mask", "channels": 4}]}],
    }
    for number, (message, tasks) in enumerate(cases.items()):
        with pytest.raises(CheckpointError, match=message):
            mtu.load(edit_config(tiny, tmp_path / str(number), tasks=tasks))


def test_tensors_that_do_not_fit_are_named(tiny: Path, tmp_path: Path) -> None:
    name = "conv_in.edit.weight"
    cases: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        f"missing: {name}": lambda tensors: tensors.pop(name),
        "unknown: extra.weight": lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}),
        f"wrong: {name} has shape": lambda tensors: tensors.update(
            {name: torch.zeros(32, 4, 3, 3)}
        ),
        f"'{name}' holds NaN": lambda tensors: tensors[name].view(-1)[3].fill_(float("nan")),
    }
    for number, (message, change) in enumerate(cases.items()):
        folder = edit_weights(tiny, tmp_path / str(number), change)
        with pytest.raises(MissingWeights, match=message):
            mtu.load(folder)
    with pytest.raises(MissingWeights, match=f"missing: {name}"):
        MTUUNet2DConditionModel.from_pretrained(tmp_path / "0", subfolder="unet")
    folder = edit_weights(
        tiny, tmp_path / "i64", lambda tensors: tensors.update(x=torch.zeros(2).long())
    )
    with pytest.raises(CheckpointError, match="'x' has dtype 'I64'"):
        mtu.load(folder)
