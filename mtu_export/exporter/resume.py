"""The finished parts of an interrupted export, kept in its draft so it can be resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mtu_export
from mtu_export import bundle, checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.exporter import manifest
from mtu_export.spec import BundleError, Cost, Plan, Verdict
from mtu_export.storage import atomic_file
from mtu_export.storage.draft import SCRATCH

if TYPE_CHECKING:
    from mtu_export.exporter.part import ExportedPart, Result

_NOT_EXPORTED = ("out", "force", "memory", "resume")
"""Fields of a plan that do not change what is exported."""
_HASHED = ("model", "source", "revision", "loras")
"""Fields of a plan whose files are hashed: where they lie changes nothing."""
_ABOVE = ("authoring", "bench", "cli", "testing", "training")
"""Packages that call the exporter and that it does not call."""
_LABELS = ("name", "source")
"""Entries of an identity that are names of folders."""


def fingerprint(plan: Plan, identity: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """A hash of all that decides what an export makes: options, sources, versions and code.

    Sources count by content, not by path or name.
    """
    left_out = (*_NOT_EXPORTED, *_HASHED)
    options = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in left_out}
    content = {
        "options": options,
        "identity": {key: value for key, value in identity.items() if key not in _LABELS},
        "versions": dict(versions),
        "loras": _lora_hashes(plan),
        "embeddings": [[each.sha256, *each.tokens] for each in plan.model.embeddings],
        "clip_skip": plan.model.clip_skip,
        "sources": bundle.sha256_of(_read_too(plan)),
        "derived": _derived(plan),
        "code": _code(),
    }
    text = json.dumps(content, sort_keys=True, default=asdict)  # schemes, tasks, options
    return hashlib.sha256(text.encode()).hexdigest()


def _lora_hashes(plan: Plan) -> list[dict[str, Any]]:
    """Scales and content of each LoRA, and of the config beside it."""
    return [
        {
            "scale": source.scale,
            "adapter": source.adapter,
            "blocks": source.blocks,
            "files": [bundle.sha256(file) for file in _lora_files(source.path)],
        }
        for source in plan.loras
    ]


def _code() -> str:
    """Hash of the code that an export runs, which changes under one version in a working tree."""
    package = Path(mtu_export.__file__).parent
    names = {p.relative_to(package).as_posix(): p for p in package.rglob("*.py")}
    return bundle.sha256_of({n: p for n, p in names.items() if n.split("/")[0] not in _ABOVE})


def source_files(plan: Plan) -> list[Path]:
    """Folders and files of the checkpoint, the LoRAs and the embeddings."""
    return [*checkpoint.sources(plan.checkpoint), *_beside(plan)]


def _beside(plan: Plan) -> list[Path]:
    """Files that a plan adds to its checkpoint."""
    loras = [path for source in plan.loras for path in _lora_files(source.path)]
    return [*loras, *(each.path for each in plan.model.embeddings)]


def stamps(plan: Plan) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file that an export reads, to see that none has changed."""
    read = [*manifest.weights(plan).values(), *_read_too(plan).values(), *_beside(plan)]
    stats = {str(path): path.stat() for path in read}
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in stats.items()}


def _read_too(plan: Plan) -> dict[str, Path]:
    """Files that an export reads beside those that ``identity`` hashes.

    Index, scheduler, tokenizers, licences, configs, and the weights of text encoders that are not
    exported: the embeddings of fixed prompts come from them.
    """
    folder = plan.checkpoint
    files = {name: place for name, place in _configs(folder) if isinstance(place, Path)}
    for part in plan.model.parts:
        encoder = part.kind == "text_encoder" and part.name not in plan.parts
        if encoder and (folder / part.folder).is_dir():
            weights = checkpoint.weight_files(folder / part.folder, part.stem)
            files |= {f"{part.folder}/{path.name}": path for path in weights}
    return files | {path.name: path for path in checkpoint.licences(folder)}


def _derived(plan: Plan) -> dict[str, Any]:
    """The files of a checkpoint that are derived and not on disk, and what was assumed of it."""
    places = _configs(plan.checkpoint)
    documents = {n: checkpoint.read_json(p) for n, p in places if not isinstance(p, Path)}
    return {"documents": documents, "notes": list(checkpoint.notes(plan.checkpoint))}


