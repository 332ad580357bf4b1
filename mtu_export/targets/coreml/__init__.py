"""Core ML: one ML Program package (``.mlpackage``) a component, converted on Linux or macOS.

Weights are float32, float16 or int8 codes with one float16 scale a channel; codes stay compressed
in the file as ``constexpr`` operators. On macOS Core ML runs a package, elsewhere an evaluator.
Several tasks are one package with a function each, see :mod:`.multifunction`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.spec import (
    FloatWeights,
    IntWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    Runtime,
    Scheme,
    Session,
    Structure,
    TensorSpec,
    ToolchainError,
    ToolchainMissing,
    UnknownName,
    Unsupported,
)
from mtu_export.targets.coreml import mil, multifunction, native, package

if TYPE_CHECKING:
    import torch

suffix = ".mlpackage"
packages = ("coremltools",)
rewrites: tuple[str, ...] = ()
gates = ("geglu",)
default_scheme = "fp16"
memory = {"fp32": 2.2, "fp16": 1.6, "int8": 1.1}
staging = 1

runtimes: Mapping[str, Runtime] = {"coreml": native, "mil-evaluator": mil}
slow, witness = mil.slow, mil.witness

NAMES = {
    "unet": "Unet",
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "vae_encoder": "VAEEncoder",
    "vae_decoder": "VAEDecoder",
}
TRIGONOMETRY = ("sin", "cos")
CONSTEXPR = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the program may run, and the oldest system that opens it."""

    compute_unit: str = field(
        default="ALL",
        metadata={
            "help": "processors that may run the model",
            "choices": package.COMPUTE_UNITS,
            "flag": "--compute-unit",
        },
    )
    deployment_target: str = field(
        default="iOS17",
        metadata={
            "help": "oldest system that opens the model",
            "choices": ("iOS16", "iOS17", "iOS18", "macOS13", "macOS14", "macOS15"),
            "flag": "--min-deployment-target",
            "several": multifunction.SYSTEMS[0],
        },
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, legal = getattr(self, option.name), option.metadata["choices"]
            if value not in legal:
                raise UnknownName(option.name.replace("_", " "), value, legal)


# ---------------------------------------------------------------------------------------- check


def check(plan: Plan) -> None:
    """Refuse a plan that Core ML cannot hold; imports no toolchain.

    Raises ``Unsupported`` with the nearest legal choice, ``ToolchainMissing``, or
    ``ToolchainError`` where coremltools is installed without its native parts.
    """
    if len(plan.tasks) > 1 and "unet" in plan.components:
        _check_several(plan)
    _check_scheme(plan.scheme, plan.options)
    _check_toolchain()


def _check_several(plan: Plan) -> None:
    system, legal = plan.options.deployment_target, multifunction.SYSTEMS
    if system not in legal:
        raise Unsupported(
            f"{len(plan.tasks)} tasks in one package are functions of it, which {system} does not "
            f"know; choose --min-deployment-target {' or '.join(legal)}, or one bundle a task"
        )
    for task in plan.tasks:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", task.name) or task.name == package.ENTRY:
            raise Unsupported(
                f"task {task.name!r} cannot name a function of a Core ML package: letters, digits "
                f"and '_', no digit first, not {package.ENTRY!r}; rename it, or export one bundle "
                "a task"
            )


def _check_scheme(scheme: Scheme, options: Options) -> None:
    weights = scheme.weights
    if isinstance(weights, IntWeights):
        if weights.bits != 8 or weights.granularity != PerChannel(axis=0):
            raise Unsupported(
                f"coreml stores integer weights as 8 bits with one scale an output channel, "
                f"which scheme {scheme.name!r} is not; choose int8"
            )
    elif weights.dtype == "float32" and options.compute_unit == "CPU_AND_NE":
        raise Unsupported(
            "the Neural Engine computes in float16 only, so fp32 with CPU_AND_NE would run on "
            "the CPU alone; choose fp16, or --compute-unit CPU_AND_GPU"
        )
    elif weights.dtype not in ("float32", "float16"):
        raise Unsupported(f"coreml stores no {weights.dtype} weights; choose fp16")


def _check_toolchain() -> None:
    try:
        found = importlib.metadata.distribution("coremltools")
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainMissing("coremltools", "coreml") from None
    folder = Path(str(found.locate_file("coremltools")))
    if not any(folder.glob("libmilstoragepython*")):
        raise ToolchainError(
            "coremltools is installed without its native parts, so it cannot write weights; "
            "use macOS or Linux on x86_64 with Python 3.11 to 3.13"
        )


# ---------------------------------------------------------------------------------------- lower


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Convert one component to ``folder/<Name>.mlpackage``; no prediction takes place.

    Several methods are functions of it, each named as its task; one is ``main``.
    Borders are as ``program`` names them. fp16 and int8 compute in float16, except for what leads
    to ``sin`` and ``cos``. The same program gives the same bytes. What a killed process left there
    is replaced. Raises ``ToolchainError`` where coremltools fails, or where the package it wrote is
    not the one asked for.
    """
    first, several = next(iter(program.methods)), len(program.methods) > 1
    path = folder / f"{NAMES[program.name]}{suffix}"
    program.check_alike()
    exported = program.methods[first].run_decompositions({})
    half = _compute_dtype(plan.scheme) == "float16"
    angles = _angle_layers(exported, program) if half else ()
    least, most = _narrow_zero_points(exported)
    markers = multifunction.mark(program, exported) if several else ()
    if path.exists():  # coremltools refuses it
        shutil.rmtree(path)
    _convert(exported, program.inputs[first], program.outputs, plan, path)
    if several:
        multifunction.write(path, program, markers)
    package.seal(path, {**identity, package.COMPUTE_UNIT: plan.options.compute_unit})

    entries = {task: task if several else package.ENTRY for task in program.methods}
    compressed = 0
    for task, entry in entries.items():
        written = package.structure(path, entry)
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
        kept_float=tuple((layer, "angles up to 999 rad: float32") for layer in angles),
        notes={"compressed_weights": compressed} if most else {},
    )


def _convert(
    exported: torch.export.ExportedProgram,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    plan: Plan,
    path: Path,
) -> None:
    import coremltools as ct
    import numpy as np

    dtypes = {"float32": np.float32, "int32": np.int32}
    half = _compute_dtype(plan.scheme) == "float16"
    try:
        ct.convert(
            exported,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtypes[spec.dtype])
                for spec in inputs
            ],
            outputs=[ct.TensorType(name=spec.name, dtype=dtypes[spec.dtype]) for spec in outputs],
            minimum_deployment_target=ct.target[plan.options.deployment_target],
            compute_precision=(
                ct.transform.FP16ComputePrecision(op_selector=_computes_in_half())
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
            f"coremltools could not convert to {path.name}: {package.line(error)}"
        ) from error


def _compute_dtype(scheme: Scheme) -> str:
    return scheme.weights.dtype if isinstance(scheme.weights, FloatWeights) else "float16"


def _narrow_zero_points(exported: torch.export.ExportedProgram) -> tuple[int, int]:
    """Give the zero points of integer weights the codes' dtype.

    coremltools casts them otherwise, to a dtype that an iOS16 program cannot cast to. Returns the
    least and greatest number of weights that the package may hold: it stores equal ones once.
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


def _computes_in_half() -> Callable[[Any], bool]:
    """Selector of the operators to compute in float16: all but those that lead to an angle.

    The timestep projection takes the sine of timestep times frequency, up to 999 rad, where
    neighbours in float16 are 0.5 apart. The selector sees a block's first operator before any of
    them is changed, and settles the whole block then.
    """
    kept: dict[Any, set[Any]] = {}

    def computes_in_half(operator: Any) -> bool:
        block = operator.enclosing_block
        if block not in kept:
            kept[block] = _leading_to_angles(block)
        return operator not in kept[block]

    return computes_in_half


def _leading_to_angles(block: Any) -> set[Any]:
    """The sines and cosines of a MIL block and every operator that they depend on."""
    kept: set[Any] = set()
    for operator in reversed(list(block.operations)):
        readers = (reader for output in operator.outputs for reader in output.child_ops)
        if operator.op_type in TRIGONOMETRY or any(reader in kept for reader in readers):
            kept.add(operator)
    return kept


# ---------------------------------------------------------------------------------- read and run


def structure(path: Path, entry: str) -> Structure:
    """Read a package anywhere, without running it; raise ``BundleError`` if it is malformed."""
    return package.structure(path, entry)


def runner() -> tuple[str | None, str | None]:
    """Core ML on macOS, the MIL evaluator elsewhere; null and the reason without coremltools."""
    return _runtime().runner()


def open(path: Path, entry: str) -> Session:
    """Load a package into the runtime of :func:`runner`; raises its errors."""
    return _runtime().open(path, entry)


def _runtime() -> Runtime:
    return native if native.runner()[0] is not None else mil
