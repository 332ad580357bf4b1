"""What an export leaves on disk: manifest, parts, goldens. Format: ``runtime/README.md``.

A bundle from elsewhere is untrusted until :func:`read` has checked it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtu_export.bundle.card import card, sharing
from mtu_export.bundle.compatibility import validate_wiring
from mtu_export.bundle.goldens import (
    CASES,
    CONSTANTS,
    GOLDENS,
    Goldens,
    read_constants,
    write_constants,
    write_goldens,
)
from mtu_export.bundle.hashes import files_of, sha256, sha256_of, size
from mtu_export.bundle.jsonschema import json_schema
from mtu_export.bundle.manifest import (
    FileRecord,
    Manifest,
    PartRecord,
    SchemeRecord,
    TaskRecord,
)
from mtu_export.bundle.paths import MANIFEST, inside
from mtu_export.bundle.reading import (
    LIMIT,
    read_manifest,
    refuse_invalid_records,
    validated,
)
from mtu_export.bundle.rules import PIPELINE, Schedules, require_references
from mtu_export.spec import BundleError, TensorSpec, Verdict
from mtu_export.spec.records import SCHEMA

__all__ = [
    "CASES",
    "CONSTANTS",
    "GOLDENS",
    "LIMIT",
    "MANIFEST",
    "PIPELINE",
    "SCHEMA",
    "Bundle",
    "FileRecord",
    "Goldens",
    "Manifest",
    "Part",
    "PartRecord",
    "TaskRecord",
    "assemble",
    "check_part",
    "files_of",
    "inside",
    "json_schema",
    "part",
    "read",
    "read_constants",
    "read_manifest",
    "record",
    "refuse_invalid_records",
    "sha256",
    "sha256_of",
    "sharing",
    "size",
    "validate_wiring",
    "validated",
    "write_constants",
    "write_goldens",
    "write_manifest",
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a bundle; ``record`` is its record in the manifest.

    ``task_inputs`` holds the inputs of tasks for which they differ (in width) from ``inputs``.
    """

    record: PartRecord
    path: Path
    scheme: SchemeRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task_inputs: Mapping[str, tuple[TensorSpec, ...]]

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return self.record.bytes

    @property
    def entries(self) -> Mapping[str, str]:
        """Entry of each task."""
        return self.record.entries

    def inputs_of(self, task: str) -> tuple[TensorSpec, ...]:
        """Inputs of a task's entry."""
        return self.task_inputs.get(task, self.inputs)

    def entry_of(self, task: str) -> str:
        """The task's entry; raises ``BundleError`` where the part has none."""
        if task not in self.entries:
            raise BundleError(f"{MANIFEST}: {self.name} has no entry for task {task!r}")
        return self.entries[task]

    @property
    def proved(self) -> tuple[str, ...]:
        """Tasks with goldens and verdicts: the first of each entry."""
        firsts = {entry: task for task, entry in reversed(list(self.entries.items()))}
        return tuple(task for task, entry in self.entries.items() if firsts[entry] == task)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk; ``schedules`` are the loop's tables by step count and strength."""

    folder: Path
    manifest: Manifest
    parts: tuple[Part, ...]
    schedules: Schedules

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """Its tasks."""
        return self.manifest.tasks

    def task(self, name: str) -> TaskRecord:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def proof(self) -> tuple[Verdict, ...]:
        """The verdicts that the export recorded."""
        return tuple(record.verdict() for record in self.manifest.proof)

    def part(self, name: str) -> Part:
        """The part of this name; raises ``BundleError`` where the bundle has none."""
        for part in self.parts:
            if part.name == name:
                return part
        there = ", ".join(part.name for part in self.parts)
        raise BundleError(f"{self.folder} has no {name}; it has: {there}")


# --------------------------------------------------------------------------------------- write


def record(folder: Path, path: str) -> FileRecord:
    """Size and hash of a file or folder of the bundle, for its manifest."""
    return FileRecord(path=path, bytes=size(folder / path), sha256=sha256(folder / path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and the model card ``README.md``.

    Raises ``BundleError`` for values that :func:`read_manifest` would refuse: ``model_copy`` does
    not validate what it changes.
    """
    text = json.dumps(manifest.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if len(text.encode()) > LIMIT:
        raise BundleError(
            f"{MANIFEST} would have more than {LIMIT:,} bytes: bake fewer step counts"
        )
    validated(Manifest, text)
    (folder / MANIFEST).write_text(text, "utf-8")
    (folder / "README.md").write_text(card(manifest), "utf-8")


# ---------------------------------------------------------------------------------------- read


def read(folder: Path) -> Bundle:
    """Read and check a bundle: schema, rules, paths inside the folder, no links, sizes, hashes.

    Whatever can be refused without reading files is refused before any is hashed; each is hashed
    once. Files that the manifest does not name are ignored and never opened, except inside the
    folder of a part or a tokenizer, where they change its hash. Raises ``BundleError``.
    """
    bundle = assemble(folder, read_manifest(folder))
    records = (*bundle.manifest.parts, *bundle.manifest.files)
    for each in records:
        _require_size(folder, each)
    for each in records:
        _require_hash(folder, each)
    return bundle


def assemble(folder: Path, manifest: Manifest) -> Bundle:
    """The bundle of a manifest, without hashing files: for those that this process has written."""
    schedules = require_references(manifest)
    return Bundle(
        folder=folder,
        manifest=manifest,
        parts=tuple(part(folder, each, manifest.scheme) for each in manifest.parts),
        schedules=schedules,
    )


def part(folder: Path, record: PartRecord, scheme: SchemeRecord | None = None) -> Part:
    """The part of a record, without hashing its files; ``scheme`` is for a record without one."""
    scheme = record.scheme or scheme
    if scheme is None:
        raise BundleError(f"{MANIFEST}: {record.name} has no scheme")
    return Part(
        record=record,
        path=inside(folder, record.path),
        scheme=scheme,
        inputs=tuple(tensor.spec() for tensor in record.inputs),
        outputs=tuple(tensor.spec() for tensor in record.outputs),
        task_inputs={
            task: tuple(tensor.spec() for tensor in tensors)
            for task, tensors in record.task_inputs.items()
        },
    )


def check_part(folder: Path, record: PartRecord) -> Part:
    """:func:`part`, after comparing the size and hash of its files."""
    checked = part(folder, record)
    _require_size(folder, checked.record)
    _require_hash(folder, checked.record)
    return checked


def _require_size(folder: Path, record: FileRecord | PartRecord) -> None:
    actual = size(inside(folder, record.path))
    if actual != record.bytes:
        raise BundleError(f"{record.path} has {actual} bytes, the manifest says {record.bytes}")


def _require_hash(folder: Path, record: FileRecord | PartRecord) -> None:
    if sha256(inside(folder, record.path)) != record.sha256:
        raise BundleError(f"{record.path}: sha256 differs from the manifest's")
