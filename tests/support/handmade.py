"""Bundles made by hand in a moment: whole loops of ONNX files with a few operators each.

What a real export writes is tested elsewhere; here its shapes and names are kept, so that `run`
and hostile manifests need no checkpoint and no PyTorch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu_export import bundle, checkpoint
from mtu_export.spec import Task
from mtu_export.testing import vocabulary

HEIGHT, WIDTH, FACTOR, LATENT, TEXT_WIDTH, TOKENS = 16, 24, 8, 4, 8, 77
SCALING = 0.5
STEPS = (2, 4)
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
    "sr": {
        "conditioning": [{"kind": "image", "channels": 3}],
        "guidance": {"kind": "none"},
        "prompt": "",
    },
}
"""Tasks by name; every one has 4 steps."""


def task(name: str) -> Task:
    return checkpoint.task_from_json({"name": name, "steps": 4, **TASKS[name]}, 0, name)


def needed(name: str) -> list[str]:
    needs = task(name)
    kinds = {entry.kind for entry in needs.conditioning}
    text = ["text_encoder"] if needs.prompt is None else []
    encoder = ["vae_encoder"] if any(kind.endswith("image_latent") for kind in kinds) else []
    return [*text, *encoder, "unet", "vae_decoder"]


def write(folder: Path, name: str = "edit", batch: int = 1) -> Path:
    """A bundle of the task ``name`` of :data:`TASKS`; returns ``folder``."""
    folder.mkdir(parents=True)
    resolved, parts = task(name), needed(name)
    records = [_part(folder, part, resolved, batch) for part in parts]
    files, text = [], {"inputs": {}, "tokenizers": {}}
    constants = {}
    empty = np.full((1, TOKENS, TEXT_WIDTH), 0.1, np.float32)
    if resolved.guidance.kind != "none":
        constants["empty/encoder_hidden_states"] = empty
    if resolved.prompt is not None:
        constants[f"prompt/{name}/encoder_hidden_states"] = empty
    if constants:
        bundle.write_constants(folder, constants)
        files.append(bundle.CONSTANTS)
    if "text_encoder" in parts:
        vocabulary.write(folder / "tokenizer", start=862, end=863)
        source = {"component": "text_encoder", "output": "last_hidden_state"}
        text = {
            "inputs": {"encoder_hidden_states": [source]},
            "tokenizers": {"text_encoder": "tokenizer"},
        }
        files.append("tokenizer")
    bundle.write_goldens(folder, {"none/none": [({"a": empty}, {})]})
    files.append(bundle.GOLDENS)
    manifest = {
        "schema_version": "1.1",
        "name": folder.name,
        "created": "2026-01-01T00:00:00Z",
        "versions": {"mtu_export": "0"},
        "source": {"name": "none", "family": "mtu", "sha256": "0", "model_config": {}},
        "target": "onnx",
        "options": {},
        "scheme": _scheme(),
        "image": {
            "height": HEIGHT,
            "width": WIDTH,
            "range": [-1, 1],
            "fit": "cover",
            "filter": "lanczos",
        },
        "tasks": [{**resolved.to_json(), "parts": parts, "entry": "model.onnx"}],
        "parts": records,
        "tokenizers": [],
        "text": text,
        "latent": {"channels": LATENT, "factor": FACTOR, "scaling_factor": SCALING},
        "mask": {
            "threshold": 0.5,
            "resize": "nearest",
            "masked_image": "image * (mask < 0.5)",
        },
        "loop": {
            "scheduler": "DDIMScheduler",
            "prediction_type": "epsilon",
            "schedules": {str(steps): _schedule(steps) for steps in STEPS},
        },
        "files": [
            {"path": path, "bytes": bundle.size(folder / path), "sha256": _hash(folder, path)}
            for path in files
        ],
        "proof": [],
    }
    bundle.write_manifest(folder, bundle.validated(bundle.Manifest, json.dumps(manifest)))
    return folder


def copy(source: Path, folder: Path) -> Path:
    """A bundle to forge."""
    shutil.copytree(source, folder)
    return folder


def edit(folder: Path, *path: str | int, value: Any) -> None:
    """Set one value of a bundle's manifest."""
    file = folder / bundle.MANIFEST
    manifest = node = json.loads(file.read_text("utf-8"))
    for key in path[:-1]:
        node = node[key]
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


def _schedule(steps: int) -> dict[str, Any]:
    """x loses a share of m at every pass, and one more pass than steps, as PNDM has."""
    return {
        "init_noise_sigma": 1.0,
        "passes": [
            {
                "timestep": 900.0 - 100 * i,
                "input_scale": 0.9,
                "x": [0.9, 0, 0, 0],
                "m": [-0.2, 0, 0, 0],
            }
            for i in range(steps + 1)
        ],
    }


Border = tuple[str, Sequence[int], str]


def _part(folder: Path, component: str, of_task: Task, batch: int) -> dict[str, Any]:
    inputs, outputs, nodes, weights = _graph(component, of_task, batch)
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    sides = [
        [helper.make_tensor_value_info(n, kinds[kind], list(shape)) for n, shape, kind in side]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, component, *sides, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / component).mkdir()
    onnx.save(model, folder / component / "model.onnx")
    inputs, outputs = (
        [{"name": n, "shape": list(shape), "dtype": kind} for n, shape, kind in side]
        for side in (inputs, outputs)
    )
    cost = dict.fromkeys(("parameters", "flops_conv_linear", "flops_total", "weight_bytes"), 1)
    return {
        "component": component,
        "path": component,
        "bytes": bundle.size(folder / component),
        "sha256": _hash(folder, component),
        "entries": {of_task.name: "model.onnx"},
        "inputs": inputs,
        "outputs": outputs,
        "scheme": _scheme(),
        "cost": cost,
    }


def _graph(
    component: str, of_task: Task, batch: int
) -> tuple[list[Border], list[Border], list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Inputs, outputs, nodes and weights of a part."""
    random, node = np.random.default_rng(0), helper.make_node
    pixels, small = (1, 3, HEIGHT, WIDTH), (HEIGHT // FACTOR, WIDTH // FACTOR)
    latent, wide = (1, LATENT, *small), LATENT + of_task.channels

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))

    if component == "text_encoder":
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
    if component == "vae_encoder":
        return (
            [("sample", pixels, "float32")],
            [("latent_sample", latent, "float32")],
            [node("Conv", ["sample", "w"], ["latent_sample"], strides=[FACTOR] * 2)],
            {"w": weight(LATENT, 3, FACTOR, FACTOR) / FACTOR},
        )
    if component == "vae_decoder":
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
