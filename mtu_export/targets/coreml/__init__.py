"""Core ML: one ML Program package (``.mlpackage``) per part, converted on Linux or macOS.

Weights are float32, float16, or int8 codes with one float16 scale per channel; codes stay
compressed in the file as ``constexpr`` operators. Core ML runs a package on macOS, the MIL
evaluator elsewhere. Several tasks share one package with one function per task, see
:mod:`.multifunction`.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtu_export.spec import (
    IntWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    Runtime,
    Scheme,
    Structure,
    Support,
    Target,
    TargetInfo,
    ToolchainError,
    Unsupported,
)
from mtu_export.spec.extras import require
from mtu_export.targets.coreml import converting, mil, multifunction, native, package


@dataclass(frozen=True, kw_only=True)
class Options:
    """The processors that may run the model, and the oldest system that opens it."""

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


class CoreML:
    """Core ML packages, run by Core ML on macOS and by the MIL evaluator elsewhere."""

    info = TargetInfo(
        suffix=converting.SUFFIX,
        packages=("coremltools",),
        default_scheme="fp16",
        supports={
            "fp32": Support(memory=2.2),
            "fp16": Support(memory=1.6),
            "int8": Support(memory=1.1),
        },
        multitask_rewrites=("geglu",),
        temporary_copies=1,
        float16_gains=True,
        unused=("executorch",),  # its list of operators takes two seconds to read
        integer_operators=converting.CONSTEXPR,
    )
    options = Options
    runtimes: Mapping[str, Runtime] = {"coreml": native, "mil-evaluator": mil}

    def validate_plan(self, plan: Plan) -> None:
        """Refuse a plan that a Core ML package cannot represent.

        Raises ``ToolchainError`` if coremltools is installed without its native libraries.
        """
        if len(plan.tasks) > 1 and any(plan.spec(name).by_task for name in plan.parts):
            _validate_tasks(plan)
        _validate_scheme(plan.scheme, plan.options)
        _require_toolchain()

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Convert one part to ``folder/<Name>.mlpackage`` without running it."""
        return converting.lower(program, plan, folder, identity)

    def structure(self, path: Path, entry: str) -> Structure:
        """Read a package, on any system."""
        return package.structure(path, entry)


TARGET: Target = CoreML()


def _validate_tasks(plan: Plan) -> None:
    system, supported = plan.options.deployment_target, multifunction.SYSTEMS
    if system not in supported:
        raise Unsupported(
            f"{len(plan.tasks)} tasks in one package are functions of it, which {system} does not "
            f"know; choose --min-deployment-target {' or '.join(supported)}, or one bundle per task"
        )
    for task in plan.tasks:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", task.name) or task.name == package.ENTRY:
            raise Unsupported(
                f"task {task.name!r} cannot name a function of a Core ML package: letters, digits "
                f"and '_', no digit first, not {package.ENTRY!r}; rename it, or export one bundle "
                "per task"
            )


def _validate_scheme(scheme: Scheme, options: Options) -> None:
    weights = scheme.weights
    if isinstance(weights, IntWeights):
        if weights.bits != 8 or weights.granularity != PerChannel(axis=0):
            raise Unsupported(
                f"coreml stores integer weights as 8 bits with one scale per output channel, "
                f"which scheme {scheme.name!r} is not; choose int8"
            )
    elif weights.dtype == "float32" and options.compute_unit == "CPU_AND_NE":
        raise Unsupported(
            "the Neural Engine computes in float16 only, so fp32 with CPU_AND_NE would run on "
            "the CPU alone; choose fp16, or --compute-unit CPU_AND_GPU"
        )
    elif weights.dtype not in ("float32", "float16"):
        raise Unsupported(f"coreml stores no {weights.dtype} weights; choose fp16")


def _require_toolchain() -> None:
    require("coremltools")
    distribution = importlib.metadata.distribution("coremltools")
    folder = Path(str(distribution.locate_file("coremltools")))
    if not any(folder.glob("libmilstoragepython*")):
        raise ToolchainError(
            "coremltools is installed without its native parts, so it cannot write weights; "
            "use macOS or Linux on x86_64 with Python 3.11 to 3.13"
        )
