"""Every form of LoRA under every trainer's names, each against a reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtu_export.bundle.metrics import psnr
from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing import loras
from mtu_export.testing.campaigns.loras import (
    LAYERS,
    NORMS,
    RANK,
    SCALE,
    Write,
    attention,
    biased,
    by_diffusers,
    by_lycoris,
    by_peft,
    dora,
    fold,
    kohya_unet,
    make_unet,
    named,
    of_unet,
    original,
    text_encoder,
)

FLOOR_DB = 120.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One form under one set of names; ``measure`` returns the PSNR in dB of a folder's file."""

    form: str
    names: str
    writer: str
    reference: str
    measure: Callable[[Path], float]

    @property
    def needs(self) -> str | None:
        """A package that the reference is of, where that is not always installed."""
        first = self.reference.split(",")[0].lower()
        return {"diffusers": "peft", "peft": "peft", "lycoris": "lycoris"}.get(first)

    @property
    def runs(self) -> bool:
        """Whether the reference is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def __str__(self) -> str:
        return f"{self.form}-{self.names}-{self.reference.split(',')[0]}".replace(" ", "_")


# ------------------------------------------------------------------------------------- equations

Build = Callable[[nn.Module, int], loras.Roles]


def by_equation(
    folder: Path, build: Build, paths: tuple[str, ...] = tuple(LAYERS.values())
) -> float:
    """The lowest PSNR of the weights against W + Δ in float64."""
    unet = make_unet()
    roles = {path: build(unet.get_submodule(path), 100 * n) for n, path in enumerate(paths)}
    file = loras.write(folder / "x.safetensors", loras.by_layer(roles))
    want = {}
    for path, tensors in roles.items():
        layer: Any = unet.get_submodule(path)
        for name, value in equation(layer, tensors, SCALE).items():
            want[f"{path}.{name}"] = value
    fold({UNET: unet}, f"{file}:{SCALE}")
    return min(
        psnr(value.numpy(), unet.get_parameter(name).detach().double().numpy())
        for name, value in want.items()
    )


def equation(layer: Any, roles: loras.Roles, scale: float) -> dict[str, Tensor]:
    """Weight and bias that a form's definition gives, in float64."""
    t = {name.removesuffix(".weight"): tensor.double() for name, tensor in roles.items()}
    weight = layer.weight.detach().double()
    results = {}
    bias = t.get("diff_b", t.get("b_norm"))
    if bias is not None:
        results["bias"] = layer.bias.detach().double() + scale * bias
    delta = scale * _delta(t).reshape(weight.shape)
    results["weight"] = weight + delta
    if "dora_scale" in t:
        m = t["dora_scale"]
        norms = (
            ((weight + delta) ** 2).flatten(2).sum(2) if weight.ndim == 4 else (weight + delta) ** 2
        )
        axis = 1 if m.shape[0] == weight.shape[0] else 0
        norms = norms.sum(axis, keepdim=True).sqrt()
        results["weight"] = (weight + delta) * m / norms.reshape(m.shape)
    return results


