"""What an export leaves on disk: manifest, hashes, goldens. Format: bundle.md.

A bundle from somewhere else is hostile until :func:`read` has checked it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from mtu_export.bundle.card import card, sharing
from mtu_export.bundle.compatibility import check as check_wiring
from mtu_export.bundle.compatibility import check_text
from mtu_export.bundle.goldens import (
    CASES,
    CONSTANTS,
    GOLDENS,
    read_constants,
    read_goldens,
    read_loop,
    write_constants,
    write_goldens,
)
from mtu_export.bundle.hashes import files_of, sha256, sha256_of, size
from mtu_export.bundle.jsonschema import json_schema
from mtu_export.bundle.paths import MANIFEST, inside
from mtu_export.bundle.schema import (
    COST,
    COUNTS,
    KEYS,
    LATER,
    LOOP,
    NESTED,
    ROWS,
    SCHEMA,
    TENSOR,
    check_task,
    typed,
)
from mtu_export.spec import COMPONENTS, BundleError, Schedule, Task, TensorSpec, Verdict, shown

__all__ = [
    "CASES",
    "CONSTANTS",
    "GOLDENS",
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "Part",
    "check_wiring",
    "files_of",
    "inside",
    "json_schema",
    "part",
    "read",
    "read_constants",
    "read_goldens",
    "read_loop",
    "schedules",
    "sha256",
    "sha256_of",
    "sharing",
    "size",
    "write_constants",
    "write_goldens",
    "write_manifest",
]

_MANIFEST_LIMIT = 64_000_000
_LARGEST_FACTOR = 1e6
_MOST_SIDES = 8


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a bundle, its files checked against the manifest.

    ``task_inputs`` has the tasks whose inputs are not ``inputs``: they differ in width.
    """

    component: str
    path: Path
    bytes: int
    entries: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scheme: Mapping[str, Any]
    task_inputs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)

    def inputs_of(self, task: str) -> tuple[TensorSpec, ...]:
        """Inputs of a task's entry."""
        return self.task_inputs.get(task, self.inputs)

    def entry_of(self, task: str) -> str:
        """The task's entry; raises ``BundleError`` where the part has none."""
        if task not in self.entries:
            raise BundleError(f"{MANIFEST}: {self.component} has no entry for task {task!r}")
        return self.entries[task]

    @property
    def proved(self) -> tuple[str, ...]:
        """Tasks that goldens and verdicts are under: each of the UNet's, else an entry's first."""
        if self.component == "unet":
            return tuple(self.entries)
        firsts = {entry: task for task, entry in reversed(list(self.entries.items()))}
        return tuple(task for task, entry in self.entries.items() if firsts[entry] == task)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk. ``manifest`` is data as bundle.md defines it."""

    folder: Path
    manifest: Mapping[str, Any]
    parts: tuple[Part, ...]
    tasks: tuple[Task, ...]

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(row.bytes for row in self.parts)

    @property
    def proof(self) -> tuple[Verdict, ...]:
        """The verdicts that the export recorded."""
        return tuple(map(Verdict.from_json, self.manifest["proof"]))

    def part(self, component: str) -> Part:
        """The part of this name; raises ``BundleError`` where the bundle has none."""
        for row in self.parts:
            if row.component == component:
                return row
        there = ", ".join(row.component for row in self.parts)
        raise BundleError(f"{self.folder} has no {component}; it has: {there}")

    def needs(self, task: str) -> tuple[str, ...]:
        """The components that a task's loop needs, in order."""
        return next(tuple(row["parts"]) for row in self.manifest["tasks"] if row["name"] == task)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` and the model card ``README.md``."""
    text = json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8")
    (folder / "README.md").write_text(card(manifest), "utf-8")


# ---------------------------------------------------------------------------------------- read


def read(folder: Path) -> Bundle:
    """Read and check a bundle: schema, paths inside the folder, no links, sizes and hashes.

    A file that the manifest does not name is left alone: nothing of ours ever opens it. Inside the
    folder of a part or a tokenizer it changes the hash, and is refused. Raises ``BundleError``.
    """
    manifest = _manifest(folder)
    typed(manifest, KEYS, MANIFEST)
    typed(manifest, {k: v for k, v in LATER.items() if k in manifest}, MANIFEST)
    for key, keys in NESTED.items():
        typed(manifest[key], keys, f"{MANIFEST}: {key}")
    for key, keys in ROWS.items():
        for index, row in enumerate(manifest.get(key, ())):
            typed(row, keys, f"{MANIFEST}: {key}[{index}]")
    for key, name in COUNTS:
        if manifest[key][name] < 1:
            raise BundleError(f"{MANIFEST}: {key}: {name} must be positive")
    scaling = manifest["latent"]["scaling_factor"]
    if not 1 / _LARGEST_FACTOR <= scaling <= _LARGEST_FACTOR:
        raise BundleError(f"{MANIFEST}: latent: scaling_factor {scaling:g} is none")
    tasks = tuple(check_task(row, i, MANIFEST) for i, row in enumerate(manifest["tasks"]))
    parts = tuple(
        part(folder, row, manifest["scheme"], f"{MANIFEST}: parts[{i}]")
        for i, row in enumerate(manifest["parts"])
    )
    _check_names(manifest, parts)
    outputs = {(row.component, spec.name) for row in parts for spec in row.outputs}
    for row in manifest.get("files", ()):
        _check_file(folder, row)
    check_text(manifest, outputs)
    schedules(manifest)
    return Bundle(folder=folder, manifest=manifest, parts=parts, tasks=tasks)


def schedules(manifest: Mapping[str, Any]) -> dict[int, Schedule]:
    """The loop's coefficient tables by number of steps; empty where there is no loop."""
    loop = manifest.get("loop")
    if loop is None:
        return {}
    typed(loop, LOOP, f"{MANIFEST}: loop")
    found = {}
    for steps, row in loop["schedules"].items():
        if not re.fullmatch(r"[1-9]\d{0,4}", steps):
            raise BundleError(f"{MANIFEST}: loop: {steps[:20]!r} is no number of steps")
        found[int(steps)] = Schedule.from_json(row, f"{MANIFEST}: loop: {steps} steps")
    return found


def _check_names(manifest: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Refuse parts that are there twice or are none, and tasks without a part."""
    names = [row.component for row in parts]
    for name in names:
        if name not in COMPONENTS:
            raise BundleError(
                f"{MANIFEST}: unknown component {name[:80]!r}; legal: {', '.join(COMPONENTS)}"
            )
        if names.count(name) > 1:
            raise BundleError(f"{MANIFEST}: component {name!r} is there twice")
    tasks = [row["name"] for row in manifest["tasks"]]
    if len(set(tasks)) < len(tasks):
        raise BundleError(f"{MANIFEST}: a task is there twice")
    needed = {row["name"]: row["parts"] for row in manifest["tasks"]}
    for task, components in needed.items():
        if not all(isinstance(name, str) for name in components):
            raise BundleError(f"{MANIFEST}: task {task!r}: parts must be names")
    for found in parts:
        wanted = {task for task, components in needed.items() if found.component in components}
        if set(found.entries) != wanted or not wanted:
            raise BundleError(f"{MANIFEST}: parts and tasks do not name the same entries")
    if not parts:
        raise BundleError(f"{MANIFEST}: parts and tasks do not name the same entries: no part")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not folder.is_dir() or not path.is_file():
            raise BundleError(f"{str(folder)!r} is not a bundle: no {MANIFEST}")
        if path.is_symlink() or path.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{path} is a link or too large")
        manifest = json.loads(
            path.read_text("utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_refuse_twins,
        )
        json.dumps(manifest, ensure_ascii=False).encode("utf-8")  # a lone surrogate is no text
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} does not hold a JSON object")
    version = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", str(manifest.get("schema_version")))
    if version is None:
        raise BundleError(f"{path}: schema_version is missing or malformed")
    if int(version[1]) != SCHEMA[0]:
        raise BundleError(
            f"{path}: schema {version[0]} is not readable; this mtu-export reads {SCHEMA[0]}.x"
        )
    return manifest


def _finite(text: str) -> float:
    found = float(text)
    if not isfinite(found):
        raise ValueError(f"{text[:40]} is no JSON, or beyond a double")
    return found


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name[:80]!r} is there twice")
        found[name] = value
    return found


def part(
    folder: Path,
    row: Mapping[str, Any],
    scheme: Mapping[str, Any] | None = None,
    where: str = MANIFEST,
) -> Part:
    """The part of one row of the manifest, checked; ``scheme`` is that of a row without its own."""
    typed(row, ROWS["parts"], where)
    path, found = _check_file(folder, row)
    entries, scheme = row["entries"], row.get("scheme", scheme)
    typed(scheme, NESTED["scheme"], f"{where}.scheme")
    assert scheme is not None
    typed(row["cost"], COST, f"{where}.cost")
    _check_weights(row, f"{where}.cost")
    if not all(isinstance(entry, str) and 0 < len(entry) < 256 for entry in entries.values()):
        raise BundleError(f"{where}: entries must map tasks to names")
    return Part(
        component=row["component"],
        path=path,
        bytes=found,
        entries=entries,
        inputs=_specs(row["inputs"], f"{where}.inputs"),
        outputs=_specs(row["outputs"], f"{where}.outputs"),
        scheme=scheme,
        task_inputs=_task_inputs(row, where),
    )


def _check_weights(row: Mapping[str, Any], where: str) -> None:
    """Refuse weights by task that are no counts of the part's own tasks."""
    if "task_weight_bytes" in row["cost"]:
        typed(row["cost"], {"shared_weight_bytes": int, "task_weight_bytes": dict}, where)
        own = row["cost"]["task_weight_bytes"]
        typed(own, dict.fromkeys(own, int), f"{where}.task_weight_bytes")
        if set(own) - set(row["entries"]) or min(own.values(), default=0) < 0:
            raise BundleError(f"{where}: task_weight_bytes must be counts of the tasks of entries")


def _task_inputs(row: Mapping[str, Any], where: str) -> dict[str, tuple[TensorSpec, ...]]:
    """Inputs of the tasks that have other ones, under the names of the part's own inputs."""
    found = {}
    names = [spec["name"] for spec in row["inputs"]]
    typed(row, {"task_inputs": dict} if "task_inputs" in row else {}, where)
    for task, specs in row.get("task_inputs", {}).items():
        place = f"{where}.task_inputs: {task[:80]!r}"
        if task not in row["entries"] or not isinstance(specs, list):
            raise BundleError(f"{place} must be a list, and the task one of entries")
        found[task] = _specs(specs, place)
        if [spec.name for spec in found[task]] != names:
            raise BundleError(f"{place}: names are not those of inputs")
    return found


def _check_file(folder: Path, row: Mapping[str, Any]) -> tuple[Path, int]:
    """Path and bytes of a file or folder that a row names; its size and hash are as it says."""
    path = inside(folder, row["path"])
    found = size(path)
    if found != row["bytes"]:
        raise BundleError(f"{row['path']} has {found} bytes, the manifest says {row['bytes']}")
    if sha256(path) != row["sha256"]:
        raise BundleError(f"{row['path']}: sha256 differs from the manifest's")
    return path, found


def _specs(rows: Any, where: str) -> tuple[TensorSpec, ...]:
    found = []
    for row in rows:
        typed(row, TENSOR, where)
        shape = row["shape"]
        if len(shape) > _MOST_SIDES or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise BundleError(f"{where}: shape {shown(shape)} is not static")
        found.append(TensorSpec(name=row["name"], shape=tuple(row["shape"]), dtype=row["dtype"]))
    return tuple(found)
