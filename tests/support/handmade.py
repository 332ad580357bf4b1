"""Bundles made by hand in a moment: whole loops of ONNX files with a few operators each.

What a real export writes is tested elsewhere; here its shapes and names are kept, so that `run`
and hostile manifests need no checkpoint and no PyTorch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu_export import bundle
from mtu_export.bundle import source_tokenizer
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.pipeline import flow
from mtu_export.models.pipeline.layout import PipelineLayout
from mtu_export.spec import Task
from mtu_export.spec.flow import Flow
from mtu_export.testing import vocabulary

HEIGHT, WIDTH, FACTOR, LATENT, TEXT_WIDTH, TOKENS = 16, 24, 8, 4, 8, 77
SCALING = 0.5
STEPS = (2, 4)
STRENGTHS = (0.5, 1.0)
TEXT = {"kind": "text", "text": 4.0}
TASKS: dict[str, dict[str, Any]] = {
    "t2i": {"conditioning": [], "guidance": TEXT},
    "edit": {
        "conditioning": [{"kind": "image_latent", "channels": LATENT}],
        "guidance": {"kind": "text_image", "text": 3.0, "image": 1.5},
    },
    "fill": {
        "conditioning": [
            {"kind": "mask", "channels": 1},
            {"kind": "masked_image_latent", "channels": LATENT},
        ],
        "guidance": TEXT,
    },
    "img2img": {"conditioning": [], "guidance": TEXT, "strength": 0.5},
    "sr": {
        "conditioning": [{"kind": "image", "channels": 3}],
        "guidance": {"kind": "none"},
        "prompt": "",
    },
}
"""Tasks by name; every one has 4 steps. The passes of ``img2img`` draw noise."""

NAMES = {
    "text_encoder": {"hidden_states": "last_hidden_state"},
    "vae_encoder": {"latent": "latent_sample"},
    "vae_decoder": {"latent": "latent_sample"},
}
"""Names of a real ONNX export, as optimum has them."""
KINDS = {
    "text_encoder": "text_encoder",
    "vae_encoder": "image_encoder",
    "unet": "denoiser",
    "vae_decoder": "image_decoder",
}


def task(name: str) -> Task:
    fields = dict(TASKS[name])
    strength = fields.pop("strength", None)
    read = mtu_config.task_from_json({"name": name, "steps": 4, **fields}, 0, name)
    return replace(read, strength=strength)


def flow_of(name: str) -> Flow:
    layout = PipelineLayout({}, {"block_out_channels": [1] * 4, "scaling_factor": SCALING})
    text = flow.text_encoding(layout, zero_empty=False)
    return flow.flow(task(name), layout, text).renamed(NAMES)


def write_tokenizer(folder: Path) -> None:
    """The tokenizer of a bundle, of a small vocabulary."""
    with tempfile.TemporaryDirectory() as source:
        vocabulary.write(Path(source), start=862, end=863)
        source_tokenizer.export(Path(source), folder)


def pictures_of(name: str) -> tuple[str, ...]:
    """Names of the pictures that a task takes."""
    return tuple(flow.inputs(task(name)).pictures)


def write(folder: Path, name: str = "edit", batch: int = 1) -> Path:
    """A bundle of the task ``name`` of :data:`TASKS`; returns ``folder``."""
    folder.mkdir(parents=True)
    spec, calls = task(name), flow_of(name)
    parts = [
        _part(folder, part, KINDS[part], name, _graph(part, spec, batch)) for part in calls.parts
    ]
    constants = {}
    empty = np.full((1, TOKENS, TEXT_WIDTH), 0.1, np.float32)
    if spec.guidance.kind != "none":
        constants["empty/encoder_hidden_states"] = empty
    if spec.prompt is not None:
        constants[f"prompt/{name}/encoder_hidden_states"] = empty
    bundle.write_constants(folder, constants)
    files, tokenizers = [bundle.GOLDENS, bundle.CONSTANTS], []
    if "text_encoder" in calls.parts:
        write_tokenizer(folder / "tokenizer")
        ids = {"bos": 862, "eos": 863, "pad": 863, "length": TOKENS}
        tokenizers.append({"path": "tokenizer", **ids})
        files.append("tokenizer")
    bundle.write_goldens(folder, {"none/none": [({"a": empty}, {})]})
    row = {
        "name": name,
        "guidance": spec.guidance.to_json(),
        "steps": 4,
        "strength": spec.strength,
        "prompt": spec.prompt,
        "inputs": flow.inputs(spec).to_json(),
        "flow": calls.to_json(),
    }
    strengths = (None,) if spec.strength is None else STRENGTHS
    loop = {
        "latent": {"channels": LATENT, "factor": FACTOR},
        "loop": {
            "scheduler": "DDIMScheduler",
            "prediction_type": "epsilon",
            "schedules": [_schedule(steps, share) for steps in STEPS for share in strengths],
        },
    }
    return _write_manifest(folder, row, parts, files, tokenizers=tokenizers, **loop)


def write_translator(folder: Path) -> Path:
    """A bundle without a loop: a picture, a grey hint, labels and a number make a picture."""
    folder.mkdir(parents=True)
    pixels, small = (1, 3, HEIGHT, WIDTH), (1, 2, HEIGHT, WIDTH)
    inputs: list[Border] = [
        ("picture", pixels, "float32"),
        ("hint", (1, 1, HEIGHT, WIDTH), "float32"),
        ("labels", small, "float32"),
        ("amount", (1, 1, 1, 1), "float32"),
    ]
    node = helper.make_node
    nodes = [
        node("Concat", ["picture", "hint", "labels"], ["all"], axis=1),
        node("Conv", ["all", "w"], ["mixed"]),
        node("Mul", ["mixed", "amount"], ["scaled"]),
        node("Tanh", ["scaled"], ["translated"]),
    ]
    weights = {"w": np.random.default_rng(1).standard_normal((3, 6, 1, 1), np.float32)}
    graph: Graph = (inputs, [("translated", pixels, "float32")], nodes, weights)
    parts = [_part(folder, "net", "network", "translate", graph)]
    bundle.write_goldens(folder, {"none/none": [({"a": np.zeros((1, 1), np.float32)}, {})]})
    row = {
        "name": "translate",
        "guidance": {"kind": "none"},
        "steps": 1,
        "inputs": {
            "pictures": {
                "image": {"kind": "picture", "range": "0..1"},
                "hint": {"kind": "grey", "filter": "nearest", "range": "-1..1"},
            },
            "tensors": {"labels": {"shape": list(small)}},
            "numbers": {"amount": {"default": 0.5, "minimum": 0.0, "maximum": 2.0}},
        },
        "flow": {
            "calls": [
                {
                    "id": "net",
                    "part": "net",
                    "when": "once",
                    "inputs": {
                        "picture": {"sources": [{"kind": "picture", "name": "image"}]},
                        "hint": {"sources": [{"kind": "picture", "name": "hint"}]},
                        "labels": {"sources": [{"kind": "tensor", "name": "labels"}]},
                        "amount": {"sources": [{"kind": "number", "name": "amount"}]},
                    },
                }
            ],
            "picture": {"call": "net", "name": "translated"},
        },
    }
    return _write_manifest(folder, row, parts, [bundle.GOLDENS], tokenizers=[])


def _write_manifest(
    folder: Path,
    row: dict[str, Any],
    parts: list[dict[str, Any]],
    files: list[str],
    **more: Any,
) -> Path:
    manifest = {
        "schema_version": "2.0",
        "name": folder.name,
        "created": "2026-01-01T00:00:00Z",
        "versions": {"mtu_export": "0"},
        "source": {"name": "none", "family": "mtu", "sha256": "0", "config": {}},
        "target": "onnx",
        "options": {},
        "scheme": _scheme(),
        "image": {"height": HEIGHT, "width": WIDTH},
        "tasks": [row],
        "parts": parts,
        "files": [
            {"path": path, "bytes": bundle.size(folder / path), "sha256": _hash(folder, path)}
            for path in files
        ],
        "proof": [],
        **more,
    }
    bundle.write_manifest(folder, bundle.validated(bundle.Manifest, json.dumps(manifest)))
    return folder


def copy(source: Path, folder: Path) -> Path:
    """A bundle to forge."""
    shutil.copytree(source, folder)
    return folder


DROP = object()
"""Takes a key out, as the value of :func:`edit`."""


def edit(folder: Path, *path: str | int, value: Any) -> None:
    """Set one value of a bundle's manifest."""
    file = folder / bundle.MANIFEST
    manifest = node = json.loads(file.read_text("utf-8"))
    for key in path[:-1]:
        node = node[key]
    if value is DROP:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    file.write_text(json.dumps(manifest), "utf-8")