def _delta(t: Mapping[str, Tensor]) -> Tensor:
    """Δ in float64, with alpha/rank, from tensors under their stored names."""
    if "diff" in t or "w_norm" in t:
        return t["diff"] if "diff" in t else t["w_norm"]
    if "lora_mid" in t:
        down, up = t["lora_down"].flatten(1), t["lora_up"].flatten(1)
        factor = t["alpha"] / down.shape[0]
        return factor * torch.einsum("or,rskl,si->oikl", up, t["lora_mid"], down)
    if "lora_down" in t:
        down, up = t["lora_down"].flatten(1), t["lora_up"].flatten(1)
        return t["alpha"] / down.shape[0] * (up @ down)
    if "hada_t1" in t:
        one, two = (
            torch.einsum("ijkl,io,jm->omkl", t[f"hada_t{n}"], t[f"hada_w{n}_a"], t[f"hada_w{n}_b"])
            for n in (1, 2)
        )
        return t["alpha"] / len(t["hada_w1_b"]) * one * two
    if "hada_w1_a" in t:
        factor = t["alpha"] / len(t["hada_w1_b"])
        return factor * (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    rank = next((len(t[n]) for n in ("lokr_w1_b", "lokr_w2_b") if n in t), None)
    factor = 1.0 if rank is None else t["alpha"] / rank
    one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_t2" in t:
        two = torch.einsum("ijkl,ib,jd->bdkl", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        two = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    blocks = torch.einsum("ac,bd...->abcd...", one, two)
    return factor * blocks.reshape(
        one.shape[0] * two.shape[0], one.shape[1] * two.shape[1], *two.shape[2:]
    )


def _with_dora(build: Build, axis: int) -> Build:
    """The same layer with a magnitude for each of its rows or columns."""
    return lambda layer, seed: {
        **build(layer, seed),
        "dora_scale": loras.magnitude(layer, seed + 50, axis),
    }


# ----------------------------------------------------------------------------------------- table

_OUTPUTS, _WEIGHTS = "diffusers, outputs", "equation in float64, weights"
_LORA = "lora_down, lora_up, alpha"
_SCALES = {UNET: {"down": 0.3, "mid": 1.5, "up": {"block_1": [0.2, 0.9]}}}
_PEFT: Write = partial(of_unet, build=loras.peft)


def _of_diffusers() -> list[Case]:
    linear: Write = partial(of_unet, build=loras.old_diffusers, kinds=nn.Linear)
    style = named(_PEFT, "default", "style")

    def run(*writes: Write, **options: Any) -> Callable[[Path], float]:
        return partial(by_diffusers, writes, **options)

    two = run(_PEFT, dora, words=(":0.5", ":0.7"), weights=(0.5, 0.7))
    turned = run(dora, _PEFT, words=(":0.7", ":0.5"), weights=(0.7, 0.5))
    fused = run(_PEFT, dora, words=(":0.5", ":0.7"), weights=(0.5, 0.7), fuse=True)
    three = run(_PEFT, kohya_unet, text_encoder, words=(":0.5", ":-1", ":1"), weights=(0.5, -1, 1))
    blocks = run(attention, words=(":down=0.3,mid=1.5,up.1.0=0.2,up.1.1=0.9",), weights=(_SCALES,))
    one = run(style, words=(f"#style:{SCALE}",), theirs=(_twice,))
    rows = [
        ("LoRA", "unet.*.lora_A, lora_B", "diffusers, PEFT", run(_PEFT)),
        ("LoRA", "unet.*.lora_A.style of two adapters", "PEFT", one),
        ("LoRA", "unet.*.processor.to_q_lora.down", "diffusers 0.1x", run(linear)),
        ("LoRA", f"lora_unet_down_blocks_*: {_LORA}", "kohya, SD", run(kohya_unet)),
        (
            "LoRA",
            f"lora_unet_input_blocks_*, lora_te1_, lora_te2_: {_LORA}",
            "kohya, SDXL",
            run(original, architecture="tiny-sdxl"),
        ),
        ("LoRA", f"lora_te_*: {_LORA}", "kohya, SD", run(text_encoder)),
        ("LoRA with bias", "lora_B.bias", "PEFT", run(biased)),
        ("LoRA, scales of blocks", "unet.*.lora_A, lora_B", "diffusers", blocks),
        ("DoRA", "lora_magnitude_vector", "diffusers, PEFT", run(dora)),
        ("LoRA, then DoRA", "lora_A, lora_magnitude_vector", "two files", two),
        ("DoRA, then LoRA", "lora_magnitude_vector, lora_A", "two files", turned),
        ("LoRA, then DoRA, fused", "lora_A, lora_magnitude_vector", "two files", fused),
        ("three LoRAs", "lora_A, lora_unet_*, lora_te_*", "three files", three),
    ]
    return [_case(*row[:3], _OUTPUTS, row[3]) for row in rows]


def _twice(parts: Any) -> dict[str, Tensor]:
    """The second adapter of ``named``, without its name."""
    return {key: tensor * 2 for key, tensor in _PEFT(parts).items()}


def _of_equations() -> list[Case]:
    kernels = tuple(LAYERS[name] for name in ("3x3", "strided"))
    factors = {
        "lokr_w1, lokr_w2": ("whole", "whole"),
        "lokr_w1, lokr_w2_a, lokr_w2_b": ("whole", "product"),
        "lokr_w1_a, lokr_w1_b, lokr_w2_a, lokr_w2_b": ("product", "product"),
    }
    forms: list[tuple[str, str, Build]] = [
        ("LoHa", "hada_w1_a, ...", lambda layer, n: loras.loha(layer, RANK, n)),
        *(("LoKr", names, _lokr(*kinds)) for names, kinds in factors.items()),
        ("full", "diff, diff_b", loras.full),
    ]
    cores: list[tuple[str, str, Build]] = [
        ("LoCon", "lora_mid", lambda layer, n: loras.lora_roles(layer, RANK, n, mid=True)),
        ("LoHa", "hada_t1, hada_t2", lambda layer, n: loras.loha(layer, RANK, n, cores=True)),
        ("LoKr", "lokr_t2", _lokr("product", "core")),
    ]
    cases = [
        _case(form, names, "LyCORIS", _WEIGHTS, partial(by_equation, build=build))
        for form, names, build in forms
    ]
    cases += [
        _case(form, names, "LyCORIS", _WEIGHTS, partial(by_equation, build=build, paths=kernels))
        for form, names, build in cores
    ]
    norms = partial(by_equation, build=loras.full, paths=NORMS)
    cases.append(_case("full, of norms", "w_norm, b_norm", "LyCORIS", _WEIGHTS, norms))
    plain: Build = lambda layer, n: loras.lora_roles(layer, RANK, n)  # noqa: E731
    for form, build in (("LoRA", plain), ("LoHa", forms[0][2]), ("LoKr", forms[2][2])):
        for axis, which in enumerate(("rows", "columns")):
            run = partial(by_equation, build=_with_dora(build, axis))
            names = f"dora_scale of {which}"
            cases.append(_case(f"DoRA of {form}", names, "LyCORIS", _WEIGHTS, run))
    return cases


def _lokr(first: str, second: str) -> Build:
    return lambda layer, seed: loras.lokr(layer, RANK, seed, first, second)


def _of_programs() -> list[Case]:
    """What PEFT and LyCORIS save and run themselves."""
    cases = []
    for kind in ("LoHa", "LoKr"):
        for cores in (False, True):
            names = "adapter_config.json" + (", cores" if cores else "")
            run = partial(by_peft, kind=kind, use_effective_conv2d=cores)
            cases.append(_case(kind, names, "PEFT", "PEFT, outputs", run))
    modules = {
        "LoCon": ("locon.LoConModule", {"lora_dim": RANK}),
        "LoHa": ("loha.LohaModule", {"lora_dim": RANK}),
        "LoKr": ("lokr.LokrModule", {"lora_dim": 2}),
        "LoKr of two products": ("lokr.LokrModule", {"lora_dim": 2, "decompose_both": True}),
        "LoKr, whole": ("lokr.LokrModule", {"lora_dim": 100, "alpha": 3}),
    }
    variants = {
        "": {},
        "cores, rsLoRA": {"use_tucker": True, "rs_lora": True},
        "dora_scale of rows": {"weight_decompose": True},
        "dora_scale of columns": {"weight_decompose": True, "wd_on_out": False},
    }
    for form, (module, options) in modules.items():
        for variant, more in variants.items():
            if form == "LoKr, whole" and "rs_lora" in more:
                continue  # its file does not hold the rank that this divides by
            run = partial(by_lycoris, kind=module, **{"alpha": 2, **options, **more})
            cases.append(_case(form, variant or "its own", "LyCORIS", "LyCORIS, outputs", run))
    run = partial(by_lycoris, kind="norms.NormModule")
    return [*cases, _case("full, of norms", "its own", "LyCORIS", "LyCORIS, outputs", run)]


def _case(
    form: str, names: str, writer: str, reference: str, measure: Callable[[Path], float]
) -> Case:
    return Case(form=form, names=names, writer=writer, reference=reference, measure=measure)


CASES: tuple[Case, ...] = (*_of_diffusers(), *_of_equations(), *_of_programs())
"""Rows of the table; those of a program that is not installed do not run."""
