"""Converts a program to ONNX files with ``torch.onnx``.

Weights are lifted out of the converted graph and put back when a file is written. The remaining
skeleton is optimised and, with ``simplify``, passed through onnxsim in a child process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import FloatWeights, Lowered, Plan, Program, TensorSpec, ToolchainError
from mtu_export.targets.onnx.naming import FILE, IR_VERSION, describe
from mtu_export.targets.onnx.running import last_line
from mtu_export.targets.onnx.shortcuts import shortcuts
from mtu_export.targets.onnx.stock import write_configs
from mtu_export.targets.onnx.writing import Writer

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

SUFFIX = ".onnx"
LIFTED_BYTES = 1024
HALF_MAX = 65504.0
WEIGHT_OPERATORS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "Mul", "Transpose")
"""Operators whose weight may be float16; ``Mul`` applies a task's gains to its rows."""


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Write ``<part>/model.onnx`` (``.onnx_data`` above 1 GB) and the stock configs.

    Several methods become ``<part>/<task>.onnx``, small graphs on one ``.onnx_data`` that
    stores equal tensors once. The graph is converted once, as tasks differ only in values and in
    the width of ``sample``.
    """
    first, stock = next(iter(program.methods)), plan.spec(program.name).stock
    names = {} if stock is None else stock.io_names
    opset = plan.options.opset
    program.require_same_graph()
    exported, task_tensors = program.methods[first], program.task_tensors
    several = len(program.methods) > 1
    signatures = {
        task: (_renamed(specs, names), _renamed(program.outputs, names))
        for task, specs in program.inputs.items()
    }
    skeleton, weights = _skeleton(exported, signatures[first], opset, task_tensors)
    skeleton, simplifier = _simplify(skeleton) if plan.options.simplify else (skeleton, "none")
    half = plan.scheme.weights == FloatWeights(dtype="float16")
    writer = Writer(folder / program.name, task_tensors if several else None)
    kept_float: list[tuple[str, str]] = []
    entries, ir_version = {}, IR_VERSION
    for task, method in program.methods.items():
        model = skeleton.clone() if several else skeleton
        tensors = {**weights, **_tensors(method, task_tensors)}
        reasons = _restore(model, tensors, half=half)
        kept_float += [reason for reason in reasons if reason not in kept_float]
        _widen(model, signatures[task][0])
        _repeat(model, {} if stock is None else stock.repeated)
        describe(model, program.name, identity)
        entries[task] = f"{task}{SUFFIX}" if several else FILE
        writer.write(model, entries[task])
        writer.prove(entries[task], signatures[task], method)
        ir_version = model.ir_version
    write_configs(program.name, plan, folder)
    specs, parameters = (*program.inputs[first], *program.outputs), exported.state_dict
    notes = {"opset": opset, "ir_version": ir_version, "simplifier": simplifier}
    return Lowered(
        path=program.name,
        entries=entries,
        io_names={s.name: names[s.name] for s in specs if s.name in names},
        activations="float32",
        kept_float=tuple(
            (program.layer(name), why) for name, why in kept_float if name in parameters
        ),
        weight_dtype="float16" if half else "float32",
        notes=notes,
    )


def _renamed(specs: Sequence[TensorSpec], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)


def _tensors(method: torch.export.ExportedProgram, names: Collection[str]) -> dict[str, ir.Tensor]:
    """These tensors of a method's state, by name."""
    import onnx_ir as ir

    state = method.state_dict
    return {name: ir.Tensor(state[name].detach().numpy(), name=name) for name in names}


def _skeleton(
    exported: torch.export.ExportedProgram,
    signature: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    opset: int,
    task_tensors: Collection[str],
) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """The converted graph without its weights, and the weights by name.

    The weights share the memory of ``exported``. Nothing that depends on ``task_tensors`` is
    constant-folded.
    """
    import torch

    inputs, outputs = ([spec.name for spec in side] for side in signature)
    try:
        with warnings.catch_warnings(), shortcuts():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            weights = _lift(program.model, task_tensors)
            program.optimize()
    except Exception as error:
        raise ToolchainError(f"torch.onnx.export failed: {last_line(error)}") from error
    if program.model.functions:
        raise ToolchainError("torch.onnx.export left functions that are not ONNX operators")
    missing = sorted({*task_tensors} - {*weights})
    if missing:
        raise ToolchainError(f"torch.onnx.export has no tensor {missing[0]!r}")
    return program.model, weights


