"""Peak memory, time and file size of lowering 1, 2 and 4 methods on one set of weights.

    python benchmarks/executorch_shared.py --layers 8 --width 2048

Each row is a process of its own. ``stock`` hands all methods to the toolchain at once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from mtu_export.graph.gated import GatedLinear
from mtu_export.targets.executorch import lowering


class Stack(nn.Module):
    """Linear layers with a task's gain on the output, a norm outside XNNPACK between them."""

    def __init__(self, weights: list[torch.Tensor], gains: list[torch.Tensor]) -> None:
        super().__init__()
        bias = torch.zeros(len(weights[0]))
        self.layers = nn.ModuleList(
            GatedLinear(weight, bias, gain) for weight, gain in zip(weights, gains, strict=True)
        )
        self.norm = nn.LayerNorm(len(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [n, width] to the same."""
        for layer in self.layers:
            x = self.norm(layer(x))
        return x


def lower(way: str, count: int, layers: int, width: int, path: Path) -> None:
    """Lower ``count`` methods in this process."""
    warnings.simplefilter("ignore")
    weights = [torch.randn(width, width) for _ in range(layers)]
    methods = {}
    for task in range(count):
        gains = [torch.rand(width) for _ in range(layers)]
        example = (torch.randn(4, width),)
        methods[f"task{task}"] = torch.export.export(Stack(weights, gains).eval(), example)
    if way != "stock":
        lowering.write(methods, {}, path)
        return
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(methods, partitioner=[XnnpackPartitioner()])
    with path.open("wb") as file:
        edge.to_executorch().write_to_file(file)


def main() -> None:
    """Print a row of JSON for each way and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "COUNT", "PATH"))
    args = parser.parse_args()
    if args.one:
        way, count, path = args.one
        lower(way, int(count), args.layers, args.width, Path(path))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    size = ["--layers", str(args.layers), "--width", str(args.width)]
    for way, count in [*((w, n) for w in ("stock", "ours") for n in (1, 2, 4))]:
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder, "x.pte"), time.perf_counter()
            command = [sys.executable, __file__, *size, "--one", way, str(count), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {
                "way": way,
                "methods": count,
                "weights_mb": round(args.layers * args.width**2 * 4 / 1e6, 1),
                "peak_mb": round(int(done.stdout.split()[-1]) * 1024 / 1e6, 1),
                "seconds": round(time.perf_counter() - start, 1),
                "file_mb": round(path.stat().st_size / 1e6, 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
