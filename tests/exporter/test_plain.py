"""The plain export: what a toolchain makes by itself of the folded task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from mtu_export import bundle, exporter, targets
from mtu_export.bundle import Bundle, metrics, verification
from mtu_export.exporter.options import resolve
from mtu_export.spec import BundleError, Plan, PlanError, Program, ToolchainError, Unsupported
from mtu_export.targets.executorch import lowering, plain

TASK = "edit"


class _Caught(Exception):
    """Ends an export with the program that would be lowered."""

    def __init__(self, program: Program) -> None:
        self.program = program


def captured(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The operators of what a target is given."""

    def lower(self: Any, program: Program, *_: Any) -> Any:
        raise _Caught(program)

    monkeypatch.setattr(type(targets.load(plan.target)), "lower", lower)
    with pytest.raises(_Caught) as caught:
        exporter.export(plan)
    (method,) = caught.value.program.methods.values()
    return Counter(str(node.target) for node in method.graph.nodes if node.op == "call_function")


def test_no_rewrite_and_no_codes_of_ours(
    atom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention stays one operator, GEGLU one projection, weights float."""
    settings: dict[str, Any] = {"target": "executorch", "model": atom, "task": TASK}
    settings |= {"scheme": "int8", "out": tmp_path / "b"}
    theirs, ours = (
        captured(resolve(**settings, **options), monkeypatch) for options in ({"plain": True}, {})
    )
    attention, codes = "aten.scaled_dot_product_attention", "quantized_decomposed.dequantize"
    assert sum(count for name, count in theirs.items() if name.startswith(attention)) == 2
    assert not [name for name in ours if name.startswith(attention)]
    assert not [name for name in theirs if name.startswith(codes)]
    assert [name for name in ours if name.startswith(codes)]
    assert theirs["aten.linear.default"] < ours["aten.linear.default"]


def operators(source: Bundle) -> Counter[str]:
    part = source.parts[0]
    model = onnx.load(part.path / part.entries[TASK], load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "psnr"),
    [("fp32", 110), pytest.param("fp16", 55, marks=pytest.mark.exhaustive), ("int8", 30)],
)
def test_onnx_is_as_its_tools_make_it(
    scheme: str, psnr: float, bundles: Callable[..., Path]
) -> None:
    exported = bundle.read(bundles("onnx", scheme, (TASK,), plain=True, min_psnr=0))
    assert exported.manifest.options["plain"] is True
    part, counts = exported.parts[0], operators(exported)
    (verdict,) = (v for v in exported.proof if v.stage != "folded")
    assert verdict.floor_db == 0
    assert verdict.psnr_db is not None
    assert verdict.psnr_db > psnr
    assert counts["DequantizeLinear"] == 0
    integer = scheme == "int8"
    assert bool(counts["MatMulInteger"]) is integer
    assert part.scheme.activations == ("dynamic_int8" if integer else "float32")
    ours = bundle.read(bundles("onnx", scheme, (TASK,))).manifest.parts[0]
    assert part.record.cost.weight_bytes < 1.1 * ours.cost.weight_bytes
    assert part.record.cost.weight_bytes <= part.record.bytes
    assert str(Path.home()) not in (part.path / part.entries[TASK]).read_bytes().decode("latin-1")


@pytest.mark.slow
def test_a_bundle_without_such_operators_cannot_have_its_label(
    bundles: Callable[..., Path], tmp_path: Path
) -> None:
    """ONNX's floor for integer activations is for files that quantise them."""
    theirs = bundle.read(bundles("onnx", "int8", (TASK,), plain=True, min_psnr=0))
    assert all(v.passed is not False for v in verification.verify_bundle(theirs))
    ours = bundle.read(bundles("onnx", "int8", (TASK,)))
    record = ours.parts[0].record
    assert record.scheme is not None
    scheme = record.scheme.model_copy(update={"activations": "dynamic_int8"})
    manifest = ours.manifest.model_copy(
        update={"parts": (record.model_copy(update={"scheme": scheme}),)}
    )
    with pytest.raises(BundleError, match="onnx quantises no activations"):
        verification.verify_bundle(bundle.assemble(ours.folder, manifest))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_executorch_is_as_its_tools_make_it(scheme: str, bundles: Callable[..., Path]) -> None:
    exported = bundle.read(bundles("executorch", scheme, (TASK,), plain=True, min_psnr=0))
    (verdict,) = (v for v in exported.proof if v.stage != "folded")
    assert verdict.psnr_db is not None
    assert verdict.psnr_db > (110 if scheme == "fp32" else 30)
    part = exported.manifest.parts[0]
    assert part.notes["outside"]["aten_split_with_sizes_copy_default"] == 1  # GEGLU in one piece
    assert part.cost.weight_bytes < part.bytes


@pytest.mark.slow
def test_executorch_quantises_linear_layers_and_convolutions(tmp_path: Path) -> None:
    """Layers that share an input, as those of attention do."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return (self.query(tokens) * self.key(tokens).softmax(-1)).sum(1)

    torch.manual_seed(0)
    module, x = Layers().eval(), torch.randn(1, 8, 4, 4)
    method = plain.quantised(torch.export.export(module, (x,)))
    assert plain.weight_bytes(method) < 0.5 * sum(4 * p.numel() for p in module.parameters())
    interface = {"forward": {"inputs": ["x"], "outputs": ["y"]}}
    constants = {"_identity": "{}", "_interface": json.dumps(interface)}
    lowering.write({"forward": method}, constants, tmp_path / "a.pte", plain.partitioners())
    session = targets.runtime(targets.load("executorch")).open(tmp_path / "a.pte", "forward")
    expected = module(x).detach().numpy()
    assert 25 < metrics.psnr(expected, session({"x": x.numpy()})["y"]) < 80


@pytest.mark.slow
def test_what_a_tool_refuses_is_one_line(
    atom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.quantization

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("first line\nno such kernel in /home/me/x.py")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", refuse)
    out = tmp_path / "b"
    with pytest.raises(ToolchainError) as refused:
        exporter.export(
            resolve(target="onnx", model=atom, task=TASK, plain=True, scheme="int8", out=out)
        )
    assert str(refused.value) == "--plain: quantize_dynamic failed: no such kernel in ..."
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"task": ["edit", "t2i"]}, PlanError, "--plain exports one task"),
        ({"keep_float": "conv_in", "scheme": "int8"}, PlanError, "no --keep-float"),
        ({"options": {"simplify": True}}, Unsupported, "leave out --simplify"),
    ],
)
def test_refusals(options: dict[str, Any], kind: type, message: str, atom: Path) -> None:
    with pytest.raises(kind, match=message):
        resolve(**{"target": "onnx", "model": atom, "task": TASK, "plain": True, **options})
