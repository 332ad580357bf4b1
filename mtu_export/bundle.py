"""What an export leaves on disk: manifest, hashes, goldens. Format: bundle.md, schema 1.0.

A bundle from somewhere else is hostile until :func:`read` has checked it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mtu_export.spec import Arrays, BundleError, CheckpointError, Task, TensorSpec, Verdict

SCHEMA = (1, 0)
MANIFEST = "manifest.json"
GOLDENS = "goldens.safetensors"
CASES = 3
"""Golden cases of a part and task, one a timestep."""
_MANIFEST_LIMIT = 64_000_000
_CHUNK = 1 << 20
_Types = type | tuple[type, ...]
_KEYS: Mapping[str, _Types] = {
    "schema_version": str,
    "name": str,
    "created": str,
    "versions": dict,
    "source": dict,
    "target": str,
    "options": dict,
    "scheme": dict,
    "image": dict,
    "tasks": list,
    "parts": list,
    "tokenizers": list,
    "latent": dict,
    "mask": dict,
    "proof": list,
}
_NESTED: Mapping[str, Mapping[str, _Types]] = {
    "source": {"name": str, "family": str, "sha256": str, "model_config": dict},
    "scheme": {"name": str, "weights": dict, "activations": str, "kept_float": list},
    "image": {"height": int, "width": int},
    "latent": {"channels": int, "factor": int, "scaling_factor": (int, float)},
    "mask": {"threshold": (int, float), "resize": str, "masked_image": str},
}
_COUNTS = (("image", "height"), ("image", "width"), ("latent", "channels"), ("latent", "factor"))
_TASK_KEYS: Mapping[str, _Types] = {
    "name": str,
    "conditioning": list,
    "guidance": dict,
    "steps": int,
    "parts": list,
    "entry": str,
}
_COST_KEYS: Mapping[str, _Types] = {
    "parameters": int,
    "flops_conv_linear": int,
    "flops_total": int,
    "weight_bytes": int,
}
_PROOF_KEYS: Mapping[str, _Types] = {
    "component": str,
    "task": str,
    "rung": str,
    "psnr_db": (int, float, type(None)),
    "max_abs": (int, float, type(None)),
    "floor_db": (int, float),
    "runner": (str, type(None)),
    "passed": (bool, type(None)),
    "reason": (str, type(None)),
}
_PART_KEYS: Mapping[str, _Types] = {
    "component": str,
    "path": str,
    "bytes": int,
    "sha256": str,
    "entries": dict,
    "inputs": list,
    "outputs": list,
    "cost": dict,
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a bundle, its files checked against the manifest."""

    component: str
    path: Path
    bytes: int
    entries: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk. ``manifest`` is data as bundle.md defines it."""

    folder: Path
    manifest: Mapping[str, Any]
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def proof(self) -> tuple[Verdict, ...]:
        """The verdicts that the export recorded; keys of a newer minor schema are left out."""
        names = [row.name for row in fields(Verdict)]
        return tuple(Verdict(**{n: row[n] for n in names}) for row in self.manifest["proof"])


# -------------------------------------------------------------------------------------- hashes


def files_of(path: Path) -> list[Path]:
    """The files of a folder, sorted by relative POSIX path, or the file itself.

    Raises ``BundleError`` for a link or anything else that is no plain file.
    """
    if path.is_symlink():
        raise BundleError(f"{path} is a link: refused")
    if path.is_file():
        return [path]
    found = []
    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BundleError(f"{entry} is a link or a special file: refused")
        if entry.is_file():
            found.append(entry)
    return sorted(found, key=lambda entry: entry.relative_to(path).as_posix())


def sha256(path: Path) -> str:
    """Hash of a file; of a folder, that of its files by relative path (:func:`sha256_of`)."""
    if path.is_dir():
        return sha256_of({f.relative_to(path).as_posix(): f for f in files_of(path)})
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(files: Mapping[str, Path]) -> str:
    """Hash of the lines ``<sha256 of the file>  <relative path>\\n``, sorted by path."""
    text = "".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


# --------------------------------------------------------------------------------------- write


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` and the model card ``README.md``."""
    text = json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8")
    (folder / "README.md").write_text(_card(manifest), "utf-8")


