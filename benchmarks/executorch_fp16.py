"""What float16 brings on ExecuTorch's XNNPACK: bytes, delegate pieces and dB against fp32.

    python benchmarks/executorch_fp16.py [--model CHECKPOINT] [--task inpaint] [--out DIR]

The folded UNet is lowered twice, as it is and with weights and activations in float16 behind
float32 borders. A scheme has to bring at most 0.55 x the bytes to be offered.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mtu_export import targets
from mtu_export.authoring import upcycle
from mtu_export.bundle import metrics
from mtu_export.exporter import options
from mtu_export.exporter.reference import Reference
from mtu_export.graph import capture, quantize, rewrite
from mtu_export.graph.capture import Graph
from mtu_export.models.pipeline.layout import UNET
from mtu_export.targets import executorch
from mtu_export.targets.executorch import lowering, running

NEEDED = 0.55
TASKS = ("t2i", "edit", "sr", "inpaint")


class Half(nn.Module):
    """A graph in float16 behind float32 inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Cast the inputs, run, cast the output back."""
        return self.module(*(x.half() for x in inputs)).float()


def measure(
    graph: Graph, cases: Any, expected: Any, plan: options.Plan, path: Path
) -> dict[str, Any]:
    """Lower one graph, run it, count."""
    task = plan.tasks[0].name
    program = capture.capture(UNET, {task: graph})
    names = {
        "inputs": [spec.name for spec in graph.inputs],
        "outputs": [spec.name for spec in graph.outputs],
    }
    constants = {
        "_identity": "{}",
        "_interface": json.dumps({executorch.ENTRY: names}),
    }
    notes = lowering.write({"forward": program.methods[task]}, constants, path)["forward"]
    session = running.open(path, executorch.ENTRY)
    worst = min(
        metrics.psnr(want[name], array)
        for want, case in zip(expected, cases, strict=True)
        for name, array in session(case).items()
    )
    size = path.stat().st_size
    return {"bytes": size, "delegates": notes["delegates"], "psnr_db": round(worst, 2)}


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="default: a tiny one with random weights")
    parser.add_argument("--task", default="inpaint")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or Path(folder, "tiny")
        if asked.model is None:
            upcycle.write_random("tiny", model, tasks=TASKS, dtype="fp16")
        row = compare(model, asked.task)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "executorch_fp16.json").write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    print(json.dumps(row, indent=1))


def compare(model: Path, name: str) -> dict[str, Any]:
    """One task of a checkpoint in fp32 and in fp16."""
    plan = options.resolve(target="executorch", model=model, task=name, out="none")
    live, task = plan.model.load(UNET), plan.tasks[0]
    specialised = live.specialise([task])
    assert specialised is not None, "a dense checkpoint is not folded: name an MTU one"
    folded = specialised[task.name].module
    rewrite.apply(folded, targets.load("executorch").info.rewrites)
    quantize.quantize([folded], plan.schemes[UNET])
    graph = live.graph(task, plan.size, plan.batch, folded)
    reference = Reference(plan, task, None, None)
    cases = reference.golden_inputs(reference.flow.call(UNET), graph)
    expected = capture.run(graph, cases)
    with tempfile.TemporaryDirectory() as folder:
        full = measure(graph, cases, expected, plan, Path(folder, "fp32.pte"))
        narrow = Graph(module=Half(graph.module), inputs=graph.inputs, outputs=graph.outputs)
        half = measure(narrow, cases, expected, plan, Path(folder, "fp16.pte"))
    ratio = round(half["bytes"] / full["bytes"], 3)
    row = {"model": plan.checkpoint.name, "task": task.name, "fp32": full, "fp16": half}
    return row | {"ratio": ratio, "needed": NEEDED, "offered": ratio <= NEEDED}


if __name__ == "__main__":
    main()
