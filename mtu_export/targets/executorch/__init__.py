"""ExecuTorch: one ``.pte`` per component, delegated to the XNNPACK backend.

fp32 is lowered unchanged. int8 keeps the codes and scales in the graph and quantises the inputs of
those layers to int8 at run time, with dynamic ranges: XNNPACK runs them with its integer kernels,
and no calibration is needed.

Several tasks are methods of one file, named after the tasks. Constants that are equal in several
methods are stored once, under the hash of their bytes.

A ``.pte`` stores neither tensor names nor metadata, so two constant methods return them as JSON:
``_identity`` (str -> str) and ``_interface`` (method -> input and output names). No task name
begins with an underscore.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import (
    FloatWeights,
    IntWeights,
    Lowered,
    PerChannel,
    Plan,
    Program,
    Runtime,
    Structure,
    Support,
    Target,
    TargetInfo,
    ToolchainError,
    ToolchainMissing,
    Unsupported,
    first_line,
)
from mtu_export.spec.extras import require
from mtu_export.targets.executorch import plain, reading, running
from mtu_export.targets.executorch.activations import make_int8
from mtu_export.targets.executorch.lowering import write

if TYPE_CHECKING:
    import torch

BACKENDS = ("xnnpack",)
ENTRY = "forward"
"""The method of a file that holds a single task."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """``backend`` runs the graph; ExecuTorch's own kernels run what it does not support."""

    backend: str = field(
        default="xnnpack",
        metadata={"help": "ExecuTorch backend that runs the graph", "choices": BACKENDS},
    )


class ExecuTorch:
    """ExecuTorch programs for XNNPACK, run by the runtime of the ``executorch`` wheel."""

    info = TargetInfo(
        suffix=".pte",
        packages=("executorch", "torch"),
        default_scheme="fp32",
        supports={
            "fp32": Support(memory=3.0, plain=3.0),
            "int8": Support(memory=1.1, plain=2.0),
        },
        rewrites=("attention", "geglu", "group_norm"),
        temporary_copies=1,
        int8_activations=True,
        baselines=("unfolded", "plain"),
    )
    options = Options
    runtimes: Mapping[str, Runtime] = {"executorch": running}

    def validate_plan(self, plan: Plan) -> None:
        """Refuse schemes that XNNPACK has no kernels for, or gains nothing from."""
        weights = plan.scheme.weights
        if isinstance(weights, FloatWeights) and weights.dtype != "float32":
            raise Unsupported(
                f"executorch: scheme {plan.scheme.name!r} saves next to nothing on XNNPACK "
                "(0.88 x the bytes of fp32, in more pieces); use int8 or fp32"
            )
        if isinstance(weights, IntWeights) and weights != IntWeights(
            bits=8, granularity=PerChannel(axis=0)
        ):
            raise Unsupported(
                f"executorch: scheme {plan.scheme.name!r} has no XNNPACK kernels here; "
                "use int8 (8 bits, a scale for each output channel)"
            )
        require("executorch")

    def lower(
        self, program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]
    ) -> Lowered:
        """Write ``<component>_<backend>_<scheme>.pte`` under ``folder``, one method per task.

        The method of a single task is ``forward``.
        """
        name = f"{program.name}_{plan.options.backend}_{plan.scheme.name}{self.info.suffix}"
        integer = isinstance(plan.scheme.weights, IntWeights)
        several = len(program.methods) > 1
        entries = {task: task if several else ENTRY for task in program.methods}
        outputs = [tensor.name for tensor in program.outputs]
        interface = {
            entries[task]: {"inputs": [tensor.name for tensor in inputs], "outputs": outputs}
            for task, inputs in program.inputs.items()
        }
        constants = {
            "_identity": json.dumps(dict(identity), sort_keys=True),
            "_interface": json.dumps(interface),
        }
        folder.mkdir(parents=True, exist_ok=True)
        stock = integer and plan.is_plain
        common_scales = _common_scales(program) if integer and not stock else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                methods = {}
                for task, exported in program.methods.items():
                    if stock:
                        exported = plain.quantised(exported)
                    elif integer:
                        exported = make_int8(exported, program.task_tensors, common_scales)
                    methods[entries[task]] = exported
                weight_bytes = plain.weight_bytes(methods[ENTRY]) if stock else None
                turns = plain.partitioners() if stock else ()
                notes = write(methods, constants, folder / name, turns)
        except (OSError, MemoryError):
            raise
        except ImportError as error:
            raise ToolchainMissing("executorch", "executorch") from error
        except Exception as error:
            raise ToolchainError(
                f"executorch could not lower {program.name}: {first_line(error)}"
            ) from error
        first, *others = entries.values()
        different = {entry: notes[entry] for entry in others if notes[entry] != notes[first]}
        return Lowered(
            path=name,
            entries=entries,
            activations="dynamic_int8" if integer else "float32",
            weight_bytes=weight_bytes,
            notes={
                "backend": plan.options.backend,
                **notes[first],
                **({"task_delegates": different} if different else {}),
            },
        )

    def structure(self, path: Path, entry: str) -> Structure:
        """Read the method ``entry`` from the file's flatbuffer."""
        return reading.structure(path, entry)


TARGET: Target = ExecuTorch()


def _common_scales(program: Program) -> dict[str, torch.Tensor]:
    """For scales that differ between methods, their maximum over all methods."""
    import torch

    states = [method.state_dict for method in program.methods.values()]
    names = (name for name in program.task_tensors if name.endswith(".scales"))
    return {name: torch.stack([state[name].detach() for state in states]).amax(0) for name in names}
