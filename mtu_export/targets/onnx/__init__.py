"""ONNX for ONNX Runtime: one folder a component, in the tree that optimum and diffusers open.

Weights never pass through the simplifier: they are lifted out of the exporter's graph, the small
skeleton is simplified in a process of its own, and they are put back when the file is written.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import (
    FloatWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    ResourceError,
    Runtime,
    TensorSpec,
    ToolchainError,
    ToolchainMissing,
    Unsupported,
)
from mtu_export.targets.onnx.reading import DATA, structure
from mtu_export.targets.onnx.running import last_line, open, runner
from mtu_export.targets.onnx.stock import border_names, repeated_outputs, write_configs

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

suffix = ".onnx"
packages = ("onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")
__all__ = [
    "Options",
    "check",
    "default_scheme",
    "lower",
    "memory",
    "open",
    "packages",
    "rewrites",
    "runner",
    "runtimes",
    "slow",
    "structure",
    "suffix",
    "witness",
]

rewrites: tuple[str, ...] = ()
default_scheme = "fp32"
runtimes: Mapping[str, Runtime] = {}
slow = witness = None
memory = {"fp32": 2.0, "fp16": 1.6, "int8": 1.2}

FILE = "model.onnx"
OPSETS = (18, 19, 20, 21)
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
SINGLE_FILE_BYTES = 10**9
LIFTED_BYTES = 1024
HALF_MAX = 65504.0
DEQUANTIZE = "quantized_decomposed.dequantize_per_channel.default"
WEIGHT_OPERATORS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "Transpose")


@dataclass(frozen=True, kw_only=True)
class Options:
    """``opset``: version of the operator set; ONNX Runtime 1.20 and later read all of them."""

    opset: int = field(
        default=20, metadata={"help": "ONNX operator set version", "choices": OPSETS}
    )

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise Unsupported(f"onnx: opset {self.opset!r} is refused; choose from 18, 19, 20, 21")


def check(plan: Plan) -> None:
    """Refuse several tasks, and weights other than float32, float16 and int8 per channel."""
    if len(plan.tasks) != 1:
        raise Unsupported(f"onnx: one task a bundle for now, got {len(plan.tasks)}; choose one")
    weights = plan.scheme.weights
    if isinstance(weights, FloatWeights):
        if weights.dtype not in ("float32", "float16"):
            raise Unsupported(f"onnx: no {weights.dtype} weights; nearest scheme: fp16")
    elif weights.bits != 8 or not isinstance(weights.granularity, PerChannel):
        raise Unsupported(
            f"onnx: scheme {plan.scheme.name!r} is not 8 bits per channel; nearest scheme: int8"
        )
    for package in ("onnx", "onnx-ir", "onnxscript"):
        if find_spec(package.replace("-", "_")) is None:
            raise ToolchainMissing(package, "onnx")


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Write ``<component>/model.onnx`` (``.onnx_data`` above 1 GB) and the stock configs."""
    if len(program.methods) != 1:
        raise Unsupported("onnx: one task a bundle for now; export the tasks one by one")
    ((task, exported),) = program.methods.items()
    names, opset = border_names(program.name, plan), plan.options.opset
    inputs, outputs = (
        tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in side)
        for side in (program.inputs[task], program.outputs)
    )
    codes = _quantised(exported)
    model = _export(exported, [s.name for s in inputs], [s.name for s in outputs], opset)
    weights = _lift(model)
    model, simplifier = _simplify(model)
    half = plan.scheme.weights == FloatWeights(dtype="float16")
    kept = _restore(model, weights, half=half)
    _repeat(model, repeated_outputs(program.name, plan))
    _describe(model, program.name, identity)
    home = folder / program.name
    _write(model, home)
    _prove(home, inputs, outputs, codes)
    write_configs(program.name, plan, folder)
    specs, parameters = (*program.inputs[task], *program.outputs), exported.state_dict
    notes = {"opset": opset, "ir_version": model.ir_version, "simplifier": simplifier}
    return Lowered(
        path=program.name,
        entries={task: FILE},
        borders={s.name: names[s.name] for s in specs if s.name in names},
        activations="float32",
        kept_float=tuple((program.layer(name), why) for name, why in kept if name in parameters),
        weight_dtype="float16" if half else "float32",
        notes=notes,
    )


