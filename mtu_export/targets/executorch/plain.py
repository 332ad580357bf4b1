"""ExecuTorch's own int8 for XNNPACK, as its documentation says: PT2E, with dynamic ranges.

https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-quantization.html. Its page
lowers with ``XnnpackPartitioner`` alone, which ExecuTorch 1.5.1 refuses for attention, whose layers
share an input ("Invalid partition, found dependency cycles"). Its exporter of language models has
the partitioner for dynamic ranges go first, and so does this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def partitioners() -> list[Any]:
    """For dynamic ranges, then for the rest."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )

    return [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]


def quantised(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Quantise what ``XNNPACKQuantizer`` quantises: weights per channel, activations as they run.

    Its observers see the program's example inputs; dynamic ranges do not depend on them.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    inputs, named = exported.example_inputs or ((), {})
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    with torch.no_grad():
        prepared = prepare_pt2e(exported.module(), XNNPACKQuantizer().set_global(config))
        prepared(*inputs, **named)
        return torch.export.export(convert_pt2e(prepared), inputs, named)


def weight_bytes(exported: torch.export.ExportedProgram) -> int:
    """Bytes of the codes, scales and float weights that a program reads, as a file stores them."""
    read = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
    stored = {**exported.constants, **exported.state_dict}
    tensors = {
        spec.target: stored[spec.target]
        for spec in exported.graph_signature.input_specs
        if spec.target is not None and spec.arg.name in read
    }
    widths = {"torch.int8": 1, "torch.float32": 4, "torch.float64": 4}  # zero points are no weights
    return sum(t.numel() * widths.get(str(t.dtype), 0) for t in tensors.values())
