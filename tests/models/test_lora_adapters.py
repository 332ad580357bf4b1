"""Several adapters in a file, scales of blocks, and DoRA with other LoRAs and on experts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtu_export.authoring import upcycle
from mtu_export.models import lora
from mtu_export.models.lora.file import Layer
from mtu_export.models.mtu import network as mtu
from mtu_export.spec import CheckpointError, LoraSource, MtuExportError, PlanError
from mtu_export.testing import loras
from mtu_export.testing.campaigns.loras import make_unet

STEM = "unet.mid_block.attentions.0.proj_in"
DOWN, UP = torch.ones(2, 64, 1, 1), torch.ones(64, 2, 1, 1)
TASKS: dict[str, Any] = {"tasks": ["t2i", "edit"], "sizes": (8, 8), "experts": 3}


def refused(act: Callable[[], object], error: type[MtuExportError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def write(folder: Path, tensors: dict[str, Tensor], name: str = "x") -> Path:
    return loras.write(folder / f"{name}.safetensors", tensors)


def adapters(*names: str) -> dict[str, Tensor]:
    tensors = {}
    for n, name in enumerate(names):
        middle = f".{name}" if name else ""
        tensors |= {f"{STEM}.lora_A{middle}.weight": DOWN * (n + 1)}
        tensors |= {f"{STEM}.lora_B{middle}.weight": UP}
    return tensors


# -------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", ["", "default", "style", "default_1", "weight", "é x"])
def test_the_only_adapter_needs_no_name(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, adapters(name))
    for chosen in (None, name or "default"):
        (layer,) = lora.read(file, chosen).layers
        assert torch.equal(layer.delta(), 2 * torch.ones(64, 64, 1, 1))
        assert lora.read(file, chosen).adapter == chosen


def test_of_several_adapters_one_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {**adapters("a", "b"), f"{STEM}.alpha": torch.tensor(1.0)})
    line = refused(lambda: lora.read(file))
    assert line.endswith("holds several adapters, name one as FILE#name: 'a', 'b'")
    line = refused(lambda: lora.read(file, "c"))
    assert line.endswith("has no adapter 'c'; its adapters: 'a', 'b'")
    for name, value in (("a", 1.0), ("b", 2.0)):
        (layer,) = lora.read(file, name).layers
        assert float(layer.delta().mean()) == value  # alpha/rank is a half


def test_layers_of_other_adapters_are_left_out(tmp_path: Path) -> None:
    other = "unet.mid_block.attentions.0.proj_out"
    tensors = adapters("a")
    tensors |= {f"{other}.lora_A.b.weight": DOWN, f"{other}.lora_B.b.weight": UP}
    tensors |= {f"{other}.alpha": torch.tensor(1.0), f"{other}.dora_scale": torch.ones(64, 1)}
    file = write(tmp_path, tensors)
    assert [layer.name for layer in lora.read(file, "a").layers] == [STEM.removeprefix("unet.")]
    assert lora.read(file, "b").layers[0].form == "DoRA"


def test_many_adapters_make_one_line(tmp_path: Path) -> None:
    file = write(tmp_path, adapters(*(f"adapter-{n}-{'x' * 90}" for n in range(40))))
    assert "and 36 more" in refused(lambda: lora.read(file))


def test_the_adapters_of_a_file_that_peft_would_save(tmp_path: Path) -> None:
    """``hada_w1_a.name`` and ``lora_magnitude_vector.name.weight``, as state dicts have them."""
    layer = nn.Linear(12, 8)
    roles = {f"{name}.x": t for name, t in loras.loha(layer, 2, 0).items() if name != "alpha"}
    roles["lora_magnitude_vector.x.weight"] = torch.ones(8)
    file = write(tmp_path, loras.by_layer({"a.b": roles}, "base_model.model.", dotted=True))
    (read,) = lora.read(file, "x").layers
    assert (read.name, read.form, read.factor) == ("a.b", "LoHa with DoRA", 1.0)


# ---------------------------------------------------------------------------------------- blocks


def test_blocks_that_hold_no_layer_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, adapters(""))
    unet = make_unet()
    before = copy.deepcopy(unet.state_dict())
    for block in ("down", "up.7", "down.0.0"):
        source = LoraSource(file, 1.0, None, ((block, 0.5),))
        line = refused(lambda s=source: lora.apply({"unet": unet}, [lora.load(s)]), PlanError)
        assert line == f"{file} has no layer in block {block}, which --lora scales"
    line = refused(
        lambda: lora.load(LoraSource(file, 1.0, None, (("text_encoder", 1),))), PlanError
    )
    assert "has no layer in block text_encoder" in line
    line = refused(
        lambda: lora.apply({"unet": unet}, [(lora.read(file), lora.Scales(1, (("mid", 1e3),)))]),
        PlanError,
    )
    assert "from -100 to 100" in line
    assert all(torch.equal(tensor, before[k]) for k, tensor in unet.state_dict().items())
    lora.apply({"unet": unet}, [lora.load(LoraSource(file, 9.0, None, (("mid", 0.0),)))])
    assert all(torch.equal(tensor, before[k]) for k, tensor in unet.state_dict().items())


# ------------------------------------------------------------------------------- DoRA on experts


def save_dense(folder: Path, change: Callable[[Any], object] | None = None) -> Any:
    unet = make_unet()
    if change is not None:
        change(unet)
    unet.save_pretrained(folder)
    return unet


def every_layer(unet: Any, axis: int, skip: str = "conv_in") -> dict[str, Tensor]:
    """A DoRA of every layer, whole differences of biases, and of norms."""
    roles = {}
    for n, path in enumerate(p for p in loras.layers(unet) if skip not in p):
        layer = unet.get_submodule(path)
        roles[path] = {
            **loras.lora_roles(layer, 4, 10 * n),
            "dora_scale": loras.magnitude(layer, n, axis),
        }
        if layer.bias is not None:
            roles[path]["diff_b"] = torch.full_like(layer.bias.detach(), 0.1 * n)
    for n, path in enumerate(p for p, m in unet.named_modules() if isinstance(m, nn.LayerNorm)):
        roles[path] = loras.full(unet.get_submodule(path), n)
    return loras.by_layer(roles)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("rescale", [False, True], ids=["plain", "rescaled"])
def test_upcycled_then_folded_is_folded_then_upcycled(
    tmp_path: Path, rescale: bool, axis: int
) -> None:
    """The norms are those of the dense layer, whatever experts hold of it."""
    unet = save_dense(tmp_path / "dense")
    file = write(tmp_path, every_layer(unet, axis))
    plain = write(tmp_path, loras.kohya(loras.pairs(unet, loras.layers(unet)[::2])), "plain")
    sources = [LoraSource(plain, 0.5), LoraSource(file, 0.8), LoraSource(plain, -0.3)]
    folds = [lora.load(source) for source in sources]
    save_dense(tmp_path / "folded", lambda unet: lora.apply({"unet": unet}, folds))
    models = []
    for name in ("dense", "folded"):
        out = tmp_path / f"{name}-mtu"
        upcycle.upcycle(tmp_path / name, out, rescale=rescale, **TASKS)
        models.append(mtu.load(out))
    ours, want = models
    before = copy.deepcopy(ours.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.apply({"unet": ours}, folds)
    changed = 0
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, want.state_dict()[name], rtol=2e-5, atol=2e-6, msg=name)
        changed += not torch.equal(tensor, before[name])
    assert changed > 200


def test_a_dora_whose_dense_layer_is_unknown_is_refused(tmp_path: Path) -> None:
    import json

    unet = save_dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", rescale=True, **TASKS)
    path = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    roles = {p: {**loras.lora_roles(unet.get_submodule(p), 2, 0),
                 "dora_scale": loras.magnitude(unet.get_submodule(p), 0)}
             for p in (path, "conv_in")}  # fmt: skip
    first = lora.read(write(tmp_path, loras.by_layer({"conv_in": roles["conv_in"]}), "first"))
    line = refused(lambda: lora.apply({"unet": mtu.load(tmp_path / "out")}, [(first, 1.0)]))
    assert "the DoRA of unet conv_in is for 4 channels; the model has" in line
    config = tmp_path / "out" / "unet" / "config.json"
    fields = json.loads(config.read_text())
    del fields["_rescale"]
    config.write_text(json.dumps(fields))
    inner = lora.read(write(tmp_path, loras.by_layer({path: roles[path]}), "inner"))
    line = refused(lambda: lora.apply({"unet": mtu.load(tmp_path / "out")}, [(inner, 1.0)]))
    assert "sets norms of value rows" in line


def test_a_lora_of_one_expert_beside_a_dora_of_all_is_refused(tmp_path: Path) -> None:
    unet = save_dense(tmp_path / "dense")
    upcycle.upcycle(tmp_path / "dense", tmp_path / "out", **TASKS)
    model = mtu.load(tmp_path / "out")
    block = "mid_block.attentions.0.transformer_blocks.0.ff"
    layer = unet.get_submodule(f"{block}.net.2")
    roles = {**loras.lora_roles(layer, 2, 0), "dora_scale": loras.magnitude(layer, 0)}
    whole = lora.read(write(tmp_path, loras.by_layer({f"{block}.net.2": roles})))
    pairs = loras.pairs(model, [f"{block}.experts.1.out"])
    one = lora.read(write(tmp_path, loras.peft(pairs), "one"))
    before = copy.deepcopy(model.state_dict())
    line = refused(lambda: lora.apply({"unet": model}, [(whole, 1.0), (one, 1.0)]))
    assert "experts.1.out is part of a layer whose norm a DoRA sets" in line
    assert all(torch.equal(tensor, before[k]) for k, tensor in model.state_dict().items())


# --------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("roles", "shape"),
    [
        ({"lokr_w1": (1, 10**6), "lokr_w2": (10**6, 1)}, "[1000000, 1000000]"),
        ({"lokr_w1_a": (10**6, 1), "lokr_w1_b": (1, 10**6), "lokr_w2": (1, 1)},
         "[1000000, 1000000]"),
        ({f"hada_w{n}_{h}": (10**6, 1) if h == "a" else (1, 10**6) for n in (1, 2) for h in "ab"},
         "[1000000, 1000000]"),
        ({"lora_down.weight": (1, 10**6), "lora_up.weight": (10**6, 1)}, "[1000000, 1000000]"),
    ],
)  # fmt: skip
def test_a_product_too_large_is_never_made(
    tmp_path: Path, roles: dict[str, tuple[int, int]], shape: str
) -> None:
    """Terabytes from megabytes: the shape is compared with the layer's first."""
    tensors = {name: torch.ones(size, dtype=torch.float16) for name, size in roles.items()}
    adapter = lora.read(
        write(tmp_path, loras.by_layer({"mid_block.attentions.0.proj_in": tensors}))
    )
    line = refused(lambda: lora.apply({"unet": make_unet()}, [(adapter, 1.0)]))
    assert f"proj_in is of {shape}, the model's of [64, 64, 1, 1]" in line


ROLES = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias", "alpha", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "diff", "diff_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "w_norm",
)  # fmt: skip
shapes = st.lists(st.sampled_from([1, 2, 4, 8]), max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(roles=st.dictionaries(st.sampled_from(ROLES), shapes, min_size=1, max_size=6))
def test_any_tensors_are_read_as_they_say_or_refused(
    tmp_path_factory: pytest.TempPathFactory, roles: dict[str, tuple[int, ...]]
) -> None:
    """What is read has the shape that it says; it is folded, or refused and nothing changes."""
    tensors = {name: torch.ones(shape) for name, shape in roles.items()}
    file = write(tmp_path_factory.getbasetemp(), loras.by_layer({"0": tensors}, "lora_te_"))
    module = nn.Sequential(nn.Conv2d(4, 8, 2))
    try:
        adapter = lora.read(file)
        (layer,) = adapter.layers
        check_shapes(layer)
        lora.apply({"text_encoder": module}, [(adapter, 0.5)])
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def check_shapes(layer: Layer) -> None:
    for parameter, shape in layer.shapes.items():
        assert tuple(layer.delta(parameter).shape) == shape
    if layer.weight is not None:
        assert float(layer.weight.values().abs().max()) <= layer.weight.bound