def write_goldens(folder: Path, rows: Mapping[str, Sequence[tuple[Arrays, Arrays]]]) -> None:
    """Write seeded inputs and reference outputs; ``rows`` maps ``component/task`` to cases."""
    from safetensors.numpy import save_file

    found = {
        f"{key}/{number}/{name}": np.ascontiguousarray(value)
        for key, cases in rows.items()
        for number, case in enumerate(cases)
        for arrays in case
        for name, value in arrays.items()
    }
    save_file(found, folder / GOLDENS)


def _card(manifest: Mapping[str, Any]) -> str:
    """A model card: what is inside, how near it is to PyTorch, where it comes from."""
    names = ", ".join(task["name"] for task in manifest["tasks"])
    rows = "\n".join(
        f"| {part['component']} | `{part['path']}` | {part['bytes'] / 1e6:.2f} MB "
        f"| {part['cost']['parameters'] / 1e6:.1f} M |"
        for part in manifest["parts"]
    )
    proof = "\n".join(f"| {_proof_row(row)} |" for row in manifest["proof"])
    image, source = manifest["image"], manifest["source"]
    return (
        f"# {manifest['name']}\n\n"
        f"Task {names} of `{source['name']}` for {manifest['target']}, "
        f"scheme {manifest['scheme']['name']}, {image['height']} x {image['width']} pixels. "
        f"Made by mtu-export {manifest['versions']['mtu_export']}; `manifest.json` is the "
        "contract.\n\n"
        "| component | file | size | parameters |\n|---|---|---|---|\n"
        f"{rows}\n\n"
        "## Proof against PyTorch\n\n"
        "| component | task | rung | PSNR | floor | runner |\n|---|---|---|---|---|---|\n"
        f"{proof}\n\n"
        f"Source sha256: `{source['sha256']}`\n"
    )


def _proof_row(row: Mapping[str, Any]) -> str:
    db = "not run" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
    runner = row["runner"] or row["reason"]
    return " | ".join(
        (row["component"], row["task"], row["rung"], db, f"{row['floor_db']:g} dB", runner)
    )


# ---------------------------------------------------------------------------------------- read


def read(folder: Path) -> Bundle:
    """Read and check a bundle: schema, paths inside the folder, no links, sizes and hashes."""
    manifest = _manifest(folder)
    _typed(manifest, _KEYS, MANIFEST)
    for key, rows in _NESTED.items():
        _typed(manifest[key], rows, f"{MANIFEST}: {key}")
    for key, rows in (("tasks", _TASK_KEYS), ("proof", _PROOF_KEYS)):
        for index, row in enumerate(manifest[key]):
            _typed(row, rows, f"{MANIFEST}: {key}[{index}]")
    for key, name in _COUNTS:
        if manifest[key][name] < 1:
            raise BundleError(f"{MANIFEST}: {key}: {name} must be positive")
    for index, row in enumerate(manifest["tasks"]):
        _task(row, index)
    parts = tuple(_part(folder, row, i) for i, row in enumerate(manifest["parts"]))
    names = {task["name"] for task in manifest["tasks"]}
    if not parts or not names or any(set(part.entries) != names for part in parts):
        raise BundleError(f"{MANIFEST}: parts and tasks do not name the same entries")
    return Bundle(folder=folder, manifest=manifest, parts=parts)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not folder.is_dir() or not path.is_file():
            raise BundleError(f"{str(folder)!r} is not a bundle: no {MANIFEST}")
        if path.is_symlink() or path.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{path} is a link or too large")
        manifest = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
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


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _typed(found: Any, keys: Mapping[str, _Types], where: str) -> None:
    """Refuse an object that lacks a key or has a value of another type or beyond a float."""
    if not isinstance(found, dict):
        raise BundleError(f"{where} is not an object")
    for key, kind in keys.items():
        if key not in found:
            raise BundleError(f"{where}: key {key!r} is missing")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        value = found[key]
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong or (isinstance(value, (int, float)) and not abs(value) < 1e18):
            names = " or ".join(each.__name__ for each in kinds)
            raise BundleError(f"{where}: {key} must be {names}")


