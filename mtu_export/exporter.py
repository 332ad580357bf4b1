"""The pipeline: a checkpoint and a plan go in, a proven bundle comes out.

checkpoint ─load─▶ Pipeline ─golden─▶ ─specialise─▶ ─rewrite─▶ ─quantise─▶ ─capture─▶ Program
   ─lower─▶ artefact files ─verify─▶ verdicts ─bundle─▶ folder
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtu_export import __version__, bundle, checkpoint, targets, verify
from mtu_export.bundle import Bundle, Part
from mtu_export.catalog import SCHEMES
from mtu_export.draft import BUNDLE, FOLDED, draft
from mtu_export.spec import (
    Arrays,
    BundleError,
    Cost,
    IntWeights,
    Lowered,
    ParityError,
    Plan,
    Program,
    Task,
    TensorSpec,
    Unsupported,
    Verdict,
)

Watch = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each stage; entered for as long as it takes."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    """A ``Watch`` that shows nothing."""
    return nullcontext()


def export(plan: Plan, watch: Watch = unwatched) -> Bundle:
    """Make the bundle of ``plan`` at ``plan.out``, whole or not at all.

    Every artefact is loaded from disk and run by its own runtime against the live-router model.
    Raises ``ParityError`` below the floor, and any other error of ``spec``.
    """
    with draft(plan.out, force=plan.force, mark=BUNDLE, source=plan.checkpoint) as folder:
        with watch("import PyTorch"):
            from mtu_export import calibrate, capture, models, quantize, rewrite
        target, family, task = targets.load(plan.target), models.load(plan.family), plan.tasks[0]
        with watch("load checkpoint"):
            pipeline = family.load(plan.checkpoint)
            identity = _identity(plan)
        with watch("run live-router model"):
            graph = family.graph(pipeline.components["unet"], plan, task)
            cases = calibrate.goldens(graph.inputs, task, plan)
            wanted = capture.run(graph, cases)
            del graph
        with watch("fold"):
            folded = family.specialise(pipeline, task)
            del pipeline
            graph = family.graph(folded.module, plan, task)
            cost = capture.cost(graph)
        with watch("prove the fold"):
            ladder = [_folded(wanted, capture.run(graph, cases), task)]
            _refuse_failure(ladder)
        with watch("rewrite and quantise"):
            rewrite.apply(folded.module, target.rewrites)
            kept = quantize.quantize(folded.module, plan.scheme)
        with watch("capture"):
            ranges = {task.name: calibrate.calibration(graph.inputs, task, plan)}
            program = capture.capture("unet", {task.name: graph}, ranges, calibrate.ORIGIN)
            del graph, folded
        with watch(f"lower to {plan.target}"):
            lowered = target.lower(program, plan, folder, identity)
        manifest = _manifest(plan, identity, lowered, kept)
        manifest["parts"] = [_part(program, lowered, cost, plan, folder)]
        del program
        gc.collect()  # graphs are cyclic: free their weights before a runtime loads them again
        bundle.write_goldens(folder, {f"unet/{task.name}": list(zip(cases, wanted, strict=True))})
        for path in checkpoint.licences(plan.checkpoint):
            shutil.copyfile(path, folder / path.name)
        bundle.write_manifest(folder, manifest)
        with watch("verify"):
            ladder += check(bundle.read(folder), plan.floor_db)
            _refuse_failure(ladder)
        manifest["proof"] = [asdict(row) for row in ladder]
        bundle.write_manifest(folder, manifest)
    return bundle.read(plan.out)


def save_folded(plan: Plan, watch: Watch = unwatched) -> Path:
    """Fold one task and save it as a stock ``UNet2DConditionModel`` folder; returns its path.

    Raises ``Unsupported`` where no stock UNet holds the task.
    """
    with draft(plan.out, force=plan.force, mark=FOLDED, source=plan.checkpoint) as folder:
        with watch("import PyTorch"):
            from mtu_export import models, quantize
        with watch("load checkpoint"):
            family = models.load(plan.family)
            pipeline = family.load(plan.checkpoint)
        with watch("fold"):
            folded = family.specialise(pipeline, plan.tasks[0])
        if folded.deviations:
            raise Unsupported(f"no stock UNet2DConditionModel fits: {folded.deviations[0]}")
        with watch("save"):
            quantize.quantize(folded.module, plan.scheme)
            folded.module.save_pretrained(folder)
            config = checkpoint.read_json(folder / FOLDED.file)
            config |= {FOLDED.key: FOLDED.value, "_task": plan.tasks[0].name}
            (folder / FOLDED.file).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return plan.out


# -------------------------------------------------------------------------------------- verify


def check(found: Bundle, floor_db: float | None = None) -> list[Verdict]:
    """Run every artefact of a bundle against its goldens; read structure where nothing runs.

    The floor is ``floor_db``, else what the export recorded, else the scheme's. Raises
    ``BundleError`` where the files contradict the manifest.
    """
    name, scheme = found.manifest["target"], found.manifest["scheme"]
    if name not in targets.names() or scheme.get("name") not in SCHEMES:
        raise BundleError(f"{bundle.MANIFEST}: unknown target or scheme")
    goldens = bundle.read_goldens(found)
    row = SCHEMES[scheme["name"]]
    rung = "quantised" if isinstance(row.weights, IntWeights) else "exported"
    recorded = {(v.component, v.task, v.rung): v.floor_db for v in found.proof}
    verdicts = []
    for part in found.parts:
        for task in part.entries:
            cases = goldens.get(f"{part.component}/{task}")
            if not cases or len(cases) < bundle.CASES:
                raise BundleError(
                    f"{bundle.GOLDENS} has not {bundle.CASES} cases of {part.component}/{task}"
                )
            floor = recorded.get((part.component, task, rung), row.floor(scheme["activations"]))
            floor = floor if floor_db is None else floor_db
            if not 0 <= floor <= verify.CEILING_DB:
                raise BundleError(f"{bundle.MANIFEST}: a floor of {floor:g} dB is none")
            verdicts.append(_check_entry(name, part, task, cases, rung, floor))
    return verdicts


def _check_entry(
    target_name: str,
    part: Part,
    task: str,
    cases: Sequence[tuple[Arrays, Arrays]],
    rung: str,
    floor: float,
) -> Verdict:
    """Structure first, then the runtime, if there is one here."""
    target, entry = targets.load(target_name), part.entries[task]
    structure = target.structure(part.path, entry)
    for what, said, is_there in (
        ("inputs", part.inputs, structure.inputs),
        ("outputs", part.outputs, structure.outputs),
    ):
        if said != is_there:
            raise BundleError(f"{part.path.name}: its {what} are not those of the manifest")
    for inputs, outputs in cases:
        if set(outputs) != {s.name for s in part.outputs}:
            raise BundleError(f"{bundle.GOLDENS}: outputs of {task!r} are not those of the part")
        if {s.name: s.shape for s in part.inputs} != {k: v.shape for k, v in inputs.items()}:
            raise BundleError(f"{bundle.GOLDENS}: inputs of {task!r} are not those of the part")
    runner, reason = target.runner()
    if runner is None:
        count = sum(structure.operators.values())
        return verify.not_run(
            component=part.component,
            task=task,
            rung=rung,
            floor_db=floor,
            reason=f"{reason}; its structure was checked ({count} operators)",
        )
    session = target.open(part.path, entry)
    return verify.judge(
        [wanted for _, wanted in cases],
        [session(inputs) for inputs, _ in cases],
        component=part.component,
        task=task,
        rung=rung,
        floor_db=floor,
        runner=runner,
    )


def _folded(wanted: Sequence[Arrays], found: Sequence[Arrays], task: Task) -> Verdict:
    version = importlib.metadata.version("torch")
    return verify.judge(
        wanted,
        found,
        component="unet",
        task=task.name,
        rung="folded",
        floor_db=SCHEMES["fp32"].floor_db,
        runner=f"torch {version}",
    )


def _refuse_failure(verdicts: Sequence[Verdict]) -> None:
    line = verify.failure(verdicts)
    if line is not None:
        raise ParityError(f"parity below the floor: {line}")


# ------------------------------------------------------------------------------------ manifest


def _identity(plan: Plan) -> dict[str, str]:
    """What is written inside every artefact too."""
    home = plan.checkpoint / "unet"
    files = {path.name: path for path in (home / "config.json", *checkpoint.weight_files(home))}
    return {
        "name": plan.out.name,
        "schema_version": ".".join(map(str, bundle.SCHEMA)),
        "mtu_export": __version__,
        "family": plan.family,
        "source": plan.checkpoint.resolve().name,
        "source_sha256": bundle.sha256_of(files),
        "tasks": "+".join(task.name for task in plan.tasks),
        "target": plan.target,
        "scheme": plan.scheme.name,
    }


def _manifest(
    plan: Plan,
    identity: Mapping[str, str],
    lowered: Lowered,
    kept: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    target, weights = targets.load(plan.target), plan.scheme.weights
    kept = (*kept, *lowered.kept_float)
    packages = ("torch", "diffusers", *target.packages)
    stock = checkpoint.stock_config(plan.config, plan.config["in_channels"])
    sizes = ("num_experts", "task_embedding_dim", "router_hidden_dim")
    xl = plan.config.get("addition_embed_type") == "text_time"
    scaling = _vae_config(plan).get("scaling_factor", 0.13025 if xl else 0.18215)
    quantised = isinstance(weights, IntWeights)
    bits = weights.bits if quantised else {"float32": 32, "float16": 16}[weights.dtype]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "schema_version": identity["schema_version"],
        "name": identity["name"],
        "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": {
            "mtu_export": __version__,
            **{name: found for name in packages if (found := _version(name))},
        },
        "source": {
            "name": identity["source"],
            "family": plan.family,
            "sha256": identity["source_sha256"],
            "model_config": {**stock, **{key: plan.config[key] for key in sizes}},
        },
        "target": plan.target,
        "options": {**asdict(plan.options), **lowered.notes},
        "scheme": {
            "name": plan.scheme.name,
            "weights": {"bits": bits, "granularity": "per_channel" if quantised else None},
            "activations": lowered.activations,
            "calibration": lowered.calibration,
            "kept_float": [{"layer": layer, "why": why} for layer, why in kept],
        },
        "image": {
            "height": plan.height,
            "width": plan.width,
            "range": [-1, 1],
            "fit": "cover",
            "filter": "lanczos",
        },
        "tasks": [
            {
                **task.to_json(),
                "conditioning": _conditioning(task),
                "parts": ["unet"],
                "entry": entry,
            }
            for task in plan.tasks
            for entry in (lowered.entries[task.name],)
        ],
        "parts": [],
        "tokenizers": [],
        "latent": {
            "channels": plan.config["in_channels"],
            "factor": plan.factor,
            "scaling_factor": scaling,
        },
        "mask": {
            "threshold": 0.5,
            "resize": "nearest",
            "masked_image": "image * (mask < 0.5)",
        },
        "loop": None,
        "proof": [],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _conditioning(task: Task) -> list[dict[str, Any]]:
    """Entries with ``scaled`` spelled out where it means something."""
    return [
        {"kind": entry.kind, "channels": entry.channels}
        | ({"scaled": entry.scaled} if entry.kind == "image_latent" else {})
        for entry in task.conditioning
    ]


def _vae_config(plan: Plan) -> Mapping[str, Any]:
    path = plan.checkpoint / "vae" / "config.json"
    return checkpoint.read_json(path) if path.is_file() else {}


def _part(
    program: Program, lowered: Lowered, cost: Cost, plan: Plan, folder: Path
) -> dict[str, Any]:
    path = folder / lowered.path
    task = plan.tasks[0].name
    return {
        "component": program.name,
        "path": lowered.path,
        "bytes": bundle.size(path),
        "sha256": bundle.sha256(path),
        "entries": dict(lowered.entries),
        "inputs": [_spec(spec) for spec in program.inputs[task]],
        "outputs": [_spec(spec) for spec in program.outputs],
        "cost": {
            **asdict(cost),
            "weight_bytes": _weight_bytes(program, task, lowered),
            "shared_weight_bytes": 0,
        },
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _weight_bytes(program: Program, task: str, lowered: Lowered) -> int:
    """Bytes of codes, scales and float weights as the artefact holds them."""
    import torch

    width = 2 if lowered.weight_dtype == "float16" else 4
    state = program.methods[task].state_dict.values()
    floats = sum(t.numel() * width for t in state if t.is_floating_point())
    return floats + sum(t.numel() for t in state if t.dtype == torch.int8)