def _lift(model: ir.Model, task_tensors: Collection[str]) -> dict[str, ir.TensorProtocol]:
    """Turn large or dequantised weights and ``task_tensors`` into inputs; return them by name."""
    lifted: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        quantised = any(node.op_type == "DequantizeLinear" for node, _ in value.uses())
        large = tensor is not None and tensor.nbytes > LIFTED_BYTES
        if tensor is not None and (quantised or large or name in task_tensors):
            lifted[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return lifted


def _simplify(model: ir.Model) -> tuple[ir.Model, str]:
    """Run onnxsim on the skeleton in a child process, or keep ``model`` if that fails.

    Returns the graph and what simplified it.
    """
    import onnx_ir as ir
    import torch

    try:
        simplifier = f"onnxsim {version('onnxsim')}"
        with tempfile.TemporaryDirectory() as temporary:
            skeleton_file, simple_file = (
                Path(temporary, "skeleton.onnx"),
                Path(temporary, "simple.onnx"),
            )
            ir.save(model, skeleton_file)
            # In a child process: a crash in native code must not end the export.
            process = subprocess.run(  # noqa: S603
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "onnxsim",
                    skeleton_file.name,
                    simple_file.name,
                    "--no-certify",
                ],
                cwd=temporary,
                env={"ORT_DISABLE_TELEMETRY": "1", **os.environ, "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=900,
            )
            if process.returncode:
                raise ToolchainError(f"status {process.returncode}: {last_line(process.stderr)}")
            simplified = ir.load(simple_file)
        if _outline(simplified) != _outline(model):
            raise ToolchainError("it changed inputs, outputs or quantised weights")
    except PackageNotFoundError:
        reason = "onnxsim is not installed"
    except subprocess.TimeoutExpired:
        reason = "onnxsim failed: no result in 900 s"
    except Exception as error:
        reason = f"onnxsim failed: {last_line(error)}"
    else:
        return simplified, simplifier
    return model, f"torch.onnx {torch.__version__.partition('+')[0]} ({reason})"


def _outline(model: ir.Model) -> tuple[object, ...]:
    """What a simplifier must preserve: opset, inputs, outputs, and the dequantised weights."""
    graph = model.graph
    used_inputs = [v for v in graph.inputs if v.uses()]
    signature = [
        [(v.name, v.dtype, str(v.shape)) for v in side] for side in (used_inputs, graph.outputs)
    ]
    quantised = Counter(
        tuple(v.name if v is not None else "" for v in node.inputs)
        for node in graph
        if node.op_type == "DequantizeLinear"
    )
    return dict(model.opset_imports), signature, quantised


def _restore(
    model: ir.Model, weights: Mapping[str, ir.TensorProtocol], *, half: bool
) -> list[tuple[str, str]]:
    """Put the lifted weights back, with ``half`` as float16 followed by a Cast.

    Vectors (biases, norms) are float32 in every scheme. Returns the matrices that stayed float32
    all the same, with reasons.
    """
    import onnx_ir as ir

    kept_float: list[tuple[str, str]] = []
    casts: list[ir.Node] = []
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        tensor = weights[str(value.name)]
        value.shape = ir.Shape(tensor.shape.numpy())
        operators = {node.op_type for node, _ in value.uses()}
        if not operators:
            continue
        if half and len(tensor.shape) > 1:
            if not operators <= set(WEIGHT_OPERATORS):
                kept_float.append((str(value.name), f"read by {', '.join(sorted(operators))}"))
            elif abs(tensor.numpy()).max() > HALF_MAX:
                kept_float.append((str(value.name), "beyond the range of float16"))
            else:
                tensor = _halve(value, tensor, casts)
        value.const_value = tensor
        model.graph.register_initializer(value)
    if casts:
        model.graph.insert_before(model.graph.node(0), casts)
    return kept_float


def _widen(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Give the graph's inputs the shapes of one task."""
    import onnx_ir as ir

    shapes = {spec.name: spec.shape for spec in inputs}
    for value in model.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])


def _halve(value: ir.Value, tensor: ir.TensorProtocol, casts: list[ir.Node]) -> ir.TensorProtocol:
    """Make ``value`` float16, followed by a Cast to float32 that the runtime folds on loading."""
    import numpy as np
    import onnx_ir as ir

    float32_value = ir.Value(name=f"{value.name}_float32", shape=value.shape, type=value.type)
    value.replace_all_uses_with(float32_value)
    casts.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, outputs=[float32_value]))
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float16)),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(tensor.numpy().shape),
        name=value.name,
    )


def _repeat(model: ir.Model, outputs: Mapping[str, str]) -> None:
    """Add outputs that repeat others: new name -> output that it repeats."""
    import onnx_ir as ir

    for name, source in outputs.items():
        value = next(value for value in model.graph.outputs if value.name == source)
        repeated = ir.Value(name=name, shape=value.shape, type=value.type)
        model.graph.append(ir.node("Identity", [value], outputs=[repeated]))
        model.graph.outputs.append(repeated)