def _fingerprint(codes: np.ndarray, scales: np.ndarray, axis: int) -> str:
    digest = hashlib.sha256(f"{codes.dtype}{codes.shape}{scales.dtype}{axis}".encode())
    digest.update(codes.tobytes())
    digest.update(scales.tobytes())
    return digest.hexdigest()


def _quantised(exported: torch.export.ExportedProgram) -> Counter[str]:
    """Fingerprints (codes, scales, axis) of the dequantised weights."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    names |= signature.inputs_to_lifted_tensor_constants
    tensors = {**exported.constants, **exported.state_dict}
    found: Counter[str] = Counter()
    for node in exported.graph.nodes:
        if node.op == "call_function" and str(node.target) == DEQUANTIZE:
            codes, scales = (tensors[names[arg.name]].detach().numpy() for arg in node.args[:2])
            found[_fingerprint(codes, scales, node.args[3])] += 1
    return found


def _export(
    exported: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], opset: int
) -> ir.Model:
    """The exporter's graph; its weights still share memory with ``exported``."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:
        raise ToolchainError(f"torch.onnx.export failed: {last_line(error)}") from error
    if program is None or program.model.functions:
        raise ToolchainError("torch.onnx.export left functions that are not ONNX operators")
    return program.model


def _lift(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn large weights and all that is dequantised into graph inputs; return them by name."""
    lifted: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        quantised = any(node.op_type == "DequantizeLinear" for node, _ in value.uses())
        if tensor is not None and (quantised or tensor.nbytes > LIFTED_BYTES):
            lifted[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return lifted


def _simplify(model: ir.Model) -> tuple[ir.Model, str]:
    """Run onnxsim on the skeleton in a child process; keep ``model`` where that fails."""
    import onnx_ir as ir
    import torch

    try:
        simplifier = f"onnxsim {version('onnxsim')}"
        with tempfile.TemporaryDirectory() as temporary:
            before, after = Path(temporary, "skeleton.onnx"), Path(temporary, "simple.onnx")
            ir.save(model, before)
            # Not in this process: a crash in native code must not end the export.
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-P", "-m", "onnxsim", before.name, after.name, "--no-certify"],
                cwd=temporary,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=900,
            )
            if done.returncode:
                raise ToolchainError(f"status {done.returncode}: {last_line(done.stderr)}")
            simple = ir.load(after)
        if _outline(simple) != _outline(model):
            raise ToolchainError("it changed inputs, outputs or quantised weights")
    except PackageNotFoundError:
        reason = "onnxsim is not installed"
    except subprocess.TimeoutExpired:
        reason = "onnxsim failed: no result in 900 s"
    except Exception as error:
        reason = f"onnxsim failed: {last_line(error)}"
    else:
        return simple, simplifier
    return model, f"torch.onnx {torch.__version__.partition('+')[0]} ({reason})"


def _outline(model: ir.Model) -> tuple[object, ...]:
    """What a simplifier must leave: opset, borders, and which weights are dequantised."""
    graph = model.graph
    used = [v for v in graph.inputs if v.uses()]
    borders = [[(v.name, v.dtype, str(v.shape)) for v in side] for side in (used, graph.outputs)]
    quantised = Counter(
        tuple(v.name if v is not None else "" for v in node.inputs)
        for node in graph
        if node.op_type == "DequantizeLinear"
    )
    return dict(model.opset_imports), borders, quantised


def _restore(
    model: ir.Model, weights: Mapping[str, ir.TensorProtocol], *, half: bool
) -> list[tuple[str, str]]:
    """Put the lifted weights back, as float16 and a Cast where ``half``; return what stayed.

    Vectors (biases, norms) are float32 in every scheme.
    """
    kept: list[tuple[str, str]] = []
    casts: list[ir.Node] = []
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        tensor = weights[str(value.name)]
        operators = {node.op_type for node, _ in value.uses()}
        if not operators:
            continue
        if half and len(tensor.shape) > 1:
            if not operators <= set(WEIGHT_OPERATORS):
                kept.append((str(value.name), f"read by {', '.join(sorted(operators))}"))
            elif abs(tensor.numpy()).max() > HALF_MAX:
                kept.append((str(value.name), "beyond the range of float16"))
            else:
                tensor = _halve(value, tensor, casts)
        value.const_value = tensor
        model.graph.register_initializer(value)
    if casts:
        model.graph.insert_before(model.graph.node(0), casts)
    return kept


def _halve(value: ir.Value, tensor: ir.TensorProtocol, casts: list[ir.Node]) -> ir.TensorProtocol:
    """Make ``value`` float16, followed by a Cast to float32 that the runtime folds at load."""
    import numpy as np
    import onnx_ir as ir

    wide = ir.Value(name=f"{value.name}_float32", shape=value.shape, type=value.type)
    value.replace_all_uses_with(wide)
    casts.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, outputs=[wide]))
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float16)),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(tensor.numpy().shape),
        name=value.name,
    )


def _repeat(model: ir.Model, outputs: Mapping[str, str]) -> None:
    """Give outputs a second name: new name -> output that it repeats."""
    import onnx_ir as ir

    for name, source in outputs.items():
        value = next(value for value in model.graph.outputs if value.name == source)
        twin = ir.Value(name=name, shape=value.shape, type=value.type)
        model.graph.append(ir.node("Identity", [value], outputs=[twin]))
        model.graph.outputs.append(twin)


def _describe(model: ir.Model, name: str, identity: Mapping[str, str]) -> None:
    """Replace all that the tools say of themselves, their sources and this machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    for entry in (model, graph, *graph.all_nodes(), *values):
        entry.metadata_props.clear()
        entry.doc_string = None
    model.metadata_props.update(sorted(identity.items()))
    model.producer_name, model.producer_version, model.domain = "mtu-export", None, None
    model.ir_version = min(model.ir_version, IR_VERSION)
    graph.name = name


def _write(model: ir.Model, home: Path) -> None:
    import onnx_ir as ir

    tensors = (value.const_value for value in model.graph.initializers.values())
    total = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    data = DATA if total > SINGLE_FILE_BYTES else None
    try:
        home.mkdir(parents=True, exist_ok=True)
        ir.save(model, home / FILE, external_data=data, alignment=4096)
    except OSError as error:
        raise ResourceError(f"cannot write {home.name}/{FILE}: {error.strerror}") from error


def _prove(
    home: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    codes: Counter[str],
) -> None:
    """Check the written file: valid ONNX, the borders asked for, the codes bit by bit."""
    import onnx
    import onnx_ir as ir

    try:
        onnx.checker.check_model(str(home / FILE))
    except Exception as error:
        raise ToolchainError(f"onnx.checker refuses {home.name}: {last_line(error)}") from error
    found = structure(home, FILE)
    if (found.inputs, found.outputs) != (inputs, outputs):
        raise ToolchainError(f"{home.name}: the exporter changed inputs or outputs")
    if not codes:
        return
    written: Counter[str] = Counter()
    for node in ir.load(home / FILE).graph:
        if node.op_type == "DequantizeLinear":
            stored, scales = (v.const_value if v else None for v in node.inputs[:2])
            axis = node.attributes.get_int("axis", 1)
            if stored is not None and scales is not None:
                written[_fingerprint(stored.numpy(), scales.numpy(), axis)] += 1
    # Equal weights may share one DequantizeLinear; none may be missing, changed or doubled.
    if written.keys() != codes.keys() or written - codes:
        raise ToolchainError(f"{home.name}: quantised weights were changed on the way to ONNX")
