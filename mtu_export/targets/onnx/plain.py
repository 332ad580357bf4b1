"""The plain export: ``torch.onnx`` and ONNX Runtime's own tools at their defaults.

Only metadata is ours. fp16 is ``onnxruntime.transformers.float16`` with float32 inputs and outputs,
int8 ``onnxruntime.quantization.quantize_dynamic``. What ``torch.onnx`` 2.13 writes, it refuses
("Inferred shape and existing shape differ") unless ``quant_pre_process`` has run, which its
documentation recommends, without the optimiser for more than 2 GB.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtu_export.spec import FloatWeights, IntWeights, Lowered, Plan, Program, ToolchainError
from mtu_export.targets.onnx.naming import FILE, describe
from mtu_export.targets.onnx.running import last_line

if TYPE_CHECKING:
    import torch

_PROTOBUF_BYTES = 2 * 10**9
"""The most that one file holds, a little below the limit of 2^31."""


def lower(program: Program, plan: Plan, folder: Path, identity: Mapping[str, str]) -> Lowered:
    """Write ``<part>/model.onnx`` and its external data, under the program's own names."""
    import onnx_ir as ir

    (task, exported), *_ = program.methods.items()
    weights, opset = plan.scheme.weights, plan.options.opset
    integer, half = isinstance(weights, IntWeights), weights == FloatWeights(dtype="float16")
    path = folder / program.name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".plain-") as temporary:
        first = Path(temporary, FILE) if integer or half else path
        names = [[spec.name for spec in side] for side in (program.inputs[task], program.outputs)]
        _run("torch.onnx.export", lambda: _export(exported, names, opset, first))
        if integer:
            _run("quantize_dynamic", lambda: _quantise(first, path))
        if half:
            _run("convert_float_to_float16", lambda: _halve(first, path))
    model = ir.load(path)
    describe(model, program.name, identity)
    for domain in {*model.opset_imports} - {node.domain for node in model.graph.all_nodes()}:
        del model.opset_imports[domain]
    tensors = [value.const_value for value in model.graph.initializers.values()]
    ir.save(model, path)
    return Lowered(
        path=program.name,
        entries={task: FILE},
        activations="dynamic_int8" if integer else "float32",
        weight_dtype="float16" if half else "float32",
        granularity="per_tensor",
        weight_bytes=sum(tensor.nbytes for tensor in tensors if tensor is not None),
        notes={"opset": model.opset_imports[""], "ir_version": model.ir_version},
    )


def _run(tool: str, step: Callable[[], None]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
    except MemoryError:
        raise
    except Exception as error:
        raise ToolchainError(f"--plain: {tool} failed: {last_line(error)}") from error


def _export(
    exported: torch.export.ExportedProgram, names: list[list[str]], opset: int, path: Path
) -> None:
    import torch

    program = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=opset,
        input_names=names[0],
        output_names=names[1],
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def _quantise(source: Path, path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large = sum(file.stat().st_size for file in source.parent.iterdir()) > _PROTOBUF_BYTES
    prepared = source.with_name(f"prepared-{FILE}")
    quant_pre_process(
        source,
        prepared,
        skip_optimization=large,
        save_as_external_data=large,
        all_tensors_to_one_file=large,
    )
    quantize_dynamic(prepared, path)


def _halve(source: Path, path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, path)
