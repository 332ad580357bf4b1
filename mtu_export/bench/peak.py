"""The yardstick of a run: one large float32 matrix product in each engine.

GFLOP/s of a model say little by themselves; as a share of what the same engine reaches on the same
machine in the same minutes, they say how much of it the model's operators use.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from filelock import FileLock

from mtu_export.bench.job import Job, JobPart
from mtu_export.bench.work import Settings
from mtu_export.spec import TensorSpec, ToolchainMissing

SIZE = 2048
SAMPLES = 5
FLOPS = 2 * SIZE**3
_PACKAGES = {"onnx": "onnxruntime", "executorch": "executorch"}
ENGINES = tuple(_PACKAGES)
"""Engines with a yardstick: Core ML has none, as its processors differ from op to op."""
_SPECS = (TensorSpec(name="x", shape=(SIZE, SIZE)), TensorSpec(name="y", shape=(SIZE, SIZE)))


def cache() -> Path:
    """Where models of this suite are kept: ``$XDG_CACHE_HOME/mtu-export/bench``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mtu-export" / "bench"


def peak_job(engine: str, settings: Settings) -> Job:
    """Measures y = x·W of an engine, W [n, n] constant.

    Raises ``ToolchainMissing`` where the model cannot be written here.
    """
    folder = _model(engine)
    document = json.loads((folder / "peak.json").read_text("utf-8"))
    specs = {spec.name: spec for spec in _SPECS}
    return Job(
        engine=engine,
        folder=folder,
        identity=folder.name,
        parts={
            "peak": JobPart(
                path=document["path"],
                entry=document["entry"],
                inputs=[specs["x"]],
                outputs=[specs["y"]],
            )
        },
        tensors={"x": _matrix(1)},
        program=[{"op": "call", "part": "peak", "inputs": {"x": "x"}, "outputs": {"y": "out"}}],
        threads=settings.threads,
        cpus=settings.cpus,
        warmup=2,
        samples=SAMPLES,
        deadline_s=settings.deadline_s,
    )


def _matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE), np.float32)


def _model(engine: str) -> Path:
    """The folder of an engine's model, written once for each version of its package."""
    package = _PACKAGES[engine]
    try:
        folder = cache() / f"peak-{SIZE}-{engine}-{version(package)}"
    except PackageNotFoundError:
        raise ToolchainMissing(package, engine) from None
    done = folder / "peak.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not done.is_file():
            path, entry = _WRITERS[engine](folder)
            done.write_text(json.dumps({"path": path, "entry": entry}), "utf-8")
    return folder


def _write_onnx(folder: Path) -> tuple[str, str]:
    try:
        import onnx
    except ImportError as error:
        raise ToolchainMissing("onnx", "onnx") from error
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(s.name, kind, list(s.shape)) for s in _SPECS]
    weight = onnx.numpy_helper.from_array(_matrix(0), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "peak", values[:1], values[1:], [weight])
    opsets = [helper.make_opsetid("", 20)]
    (folder / "peak").mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "peak" / "model.onnx")
    return "peak", "model.onnx"


def _write_executorch(folder: Path) -> tuple[str, str]:
    try:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ToolchainMissing("executorch", "executorch") from error
    layer = torch.nn.Linear(SIZE, SIZE, bias=False)
    layer.weight = torch.nn.Parameter(torch.from_numpy(_matrix(0)), requires_grad=False)
    exported = torch.export.export(layer, (torch.from_numpy(_matrix(1)),))
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    with (folder / "peak.pte").open("wb") as file:
        edge.to_executorch().write_to_file(file)
    return "peak.pte", "forward"


_WRITERS = {"onnx": _write_onnx, "executorch": _write_executorch}