def reseal(folder: Path) -> None:
    """Make sizes and hashes of the manifest fit the files again, as a forger would."""
    file = folder / bundle.MANIFEST
    manifest = json.loads(file.read_text("utf-8"))
    for record in (*manifest["parts"], *manifest["files"]):
        record.update(
            bytes=bundle.size(folder / record["path"]), sha256=_hash(folder, record["path"])
        )
    file.write_text(json.dumps(manifest), "utf-8")


def _hash(folder: Path, path: str) -> str:
    return bundle.sha256(folder / path)


def _scheme() -> dict[str, Any]:
    weights = {"bits": 32, "granularity": None}
    return {"name": "fp32", "weights": weights, "activations": "float32", "kept_float": []}


def _schedule(steps: int, strength: float | None) -> dict[str, Any]:
    """x loses a share of m at every pass, and one more pass than steps, as PNDM has.

    With a strength only its share is run, from picture and noise, and every pass draws noise.
    """
    draws = 0.0 if strength is None else 0.1
    count = steps + 1 if strength is None else round(steps * strength)
    return {
        "steps": steps,
        "strength": strength,
        "start": {"noise": 1.0, "picture": 0.0 if strength is None else 0.6},
        "passes": [
            {
                "columns": {"timestep": 900.0 - 100 * i},
                "input_scale": 0.9,
                "x": [0.9, 0, 0, 0],
                "m": [-0.2, 0, 0, 0],
                "noise": draws,
            }
            for i in range(count)
        ],
    }


