"""What JSON Schema cannot say of a manifest: the numbered rules of ``runtime/README.md``.

They need the manifest alone; no file is opened. Each function raises ``BundleError``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mtu_export.bundle.manifest import Manifest, PartRecord
from mtu_export.bundle.paths import GOLDENS, MANIFEST, names_of
from mtu_export.spec import BundleError, Schedule

LARGEST_PART, LARGEST_GOLDENS, LARGEST_FILE = 64 * 10**9, 4 * 10**9, 256 * 10**6
"""Bytes of a part, of the goldens, and of any other file or folder of ``files``."""


def require_references(manifest: Manifest) -> dict[int, Schedule]:
    """Refuse duplicate names and dangling references; returns the loop's schedules."""
    _require_unique("component", (part.component for part in manifest.parts))
    _require_unique("task", (task.name for task in manifest.tasks))
    _require_unique("tokenizer", (tokenizer.path for tokenizer in manifest.tokenizers))
    _require_paths(manifest)
    _require_sizes(manifest)
    if manifest.image.range != (-1, 1):
        raise BundleError(f"{MANIFEST}: image.range: must be [-1, 1]")
    for index, part in enumerate(manifest.parts):
        _require_entries(manifest, part, f"{MANIFEST}: parts[{index}]")
    _require_text(manifest)
    return schedules(manifest)


def schedules(manifest: Manifest) -> dict[int, Schedule]:
    """The loop's coefficient tables by number of steps; empty where there is no loop."""
    tables = {}
    for steps, record in manifest.loop.schedules.items() if manifest.loop else ():
        try:
            tables[int(steps)] = record.schedule()
        except BundleError as error:
            raise BundleError(f"{MANIFEST}: loop.schedules.{steps}: {error}") from None
    return tables


def _require_unique(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise BundleError(f"{MANIFEST}: {what} {name[:80]!r} appears twice")


def _require_paths(manifest: Manifest) -> None:
    """Paths of parts and files are distinct and not nested, so that none is hashed twice."""
    paths = [record.path for record in (*manifest.parts, *manifest.files)]
    _require_unique("path", paths)
    for path in paths:
        names = names_of(path)
        for count in range(1, len(names)):
            outer = "/".join(names[:count])
            if outer in paths:
                raise BundleError(f"{MANIFEST}: path {path[:80]!r} lies within {outer[:80]!r}")


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
    """A part has entries for the tasks that need it, and no other task in its mappings."""
    users = {task.name for task in manifest.tasks if part.component in task.parts}
    if set(part.entries) != users or not users:
        raise BundleError(f"{where}.entries: must be those of the tasks that need {part.component}")
    for key, tasks in (
        ("task_inputs", part.task_inputs),
        ("cost.task_weight_bytes", part.cost.task_weight_bytes),
        ("witness", part.witness),
    ):
        if unknown := set(tasks) - users:
            raise BundleError(f"{where}.{key}: {min(unknown)[:80]!r} is not a task of entries")
    names = [tensor.name for tensor in part.inputs]
    for task, inputs in part.task_inputs.items():
        if [tensor.name for tensor in inputs] != names:
            raise BundleError(f"{where}.task_inputs.{task}: names are not those of inputs")


def _require_text(manifest: Manifest) -> None:
    """The UNet's text inputs come from outputs of encoders whose tokenizers have a hash."""
    if manifest.text is None:
        return
    where, tokenizers = f"{MANIFEST}: text", manifest.text.tokenizers
    outputs = {(part.component, spec.name) for part in manifest.parts for spec in part.outputs}
    for name, sources in manifest.text.inputs.items():
        for source in sources:
            is_output = (source.component, source.output) in outputs
            if not is_output or source.component not in tokenizers:
                raise BundleError(
                    f"{where}.inputs.{name[:80]}: {source.output[:80]!r} of {source.component} is "
                    "not an output of a text encoder"
                )
    paths = {record.path for record in manifest.files}
    for component, path in tokenizers.items():
        if path not in paths:
            raise BundleError(f"{where}.tokenizers.{component[:80]}: files has no hash of {path!r}")
