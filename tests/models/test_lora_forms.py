"""Every form under every trainer's names against the program that reads it, or its equation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtu_export.models import lora
from mtu_export.spec import CheckpointError
from mtu_export.testing import loras
from mtu_export.testing.campaigns import lora_forms
from mtu_export.testing.campaigns.loras import LAYERS, make_unet


def param(case: lora_forms.Case) -> Any:
    """A case, skipped where its reference is not installed; slow where it takes seconds."""
    marks = [] if case.runs else [pytest.mark.skip(reason=f"{case.needs} is not installed")]
    fast = case.needs is None or case.names in FAST
    return pytest.param(case, id=str(case), marks=[*marks, *([] if fast else [pytest.mark.slow])])


FAST = ("lora_magnitude_vector", "adapter_config.json", "lora_te_*: lora_down, lora_up, alpha")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("case", map(param, lora_forms.CASES))
def test_a_form_is_that_of_its_reference(tmp_path: Path, case: lora_forms.Case) -> None:
    assert case.measure(tmp_path) >= lora_forms.FLOOR_DB


def test_the_table_has_every_form() -> None:
    forms = " ".join(case.form for case in lora_forms.CASES)
    assert all(name in forms for name in ("LoRA", "LoCon", "LoHa", "LoKr", "full", "DoRA"))
    names = [str(case) for case in lora_forms.CASES]
    assert len(set(names)) == len(names)


# ---------------------------------------------------------------------------- forms, one layer

LINEAR, CONV = nn.Linear(12, 8), nn.Conv2d(6, 8, 3)
Roles = loras.Roles


def read(folder: Path, roles: Roles) -> lora.Lora:
    tensors = loras.by_layer({"0": roles}, "lora_te_")
    return lora.read(loras.write(folder / "x.safetensors", tensors))


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def without(roles: Roles, *names: str) -> Roles:
    return {name: tensor for name, tensor in roles.items() if name not in names}


LOHA = loras.loha(LINEAR, 2, 0)
CORES = loras.loha(CONV, 2, 0, cores=True)
LOKR = loras.lokr(LINEAR, 2, 0, "product", "product")
LORA = loras.lora_roles(LINEAR, 2, 0)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (without(LOHA, "hada_w2_b"), "has no hada_w2_b: its pair is missing"),
        (without(CORES, "hada_t2"), "has one core of two"),
        ({**LOHA, "hada_w2_a": torch.ones(8, 3)}, "ranks differ: hada_w1_a [8, 2]"),
        ({**LOHA, "hada_w2_a": torch.ones(9, 2)}, "is not two products of one shape"),
        ({**LOHA, "hada_w2_a": torch.ones(8, 2, 1)}, "is not two products of matrices"),
        ({**CORES, "hada_t1": torch.ones(2, 3, 3, 3)}, "ranks differ"),
        (without(LOKR, "lokr_w2_a"), "needs lokr_w2, or lokr_w2_a and lokr_w2_b"),
        ({**LOKR, "lokr_w1": torch.ones(2, 3)}, "needs lokr_w1, or lokr_w1_a and lokr_w1_b"),
        ({**LOKR, "lokr_w1_a": torch.ones(2, 3), "lokr_w1_b": torch.ones(3, 3)}, "ranks differ"),
        ({**LOKR, "lokr_t2": torch.ones(2, 2)}, "is not a Kronecker product of matrices"),
        (
            {"diff": torch.ones(8, 12), "alpha": torch.tensor(1.0)},
            "an alpha has no meaning for full",
        ),
        ({"diff_b": torch.ones(8), "alpha": torch.tensor(1.0)}, "an alpha and no matrix"),
        ({"diff_b": torch.ones(8, 1)}, "diff_b has shape [8, 1], needs one axis"),
        ({"diff": torch.ones(1, 1, 1, 1, 1)}, "is not the difference of a weight"),
        ({**LORA, **LOHA}, "has tensors of LoRA and LoHa: which one is meant is unknown"),
        ({**LORA, "diff": torch.ones(8, 12)}, "has tensors of LoRA and full"),
        ({"dora_scale": torch.ones(8, 1)}, "has no matrix, only dora_scale"),
        ({"diff_b": torch.ones(8), "dora_scale": torch.ones(8, 1)}, "has a DoRA magnitude without"),
        ({**LORA, "dora_scale": torch.ones(2, 4)}, "dora_scale has shape [2, 4], needs one axis"),
        (
            {**LORA, "lora_up.bias": torch.ones(8), "diff_b": torch.ones(8)},
            "two differences of its",
        ),
        ({**LOHA, "lora_up.bias": torch.ones(8)}, "has the bias of a LoRA without its matrices"),
        ({**LOHA, "hada_w1_a": torch.full((8, 2), 9e5), "hada_w1_b": torch.full((2, 12), 9e5)}, ""),
    ],
)
def test_tensors_that_make_no_form(tmp_path: Path, roles: Roles, reason: str) -> None:
    if not reason:
        roles = {name: tensor * 1e5 for name, tensor in roles.items() if name != "alpha"}
        roles = {name: tensor.clamp(-9e5, 9e5) for name, tensor in roles.items()}
        reason = "its values may exceed 1e+15"
    text = refused(lambda: read(tmp_path, roles))
    assert reason in text
    assert "layer '0' of text_encoder" in text


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (loras.loha(nn.Linear(12, 9), 2, 0), "0 is of [9, 12], the model's of [8, 12]"),
        (loras.loha(nn.Conv2d(6, 8, 5), 2, 0), "0 is of [8, 150], the model's of [8, 12]"),
        (loras.lokr(nn.Conv2d(6, 8, 3), 2, 0, "whole", "whole"), "0 is of [8, 6, 3, 3], the"),
        ({"diff": torch.ones(12, 8)}, "0 is of [12, 8], the model's of [8, 12]"),
        ({"diff_b": torch.ones(12)}, "0 bias is of [12], the model's of [8]"),
        ({**LORA, "dora_scale": torch.ones(9, 1)}, "has 9 magnitudes for 8 rows"),
        ({**LORA, "dora_scale": torch.ones(1, 8)}, "has 8 magnitudes for 12 columns"),
    ],
)
def test_forms_of_another_shape_name_both(tmp_path: Path, roles: Roles, reason: str) -> None:
    adapter = read(tmp_path, roles)
    module = nn.Sequential(copy.deepcopy(LINEAR))
    text = refused(lambda: lora.apply({"text_encoder": module}, [(adapter, 1.0)]))
    assert reason in text
    assert torch.equal(module.get_parameter("0.weight"), LINEAR.weight)


def test_a_bias_that_the_layer_lacks(tmp_path: Path) -> None:
    adapter = read(tmp_path, {"diff_b": torch.ones(8)})
    module = nn.Sequential(nn.Linear(12, 8, bias=False))
    text = refused(lambda: lora.apply({"text_encoder": module}, [(adapter, 1.0)]))
    assert "0 bias is of [8], the model's has no bias" in text


def test_a_zero_row_stays_zero(tmp_path: Path) -> None:
    roles = {"diff": torch.zeros(8, 12), "dora_scale": torch.full((8, 1), 2.0)}
    module = nn.Sequential(copy.deepcopy(LINEAR))
    with torch.no_grad():
        module.get_parameter("0.weight")[3] = 0
    lora.apply({"text_encoder": module}, [(read(tmp_path, roles), 1.0)])
    norms = module.get_parameter("0.weight").norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([2.0, 2, 2, 0, 2, 2, 2, 2]))


def test_forms_are_counted_by_name(tmp_path: Path) -> None:
    unet = make_unet()
    paths = list(LAYERS.values())
    layers = [unet.get_submodule(path) for path in paths]
    roles = {
        paths[0]: {
            **loras.lora_roles(layers[0], 2, 0),
            "dora_scale": loras.magnitude(layers[0], 0),
        },
        paths[1]: {**loras.loha(layers[1], 2, 0), "dora_scale": loras.magnitude(layers[1], 0)},
        paths[2]: loras.lokr(layers[2], 2, 0, "whole", "product"),
        paths[3]: loras.full(layers[3], 0),
        paths[4]: loras.lora_roles(layers[4], 2, 0),
    }
    adapter = lora.read(loras.write(tmp_path / "x.safetensors", loras.by_layer(roles)))
    report = lora.apply({"unet": unet}, [(adapter, 1.0)])
    assert report.changed == {"unet": 6}  # five weights and a bias
    (record,) = lora.identity([(adapter, lora.Scales(0.5, (("mid", 1.0),)))], ["unet"])
    forms = {"DoRA": 1, "LoHa with DoRA": 1, "LoKr": 1, "full": 1, "LoRA": 1}
    assert record["forms"] == forms
    assert (record["scale"], record["blocks"], record["layers"]) == (0.5, {"mid": 1.0}, {"unet": 5})