def _configs(folder: Folder) -> list[tuple[str, Folder]]:
    """Index, scheduler, tokenizers and configs of a checkpoint, by name."""
    places = [("model_index.json", folder / "model_index.json")]
    for part, folder_of_part in checkpoint.children(folder).items():
        for name, place in checkpoint.children(folder_of_part).items():
            tokenizer = part.startswith("tokenizer")
            scheduler = part == "scheduler" and name.endswith(".json")
            if tokenizer or scheduler or name == "config.json":
                places.append((f"{part}/{name}", place))
    return [(name, place) for name, place in places if place.is_file()]


def _lora_files(path: Path) -> list[Path]:
    from mtu_export.models import lora

    config = lora.config_beside(path)
    return [path] if config is None else [path, config]


class State:
    """Finished parts in a draft folder; those of another export are deleted.

    A part is two files: its arrays, and a JSON record that appears last and whole and has
    hashes of both.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.scratch = folder, folder / SCRATCH
        try:
            same = (self.scratch / "mark").read_text("utf-8") == fingerprint
        except (OSError, ValueError):
            same = False
        if not same:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.scratch.mkdir()
            (self.scratch / "mark").write_text(fingerprint, "utf-8")

    def get(self, name: str) -> Result | None:
        """A finished part, its files checked; None where it is incomplete or was changed."""
        from safetensors.numpy import load_file

        record = self._record(name)
        if record is None:
            return None
        try:
            part = record["part"]
            if part is not None:
                bundle.check_part(self.folder, _part_record(part))
        except BundleError:
            return None
        return _decoded(name, record, load_file(self._arrays(name)))

    def put(self, name: str, result: Result) -> None:
        """Keep a finished part."""
        from safetensors.numpy import save_file

        record, arrays = _encoded(result)
        path = self._arrays(name)
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
        record["arrays"] = bundle.sha256(path)
        text = json.dumps(record)
        with atomic_file(self.scratch / f"{name}.json") as private:
            private.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", "utf-8")

    def _arrays(self, name: str) -> Path:
        return self.scratch / f"{name}.safetensors"

    def _record(self, name: str) -> dict[str, Any] | None:
        """The record, where it and the arrays are as they were written."""
        try:
            text = (self.scratch / f"{name}.json").read_text("utf-8")
            digest, _, text = text.partition("\n")
            if digest != hashlib.sha256(text.encode()).hexdigest():
                return None
            record = json.loads(text)
            return record if record["arrays"] == bundle.sha256(self._arrays(name)) else None
        except (OSError, UnicodeDecodeError):
            return None


def _encoded(result: Result) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A result as JSON and arrays."""
    arrays = {
        f"loop/{task}/{name}": value
        for task, contribution in result.contributions.items()
        for name, value in contribution.to_arrays().items()
    }
    record: dict[str, Any] = {"part": None, "tasks": list(result.contributions)}
    part = result.part
    if part is not None:
        cases = {}
        for task, pairs in part.cases.items():
            cases[task] = [[list(inputs), list(outputs)] for inputs, outputs in pairs]
            for number, pair in enumerate(pairs):
                for side, tensors in zip(("in", "out"), pair, strict=True):
                    prefix = f"case/{task}/{number}/{side}"
                    arrays |= {f"{prefix}/{name}": value for name, value in tensors.items()}
        record["part"] = {
            "record": part.record.to_json(),
            "proof": [asdict(verdict) for verdict in part.proof],
            "cost": asdict(part.cost),
            "cases": cases,
        }
    return record, arrays


def _decoded(name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Result:
    """The result of :func:`_encoded`."""
    from mtu_export.exporter.part import Result
    from mtu_export.exporter.reference import Contribution

    contributions = {
        task: Contribution.from_arrays(_below(arrays, f"loop/{task}/")) for task in record["tasks"]
    }
    part = None if record["part"] is None else _decoded_part(name, record["part"], arrays)
    return Result(part=part, contributions=contributions)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _part_record(part: Mapping[str, Any]) -> bundle.PartRecord:
    return bundle.validated(bundle.PartRecord, json.dumps(part["record"]))


def _decoded_part(
    name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> ExportedPart:
    from mtu_export.exporter.part import ExportedPart

    cases = {
        task: [
            (
                {name: arrays[f"case/{task}/{number}/in/{name}"] for name in inputs},
                {name: arrays[f"case/{task}/{number}/out/{name}"] for name in outputs},
            )
            for number, (inputs, outputs) in enumerate(pairs)
        ]
        for task, pairs in record["cases"].items()
    }
    return ExportedPart(
        name=name,
        record=_part_record(record),
        proof=tuple(Verdict(**verdict) for verdict in record["proof"]),
        cases=cases,
        cost=Cost(**record["cost"]),
    )
