"""ONNX for ONNX Runtime: one folder per part, laid out as optimum and diffusers expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtu_export.spec import (
    FloatWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    Runtime,
    Structure,
    Support,
    Target,
    TargetInfo,
    Unsupported,
)
from mtu_export.spec.extras import require
from mtu_export.targets.onnx import lowering, plain, reading, running

OPSETS = (18, 19, 20, 21)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the ONNX target.

    ``opset`` is the version of the operator set; ONNX Runtime 1.20 and later read all of them.
    ``simplify``: whether onnxsim runs over the graph. On graphs exported here it changes nothing,
    as the optimiser of ``torch.onnx`` has run before.
    """

    opset: int = field(
        default=20, metadata={"help": "ONNX operator set version", "choices": OPSETS}
    )
    simplify: bool = field(default=False, metadata={"help": "run onnxsim over the graph"})


class Onnx:
    """ONNX files, run by ONNX Runtime."""

    info = TargetInfo(
        suffix=lowering.SUFFIX,
        packages=("onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime"),
        default_scheme="fp32",
        supports={
            "fp32": Support(memory=2.0, plain=2.0),
            "fp16": Support(memory=1.6),
            "int8": Support(memory=1.2, plain=4.2),
        },
        multitask_rewrites=("geglu", "gate_weight"),
        float16_gains=True,
        integer_operators=("DequantizeLinear", "MatMulInteger", "ConvInteger"),
        activation_operators=("DynamicQuantizeLinear",),
        session_options=dict([running.ACTIVATIONS]),
        baselines=("unfolded", "plain"),
    )
    options = Options
    runtimes: Mapping[str, Runtime] = {"onnxruntime": running}

    def validate_plan(self, plan: Plan) -> None:
        """Refuse weights other than float32, float16 and int8 per channel, and clashing names."""
        if any(plan.spec(name).by_task for name in plan.parts):
            _refuse_clashing_names([task.name for task in plan.tasks])
        if plan.is_plain and plan.options.simplify:
            raise Unsupported("onnx: --plain is without onnxsim; leave out --simplify")
        weights = plan.scheme.weights
        if isinstance(weights, FloatWeights):
            if weights.dtype not in ("float32", "float16"):
                raise Unsupported(f"onnx: no {weights.dtype} weights; nearest scheme: fp16")
        elif weights.bits != 8 or not isinstance(weights.granularity, PerChannel):
            raise Unsupported(
                f"onnx: scheme {plan.scheme.name!r} is not 8 bits per channel; nearest scheme: int8"
            )
        require("onnx", "onnx_ir", "onnxscript")

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Write ``<part>/model.onnx``, or one file per task on shared weights."""
        if plan.is_plain:
            return plain.lower(program, plan, folder, identity)
        return lowering.lower(program, plan, folder, identity)

    def structure(self, path: Path, entry: str) -> Structure:
        """Read ``path/entry`` without its weights."""
        return reading.structure(path, entry)


TARGET: Target = Onnx()


def _refuse_clashing_names(names: Sequence[str]) -> None:
    """Refuse tasks whose file names clash on systems that ignore case: macOS, Windows."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.lower(), name)
        if first != name:
            raise Unsupported(
                f"onnx: tasks {first!r} and {name!r} would be one file on systems that ignore "
                "case; rename one, or export one bundle per task"
            )
