"""``loops.json`` and ``loops.safetensors``: flows of every kind on parts of closed form."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from benchmarks.vectors import loop_parts
from benchmarks.vectors.loop_cases import CASES
from benchmarks.vectors.loop_parts import PARTS, SCHEDULES, TOKENIZERS, Json
from mtu_export.bundle import sampler
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.bundle.manifest import ScheduleRecord
from mtu_export.spec import Arrays, Guidance, Schedule, Session, TensorSpec
from mtu_export.spec.flow import Flow, Inputs

Model = TypeVar("Model", bound=BaseModel)
IMAGE = {"height": 4, "width": 6}
LATENT = {"channels": 2, "factor": 2}
MOST_PASSES = 4
SEED = 21


def closed_form(part: Json) -> Session:
    """The part of ``loops.json`` as a session; runtime/README.md, "testdata/", has the formula."""

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        outputs = {}
        for j, output in enumerate(part["outputs"]):
            batch, *rest = output["shape"]
            count = int(np.prod(rest))
            total = np.zeros((batch, count))
            for k, spec in enumerate(part["inputs"]):
                flat = np.asarray(feeds[spec["name"]], np.float64).reshape(spec["shape"][0], -1)
                t = np.arange(max(flat.shape[1], count))
                terms = flat[:, t % flat.shape[1]] * np.cos(t + k + 7 * j)
                for b in range(batch):
                    row = terms[b if len(flat) > 1 else 0]
                    total[b] += spec["weight"] * np.bincount(t % count, row, count)
            outputs[output["name"]] = np.tanh(total).astype(np.float32).reshape(output["shape"])
        return outputs

    return run


def shared_tensors() -> dict[str, np.ndarray]:
    """Noise, pictures, tensors, constants and ids that the cases share."""
    random = np.random.default_rng(SEED)
    height, width = IMAGE["height"], IMAGE["width"]
    cells = (LATENT["channels"], height // LATENT["factor"], width // LATENT["factor"])
    tensors: dict[str, np.ndarray] = {
        "noise": sampler.noise((1 + MOST_PASSES, *cells), SEED),
        "pictures/image": random.uniform(-1, 1, (1, 3, height, width)),
        "pictures/hint": random.uniform(0, 1, (1, 3, height, width)),
        "pictures/depth": random.uniform(0, 1, (1, 1, height, width)),
        "pictures/mask": random.integers(0, 2, (1, 1, height, width)),
        "tensors/label": random.uniform(-1, 1, (1, 5)),
        "constants/empty_text": random.uniform(-1, 1, (1, 4, 3)),
        "constants/empty_joined": random.uniform(-1, 1, (1, 4, 6)),
        "constants/sizes": random.uniform(-1, 1, (1, 6)),
        "constants/start": random.uniform(-1, 1, (1, *cells)),
    }
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    for tokenizer in TOKENIZERS:
        for text in ("prompt", "negative"):
            name = f"ids/{tokenizer['path']}/{text}"
            tensors[name] = random.integers(1, 90, (1, tokenizer["length"]), np.int32)
    return tensors


def record(model: type[Model], document: Json) -> Model:
    """JSON as a record of a manifest."""
    return model.model_validate_json(json.dumps(document))


def below(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors of a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def schedule_of(request: Json) -> Schedule:
    """The table of a request."""
    key = (request["steps"], request.get("strength"))
    (table,) = (s for s in SCHEDULES if (s["steps"], s.get("strength")) == key)
    return record(ScheduleRecord, table).schedule()


def results(task: Json, request: Json, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The last latent, where there is a loop, and the picture of a case."""
    flow, inputs = record(Flow, task["flow"]), record(Inputs, task["inputs"])
    parts = {part["name"]: part for part in PARTS}
    specs = {name: [tensor_spec(i) for i in parts[name]["inputs"]] for name in flow.parts}
    sessions = {name: closed_form(parts[name]) for name in flow.parts}
    evaluation = Evaluation(
        flow,
        inputs,
        specs,
        below(tensors, "constants/"),
        Guidance(**request.get("guidance", task["guidance"])),
        request_of(task, request, tensors),
        lambda path, text: tensors[f"ids/{path}/{text}"],
    )
    for call in flow.of("once"):
        evaluation.run_once(call, sessions[call.part])
    if not flow.has_loop:
        return [evaluation.picture(None, sessions.__getitem__)]
    schedule = schedule_of(request)
    noise = tensors["noise"][: 1 + schedule.draws]
    denoise = evaluation.denoiser(sessions)
    *_, last = sampler.latents(schedule, noise, denoise, evaluation.start())
    return [last, evaluation.picture(last, sessions.__getitem__)]


def request_of(task: Json, request: Json, tensors: dict[str, np.ndarray]) -> Request:
    """The request of a case."""
    pictures, named = below(tensors, "pictures/"), below(tensors, "tensors/")
    return Request(
        prompt=request.get("prompt", ""),
        negative_prompt=request.get("negative_prompt"),
        noise=None,
        steps=request.get("steps", 1),
        strength=request.get("strength"),
        pictures={name: pictures[name] for name in task["inputs"].get("pictures", {})},
        tensors={name: named[name] for name in task["inputs"].get("tensors", {})},
        numbers=request.get("numbers", {}),
    )


def tensor_spec(tensor: Json) -> TensorSpec:
    """The spec of an input in ``loops.json``."""
    return TensorSpec(name=tensor["name"], shape=tuple(tensor["shape"]), dtype=tensor["dtype"])


def make() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The document and the tensors."""
    tensors = shared_tensors()
    expected = {}
    for case in CASES:
        *latent, picture = results(case["task"], case["request"], tensors)
        expected[f"expected/{case['name']}/picture"] = picture
        if latent:
            expected[f"expected/{case['name']}/latent"] = latent[0]
    document = {
        "image": IMAGE,
        "latent": LATENT,
        "tokenizers": TOKENIZERS,
        "schedules": loop_parts.SCHEDULES,
        "parts": PARTS,
        "cases": CASES,
    }
    return document, {**tensors, **expected}