Border = tuple[str, Sequence[int], str]
Graph = tuple[list[Border], list[Border], list[onnx.NodeProto], dict[str, np.ndarray]]
"""Inputs, outputs, nodes and weights."""


def _part(folder: Path, name: str, kind: str, task: str, parts_graph: Graph) -> dict[str, Any]:
    inputs, outputs, nodes, weights = parts_graph
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    sides = [
        [helper.make_tensor_value_info(n, kinds[dtype], list(shape)) for n, shape, dtype in side]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, name, *sides, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / name).mkdir()
    onnx.save(model, folder / name / "model.onnx")
    inputs, outputs = (
        [{"name": n, "shape": list(shape), "dtype": dtype} for n, shape, dtype in side]
        for side in (inputs, outputs)
    )
    cost = dict.fromkeys(("parameters", "flops_conv_linear", "flops_total", "weight_bytes"), 1)
    return {
        "name": name,
        "kind": kind,
        "path": name,
        "bytes": bundle.size(folder / name),
        "sha256": _hash(folder, name),
        "entries": {task: "model.onnx"},
        "inputs": inputs,
        "outputs": outputs,
        "scheme": _scheme(),
        "cost": cost,
    }


def _graph(part: str, spec: Task, batch: int) -> Graph:
    random, node = np.random.default_rng(0), helper.make_node
    pixels, small = (1, 3, HEIGHT, WIDTH), (HEIGHT // FACTOR, WIDTH // FACTOR)
    latent, wide = (1, LATENT, *small), LATENT + spec.channels

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))

    if part == "text_encoder":
        return (
            [("input_ids", (1, TOKENS), "int32")],
            [("last_hidden_state", (1, TOKENS, TEXT_WIDTH), "float32")],
            [
                node("Cast", ["input_ids"], ["float"], to=TensorProto.FLOAT),
                node("Unsqueeze", ["float", "axis"], ["ids"]),
                node("Mul", ["ids", "w"], ["scaled"]),
                node("Sin", ["scaled"], ["last_hidden_state"]),
            ],
            {"axis": np.array([2], np.int64), "w": weight(1, 1, TEXT_WIDTH)},
        )
    if part == "vae_encoder":
        return (
            [("sample", pixels, "float32")],
            [("latent_sample", latent, "float32")],
            [node("Conv", ["sample", "w"], ["latent_sample"], strides=[FACTOR] * 2)],
            {"w": weight(LATENT, 3, FACTOR, FACTOR) / FACTOR},
        )
    if part == "vae_decoder":
        return (
            [("latent_sample", latent, "float32")],
            [("sample", pixels, "float32")],
            [
                node("ConvTranspose", ["latent_sample", "w"], ["raw"], strides=[FACTOR] * 2),
                node("Tanh", ["raw"], ["sample"]),
            ],
            {"w": weight(LATENT, 3, FACTOR, FACTOR)},
        )
    return (
        [
            ("sample", (batch, wide, *small), "float32"),
            ("timestep", (1,), "float32"),
            ("encoder_hidden_states", (batch, TOKENS, TEXT_WIDTH), "float32"),
        ],
        [("out_sample", (batch, LATENT, *small), "float32")],
        [
            node("Conv", ["sample", "w"], ["mixed"]),
            node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], keepdims=1),
            node("Unsqueeze", ["mean", "last"], ["words"]),
            node("Mul", ["timestep", "rate"], ["time"]),
            node("Add", ["mixed", "words"], ["told"]),
            node("Add", ["told", "time"], ["timed"]),
            node("Tanh", ["timed"], ["out_sample"]),
        ],
        {
            "w": weight(LATENT, wide, 1, 1),
            "axes": np.array([1, 2], np.int64),
            "last": np.array([3], np.int64),
            "rate": np.array([0.001], np.float32),
        },
    )
