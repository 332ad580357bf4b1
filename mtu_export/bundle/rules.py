"""What JSON Schema cannot say of a manifest: the numbered rules of ``runtime/README.md``.

They need the manifest alone; no file is opened. Each function raises ``BundleError``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mtu_export.bundle.manifest import Manifest, PartRecord, TaskRecord
from mtu_export.bundle.paths import GOLDENS, MANIFEST, names_of
from mtu_export.spec import BundleError, Schedule
from mtu_export.spec.flow import (
    Call,
    Number,
    Output,
    OutputName,
    Picture,
    Source,
    Tensor,
    Tokens,
)
from mtu_export.spec.flow import require_order as require_flow_order

PIPELINE = "pipeline"
"""What verdicts on a whole flow have instead of a part's name, so that no part may have it."""
Schedules = Mapping[tuple[int, float | None], Schedule]
"""Tables by step count and strength."""

LARGEST_PART, LARGEST_GOLDENS, LARGEST_FILE = 64 * 10**9, 4 * 10**9, 256 * 10**6
"""Bytes of a part, of the goldens, and of any other file or folder of ``files``."""


def require_references(manifest: Manifest) -> Schedules:
    """Refuse duplicate names and dangling references; returns the loop's schedules."""
    _require_unique("part", (part.name for part in manifest.parts))
    _require_unique("task", (task.name for task in manifest.tasks))
    _require_unique("tokenizer", (tokenizer.path for tokenizer in manifest.tokenizers))
    _require_paths(manifest)
    _require_sizes(manifest)
    if any(part.name == PIPELINE for part in manifest.parts):
        raise BundleError(f"{MANIFEST}: parts: {PIPELINE!r} is no name of a part")
    for index, part in enumerate(manifest.parts):
        _require_entries(manifest, part, f"{MANIFEST}: parts[{index}]")
    parts = {part.name: part for part in manifest.parts}
    for index, task in enumerate(manifest.tasks):
        _require_flow(manifest, task, parts, f"{MANIFEST}: tasks[{index}].flow")
    return schedules(manifest)


def schedules(manifest: Manifest) -> Schedules:
    """The loop's coefficient tables; empty where there is no loop."""
    tables: dict[tuple[int, float | None], Schedule] = {}
    for index, record in enumerate(manifest.loop.schedules if manifest.loop else ()):
        where = f"{MANIFEST}: loop.schedules[{index}]"
        if (record.steps, record.strength) in tables:
            raise BundleError(f"{where}: these steps and strength are there twice")
        try:
            tables[record.steps, record.strength] = record.schedule()
        except BundleError as error:
            raise BundleError(f"{where}: {error}") from None
    return tables


