"""Converts a program to a Core ML package with coremltools, and checks the result."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import (
    FloatWeights,
    Lowered,
    Plan,
    Program,
    Scheme,
    TensorSpec,
    ToolchainError,
    first_line,
)
from mtu_export.targets.coreml import multifunction, package
from mtu_export.targets.coreml.shortcuts import shortcuts

if TYPE_CHECKING:
    import torch

SUFFIX = ".mlpackage"
TRIGONOMETRY = ("sin", "cos")
CONSTEXPR = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale")


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Convert one part to ``folder/<Name>.mlpackage`` without running it.

    A single method becomes the function ``main``; several become functions named after their tasks.
    Inputs and outputs keep the names of ``program``. fp16 and int8 compute in float16, except for
    everything that leads to ``sin`` and ``cos`` and, with ``upcast_attention``, the
    attention scores. The same program gives the same bytes. A package that a killed process left
    behind is replaced. Raises ``ToolchainError`` if coremltools fails, or if the package it wrote
    differs from the program.
    """
    first, several = next(iter(program.methods)), len(program.methods) > 1
    path = folder / f"{_file_name(program.name)}{SUFFIX}"
    program.require_same_graph()
    exported = program.methods[first].run_decompositions({})
    half = _compute_dtype(plan.scheme) == "float16"
    angles = _angle_layers(exported, program) if half else ()
    least, most = _narrow_zero_points(exported)
    markers = multifunction.mark(program, exported) if several else ()
    if path.exists():  # coremltools refuses it
        shutil.rmtree(path)
    upcast = half and plan.spec(program.name).upcast_attention
    _convert(exported, program.inputs[first], program.outputs, plan, path, upcast=upcast)
    if several:
        multifunction.write(path, program, markers)
    package.seal(path, {**identity, package.COMPUTE_UNIT: plan.options.compute_unit})

    entries = {task: task if several else package.ENTRY for task in program.methods}
    compressed = 0
    model = package.load(path)
    for task, entry in entries.items():
        written = package.structure(path, entry, model)
        if written.inputs != program.inputs[task] or written.outputs != program.outputs:
            raise ToolchainError(f"{path.name}: coremltools changed the inputs or outputs")
        compressed = sum(written.operators.get(kind, 0) for kind in CONSTEXPR) // len(entries)
    if not least <= compressed <= most:
        raise ToolchainError(
            f"{path.name}: coremltools kept {compressed} of {most} integer weights compressed"
        )
    return Lowered(
        path=path.name,
        entries=entries,
        activations=_compute_dtype(plan.scheme),
        weight_dtype=_compute_dtype(plan.scheme),
        vector_dtype=_compute_dtype(plan.scheme),
        kept_float=(
            *((layer, "angles up to 999 rad: float32") for layer in angles),
            *((("attention scores", "upcast_attention: float32"),) if upcast else ()),
        ),
        notes={"compressed_weights": compressed} if most else {},
    )


def _convert(
    exported: torch.export.ExportedProgram,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    plan: Plan,
    path: Path,
    *,
    upcast: bool,
) -> None:
    import coremltools as ct
    import numpy as np

    dtypes = {"float32": np.float32, "int32": np.int32}
    half = _compute_dtype(plan.scheme) == "float16"
    try:
        with shortcuts():
            ct.convert(
                exported,
                convert_to="mlprogram",
                inputs=[
                    ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtypes[spec.dtype])
                    for spec in inputs
                ],
                outputs=[
                    ct.TensorType(name=spec.name, dtype=dtypes[spec.dtype]) for spec in outputs
                ],
                minimum_deployment_target=ct.target[plan.options.deployment_target],
                compute_precision=(
                    ct.transform.FP16ComputePrecision(op_selector=_computes_in_half(upcast))
                    if half
                    else ct.precision.FLOAT32
                ),
                skip_model_load=True,
                package_dir=str(path),
            )
    except MemoryError:
        raise
    except Exception as error:
        raise ToolchainError(
            f"coremltools could not convert to {path.name}: {first_line(error)}"
        ) from error


def _file_name(part: str) -> str:
    """A part's name in the style of Apple's: ``vae_encoder`` -> ``VAEEncoder``."""
    words = ("VAE" if word == "vae" else word.capitalize() for word in part.split("_"))
    return "".join(words)


def _compute_dtype(scheme: Scheme) -> str:
    return scheme.weights.dtype if isinstance(scheme.weights, FloatWeights) else "float16"


def _narrow_zero_points(exported: torch.export.ExportedProgram) -> tuple[int, int]:
    """Give the zero points of integer weights the dtype of the codes.

    Otherwise coremltools casts them, to a dtype that an iOS16 program does not support. Returns the
    least and the greatest number of integer weights that the package may hold, as equal ones may be
    stored once.
    """
    import torch

    names, state, count = exported.graph_signature.inputs_to_buffers, exported.state_dict, 0
    distinct: set[bytes] = set()
    for node in exported.graph.nodes:
        if "dequantize_per_channel" in str(node.target):
            count += 1
            codes, _, zeros = (names[argument.name] for argument in node.args[:3])
            state[zeros] = state[zeros].to(torch.int8)
            distinct.add(hashlib.sha256(state[codes].contiguous().numpy()).digest())
    return len(distinct), count


def _angle_layers(exported: torch.export.ExportedProgram, program: Program) -> tuple[str, ...]:
    """Paths of the modules whose sines and cosines stay in float32."""
    import torch

    angles = (torch.ops.aten.sin.default, torch.ops.aten.cos.default)
    paths = [
        list(node.meta["nn_module_stack"].values())[-1][0]
        for node in exported.graph.nodes
        if node.target in angles and node.meta.get("nn_module_stack")
    ]
    return tuple(dict.fromkeys(path.removeprefix(f"{program.name}.") for path in paths))


def _computes_in_half(upcast: bool) -> Callable[[Any], bool]:
    """Selector of the operators to compute in float16: all but those that lead to an angle.

    With ``upcast`` the attention scores are float32 too, from the product of queries and keys to
    the softmax.

    The timestep projection takes the sine of timestep times frequency, up to 999 rad, where
    neighbouring float16 values are 0.5 apart. The selector sees a block's first operator before any
    of them is changed, and decides for the whole block then.
    """
    kept_float: dict[Any, set[Any]] = {}

    def computes_in_half(operator: Any) -> bool:
        block = operator.enclosing_block
        if block not in kept_float:
            kept_float[block] = _leading_to_angles(block)
            if upcast:
                kept_float[block] |= _attention_scores(block)
        return operator not in kept_float[block]

    return computes_in_half


def _leading_to_angles(block: Any) -> set[Any]:
    """The sines and cosines of a MIL block, and every operator that they depend on."""
    leading: set[Any] = set()
    for operator in reversed(list(block.operations)):
        readers = (reader for output in operator.outputs for reader in output.child_ops)
        if operator.op_type in TRIGONOMETRY or any(reader in leading for reader in readers):
            leading.add(operator)
    return leading


def _attention_scores(block: Any) -> set[Any]:
    """The softmaxes of a MIL block, and the matrix products that feed them."""
    softmaxes = [operator for operator in block.operations if operator.op_type == "softmax"]
    products = [operator.x.op for operator in softmaxes]
    return {*softmaxes, *(product for product in products if product.op_type == "matmul")}
