"""From a program to ONNX files: the exporter's graph, with its weights put back.

Weights never pass through the simplifier: they are lifted out of the exporter's graph, and put back
when the file is written. What is left is simplified, where that is asked for, in a child process.
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
from mtu_export.targets.onnx.running import last_line
from mtu_export.targets.onnx.stock import border_names, repeated_outputs, write_configs
from mtu_export.targets.onnx.writing import Writer

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

SUFFIX = ".onnx"
FILE = "model.onnx"
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
LIFTED_BYTES = 1024
HALF_MAX = 65504.0
WEIGHT_OPERATORS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "Mul", "Transpose")
"""Readers of a matrix that may be float16; `Mul` is a gate on the rows of a weight."""


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Write ``<component>/model.onnx`` (``.onnx_data`` above 1 GB) and the stock configs.

    Several methods become ``<component>/<task>.onnx``, small graphs on one ``.onnx_data`` that
    holds equal tensors once. The graph is made once: the tasks differ in values alone, and in the
    width of ``sample``.
    """
    first, names = next(iter(program.methods)), border_names(program.name, plan)
    opset = plan.options.opset
    program.check_alike()
    exported, own, several = program.methods[first], program.own, len(program.methods) > 1
    sides = {
        task: (_renamed(specs, names), _renamed(program.outputs, names))
        for task, specs in program.inputs.items()
    }
    skeleton, weights = _skeleton(exported, sides[first], opset, own)
    skeleton, simplifier = _simplify(skeleton) if plan.options.simplify else (skeleton, "none")
    half = plan.scheme.weights == FloatWeights(dtype="float16")
    home = folder / program.name
    writer = Writer(home, own if several else None)
    kept: list[tuple[str, str]] = []
    entries, ir_version = {}, IR_VERSION
    for task, method in program.methods.items():
        model = skeleton.clone() if several else skeleton
        stayed = _restore(model, {**weights, **_own(method, own)}, half=half)
        kept += [row for row in stayed if row not in kept]
        _widen(model, sides[task][0])
        _repeat(model, repeated_outputs(program.name, plan))
        _describe(model, program.name, identity)
        entries[task] = f"{task}{SUFFIX}" if several else FILE
        writer.write(model, entries[task])
        writer.prove(entries[task], sides[task], method)
        ir_version = model.ir_version
    write_configs(program.name, plan, folder)
    specs, parameters = (*program.inputs[first], *program.outputs), exported.state_dict
    notes = {"opset": opset, "ir_version": ir_version, "simplifier": simplifier}
    return Lowered(
        path=program.name,
        entries=entries,
        io_names={s.name: names[s.name] for s in specs if s.name in names},
        activations="float32",
        kept_float=tuple((program.layer(name), why) for name, why in kept if name in parameters),
        weight_dtype="float16" if half else "float32",
        notes=notes,
    )


def _renamed(specs: Sequence[TensorSpec], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)


def _own(method: torch.export.ExportedProgram, names: Collection[str]) -> dict[str, ir.Tensor]:
    """What a task has for itself, by name."""
    import onnx_ir as ir

    state = method.state_dict
    return {name: ir.Tensor(state[name].detach().numpy(), name=name) for name in names}


def _skeleton(
    exported: torch.export.ExportedProgram,
    borders: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    opset: int,
    own: Collection[str],
) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """The exporter's graph without its weights, and these by name, on the memory of ``exported``.

    Nothing is computed ahead of what is ``own`` to a task.
    """
    import torch

    inputs, outputs = ([spec.name for spec in side] for side in borders)
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
                optimize=False,
            )
            assert program is not None
            weights = _lift(program.model, own)
            program.optimize()
    except Exception as error:
        raise ToolchainError(f"torch.onnx.export failed: {last_line(error)}") from error
    if program.model.functions:
        raise ToolchainError("torch.onnx.export left functions that are not ONNX operators")
    missing = sorted({*own} - {*weights})
    if missing:
        raise ToolchainError(f"torch.onnx.export has no tensor {missing[0]!r}")
    return program.model, weights


def _lift(model: ir.Model, own: Collection[str]) -> dict[str, ir.TensorProtocol]:
    """Turn large weights, all that is dequantised, and ``own`` into inputs; return them by name."""
    lifted: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        quantised = any(node.op_type == "DequantizeLinear" for node, _ in value.uses())
        large = tensor is not None and tensor.nbytes > LIFTED_BYTES
        if tensor is not None and (quantised or large or name in own):
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
                env={"ORT_DISABLE_TELEMETRY": "1", **os.environ, "NO_COLOR": "1"},
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
    import onnx_ir as ir

    kept: list[tuple[str, str]] = []
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


def _widen(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Give the graph's inputs the shapes of one task."""
    import onnx_ir as ir

    shapes = {spec.name: spec.shape for spec in inputs}
    for value in model.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])


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