def _require_unique(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise BundleError(f"{MANIFEST}: {what} {name[:80]!r} is there twice")


def _require_paths(manifest: Manifest) -> None:
    """Paths of parts and files are distinct and not nested, so that none is hashed twice."""
    files = [record.path for record in manifest.files]
    paths = [*(record.path for record in manifest.parts), *files]
    _require_unique("path", paths)
    for path in paths:
        names = names_of(path)
        for count in range(1, len(names)):
            outer = "/".join(names[:count])
            if outer in paths:
                raise BundleError(f"{MANIFEST}: path {path[:80]!r} lies within {outer[:80]!r}")
    named = [(f"parts.{part.name}.data", path) for part in manifest.parts for path in part.data]
    named += [("tokenizers", tokenizer.path) for tokenizer in manifest.tokenizers]
    for where, path in named:
        if path not in files:
            raise BundleError(f"{MANIFEST}: {where}: files has no hash of {path[:80]!r}")


def _require_sizes(manifest: Manifest) -> None:
    """No file is so large that its hash takes hours; a hole in a file costs nothing to write."""
    for index, part in enumerate(manifest.parts):
        _require_at_most(part.bytes, LARGEST_PART, f"parts[{index}]")
    for index, file in enumerate(manifest.files):
        most = LARGEST_GOLDENS if file.path == GOLDENS else LARGEST_FILE
        _require_at_most(file.bytes, most, f"files[{index}]")


def _require_at_most(size: int, most: int, where: str) -> None:
    if size > most:
        raise BundleError(f"{MANIFEST}: {where}.bytes: must be at most {most:,}, got {size:,}")


def _require_entries(manifest: Manifest, part: PartRecord, where: str) -> None:
    """A part has entries for the tasks that run it, and no other task in its mappings."""
    users = {task.name for task in manifest.tasks if part.name in task.flow.parts}
    if set(part.entries) != users or not users:
        raise BundleError(f"{where}.entries: must be those of the tasks that run {part.name}")
    for key, tasks in (
        ("task_inputs", part.task_inputs),
        ("cost.task_weight_bytes", part.cost.task_weight_bytes),
        ("witness", part.witness),
    ):
        if unknown := set(tasks) - users:
            raise BundleError(f"{where}.{key}: {min(unknown)[:80]!r} is no task of entries")
    names = [tensor.name for tensor in part.inputs]
    for task, inputs in part.task_inputs.items():
        if [tensor.name for tensor in inputs] != names:
            raise BundleError(f"{where}.task_inputs.{task}: names are not those of inputs")
    for key, tensors in (("inputs", part.inputs), ("outputs", part.outputs)):
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise BundleError(f"{where}.{key}: a name is there twice")


def _require_flow(
    manifest: Manifest, task: TaskRecord, parts: Mapping[str, PartRecord], where: str
) -> None:
    """A flow's calls are in order; their inputs, outputs and what they name are there.

    A part may be missing, where only some were exported: then the task does not run.
    """
    require_flow_order(task.flow, where)
    if task.guidance.kind != "none" and not task.flow.has_loop:
        raise BundleError(f"{where}: guidance needs a loop")
    for name, number in task.inputs.numbers.items():
        if not number.minimum <= number.default <= number.maximum:
            raise BundleError(f"{where}: number {name!r}: default is not minimum to maximum")
    if (task.strength is None) != (task.flow.start is None):
        raise BundleError(f"{where}: start and the task's strength come together")
    for index, call in enumerate(task.flow.calls):
        _require_call(manifest, task, call, parts, f"{where}.calls[{index}]")
    if task.flow.start is not None:
        _require_named(task, task.flow.start, f"{where}.start")
    results = (task.flow.prediction, task.flow.refined, task.flow.picture)
    sources = (s for call in task.flow.calls for s in call.sources() if isinstance(s, Output))
    starts = (task.flow.start,) if isinstance(task.flow.start, Output) else ()
    for output in (*filter(None, results), *sources, *starts):
        _require_output(task, output, parts, where)


def _require_call(
    manifest: Manifest,
    task: TaskRecord,
    call: Call,
    parts: Mapping[str, PartRecord],
    where: str,
) -> None:
    part = parts.get(call.part)
    if part is not None:
        expected = {tensor.name for tensor in part.inputs}
        for name in sorted(expected ^ set(call.inputs)):
            problem = "has no source" if name in expected else f"is no input of {part.name}"
            raise BundleError(f"{where}.inputs: {name[:80]!r} {problem}")
    tokenizers = {tokenizer.path for tokenizer in manifest.tokenizers}
    for source in call.sources():
        if isinstance(source, Tokens) and part is not None and source.tokenizer not in tokenizers:
            raise BundleError(f"{where}: {source.tokenizer[:80]!r} is no tokenizer")
        _require_named(task, source, where)


def _require_named(task: TaskRecord, source: Source, where: str) -> None:
    """A source names a picture, tensor, number or mask that the task takes."""
    inputs = task.inputs
    names = {"picture": inputs.pictures, "tensor": inputs.tensors, "number": inputs.numbers}
    if isinstance(source, Picture | Tensor | Number) and source.name not in names[source.kind]:
        raise BundleError(f"{where}: the task has no {source.kind} {source.name!r}")
    if isinstance(source, Picture) and source.outside is not None:
        mask = inputs.pictures.get(source.outside)
        if mask is None or mask.kind != "mask":
            raise BundleError(f"{where}: the task has no mask {source.outside!r}")


def _require_output(
    task: TaskRecord, output: Output | OutputName, parts: Mapping[str, PartRecord], where: str
) -> None:
    part = parts.get(task.flow.call(output.call).part)
    if part is not None and output.name not in {tensor.name for tensor in part.outputs}:
        raise BundleError(f"{where}: {part.name} has no output {output.name[:80]!r}")