def _task(row: Mapping[str, Any], index: int) -> None:
    """Refuse a task that no checkpoint could have; keys of a newer minor schema are left out."""

    def known(found: Any, *keys: str) -> Any:
        return {k: found[k] for k in keys if k in found} if isinstance(found, dict) else found

    entries = [known(entry, "kind", "channels", "scaled") for entry in row["conditioning"]]
    guidance = known(row["guidance"], "kind", "text", "image")
    own = {**known(row, "name", "steps", "prompt"), "conditioning": entries, "guidance": guidance}
    try:
        Task.from_json(own, index)
    except CheckpointError as error:
        raise BundleError(f"{MANIFEST}: {error}") from None


def inside(folder: Path, relative: str) -> Path:
    """A path of the manifest, refused where it leaves the bundle or crosses a link."""
    pure = PurePosixPath(relative)
    odd = "\\" in relative or ":" in relative or "\0" in relative or pure.is_absolute()
    if odd or not pure.parts or ".." in pure.parts:
        raise BundleError(f"{MANIFEST}: path {relative!r} leaves the bundle")
    path = folder
    if len(relative) > 255:
        raise BundleError(f"{MANIFEST}: a path has {len(relative)} characters")
    try:
        for name in pure.parts:
            path = path / name
            if path.is_symlink():
                raise BundleError(f"{MANIFEST}: path {relative!r} goes through a link")
        if not path.exists():
            raise BundleError(f"{MANIFEST}: {relative!r} is missing from the bundle")
    except OSError as error:
        raise BundleError(f"{MANIFEST}: path {relative!r}: {error.strerror}") from None
    return path


def _part(folder: Path, row: Any, index: int) -> Part:
    where = f"{MANIFEST}: parts[{index}]"
    _typed(row, _PART_KEYS, where)
    path = inside(folder, row["path"])
    found = size(path)
    if found != row["bytes"]:
        raise BundleError(f"{row['path']} has {found} bytes, the manifest says {row['bytes']}")
    if sha256(path) != row["sha256"]:
        raise BundleError(f"{row['path']}: sha256 differs from the manifest's")
    entries = row["entries"]
    _typed(row["cost"], _COST_KEYS, f"{where}.cost")
    if not all(isinstance(entry, str) and 0 < len(entry) < 256 for entry in entries.values()):
        raise BundleError(f"{where}: entries must map tasks to names")
    return Part(
        component=row["component"],
        path=path,
        bytes=found,
        entries=entries,
        inputs=_specs(row["inputs"], f"{where}.inputs"),
        outputs=_specs(row["outputs"], f"{where}.outputs"),
    )


def _specs(rows: Any, where: str) -> tuple[TensorSpec, ...]:
    found = []
    for row in rows:
        _typed(row, {"name": str, "shape": list, "dtype": str}, where)
        if not all(isinstance(n, int) and 0 < n < 2**31 for n in row["shape"]):
            raise BundleError(f"{where}: shape {row['shape']} is not static")
        found.append(TensorSpec(name=row["name"], shape=tuple(row["shape"]), dtype=row["dtype"]))
    return tuple(found)


def read_goldens(bundle: Bundle) -> dict[str, list[tuple[Arrays, Arrays]]]:
    """Goldens by ``component/task``: cases of inputs and outputs."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    outputs = {(part.component, spec.name) for part in bundle.parts for spec in part.outputs}
    try:
        rows = load_file(inside(bundle.folder, GOLDENS))
    except (SafetensorError, OSError, ValueError, AttributeError, KeyError) as error:
        raise BundleError(f"{GOLDENS} is damaged: {error}") from None
    cases: dict[tuple[str, str], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for name in sorted(rows):
        names = name.split("/")
        if len(names) != 4:
            raise BundleError(f"{GOLDENS}: unknown tensor {name!r}")
        component, task, case, tensor = names
        if rows[name].dtype != np.float32 or not np.isfinite(rows[name]).all():
            raise BundleError(f"{GOLDENS}: tensor {name!r} is not finite float32")
        pair = cases.setdefault((f"{component}/{task}", case), ({}, {}))
        pair[(component, tensor) in outputs][tensor] = rows[name]
    found: dict[str, list[tuple[Arrays, Arrays]]] = {}
    for (key, _), pair in cases.items():
        found.setdefault(key, []).append(pair)
    return found
