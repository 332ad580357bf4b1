"""Locate a checkpoint, tell its own files from links that leave it, and read its JSON."""

from __future__ import annotations

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any

from mtu_export.spec import (
    CheckpointError,
    MtuExportError,
    PlanError,
    ToolchainMissing,
    first_line,
)

EMBEDDED = Path(__file__).parent / "embedded" / "shapes"
SOURCE, REVISION = "_source", "_revision"
"""Keys of a config: the repository that the checkpoint was made of, and its commit."""
_JSON_LIMIT = 64_000_000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIGS = ("*.json", "*.txt", "LICENSE*")
_STEMS = ("diffusion_pytorch_model", "model")
_WEIGHTS = tuple(
    f"*/{stem}{shard}.safetensors" for stem in _STEMS for shard in ("", "-?????-of-?????")
)
_LEFT_OUT = ("safety_checker/*", "image_encoder/*")
"""Parts of pipelines with weights that nothing here reads."""


def locate(model: str | Path | None, revision: str | None = None) -> Path:
    """Folder of a checkpoint: a local path, a hub id (``owner/name``), or None: the embedded.

    ``revision`` is a branch, tag or commit of the hub, and nothing else has one.
    """
    if model is None:
        refuse_revision("the default checkpoint", revision)
        return EMBEDDED
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            refuse_revision(model, revision)
            return folder
        if folder.exists():
            raise CheckpointError(f"{str(folder)!r} is a file; a checkpoint is a folder")
    except (OSError, RuntimeError) as error:  # too long, or ~nobody
        raise CheckpointError(f"no checkpoint folder {str(model)[:200]!r}: {error}") from None
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"no checkpoint folder {str(model)!r}")
    owner, _, name = str(model).partition("/")
    if Path(owner).is_dir():  # a mistyped path, not a hub id
        raise CheckpointError(
            f"no checkpoint folder {str(model)!r}: the folder {owner!r} holds no {name!r}"
        )
    return _download(str(model), revision)


def refuse_revision(model: str | Path, revision: str | None) -> None:
    """Raise ``PlanError`` for a revision of what is not on the hub."""
    if revision is not None:
        raise PlanError(
            "--revision is for a checkpoint on the hub, OWNER/NAME; "
            f"{str(model)[:200]!r} is not on the hub"
        )


def source_of(model: str | Path | None, folder: Path) -> tuple[str, str | None]:
    """Name of a located checkpoint, and the commit of one on the hub, whose snapshots it names."""
    if model is None or Path(model).expanduser().exists():
        return folder.resolve().name, None
    return str(model), folder.name


def source_keys(model: str | Path, folder: Path) -> dict[str, str]:
    """What the config of a checkpoint made of one on the hub says of it: name and commit."""
    name, revision = source_of(model, folder)
    return {} if revision is None else {SOURCE: name, REVISION: revision}


def _download(hub_id: str, revision: str | None) -> Path:
    """The snapshot of a repository; of a pipeline, only the weights that are read here.

    Repositories of pipelines also hold whole models in one file, half-precision twins and safety
    checkers: several times the bytes of the pipeline.
    """
    from mtu_export.spec import telemetry

    telemetry.turn_off()
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ToolchainMissing("huggingface_hub", "all") from None
    try:
        described = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_CONFIGS]))
        pipeline = (described / "model_index.json").is_file() or any(
            described.glob("*/config.json")
        )
        weights = _WEIGHTS if pipeline else ("*.safetensors",)
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=[*_CONFIGS, *weights],
                ignore_patterns=[*_LEFT_OUT] if pipeline else None,
            )
        )
    except Exception as error:
        raise CheckpointError(
            f"{hub_id!r} is neither a folder nor reachable on the hub: {first_line(error)}"
        ) from None
    configs = {path.parent.name for path in folder.glob("*/config.json")}
    bare = [n for n in sorted(configs) if not any((folder / n).glob("*.safetensors"))]
    bare = [name for name in bare if f"{name}/*" not in _LEFT_OUT]
    if pipeline and bare:
        _refuse_variants(hub_id, bare[0], revision)
    return folder


def _refuse_variants(hub_id: str, part: str, revision: str | None) -> None:
    """Name the variants of a repository that has the weights of a part in variants alone."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(hub_id, revision=revision)
    except Exception:  # offline: what is missing is named when it is read
        return
    matches = (re.fullmatch(rf"{part}/[^.]+\.(\w[\w.-]*)\.safetensors", name) for name in names)
    variants = sorted({match[1].partition("-0")[0] for match in matches if match})
    if variants:
        raise CheckpointError(
            f"{hub_id!r} has the weights of {part}/ in the variant {', '.join(variants)} alone: "
            f"load it in diffusers with variant={variants[0]!r}, save it without one, and give "
            "that folder"
        )


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file holds what git-lfs leaves in place of one that was not downloaded."""
    return data.startswith(b"version https://git-lfs")


def lfs_message(path: Path) -> str:
    """What to say of such a file."""
    return f"{path} is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, stays in ``folder`` or the blobs of its hub snapshot."""
    roots = [folder.resolve()]
    repository = _hub_repository(roots[0])
    if repository is not None:
        roots.append(repository / "blobs")
    return any(root in path.resolve().parents for root in roots)


def _hub_repository(folder: Path) -> Path | None:
    """The hub cache's folder of a repository that ``folder`` is a snapshot of, or lies in.

    Its layout is ``models--OWNER--NAME/snapshots/REVISION/``, with links to ``../../blobs/``.
    """
    for snapshot in (folder, *folder.parents):
        if snapshot.parent.name == "snapshots":
            repository = snapshot.parent.parent
            named = repository.name.startswith(("models--", "datasets--"))
            return repository if named and (repository / "blobs").is_dir() else None
    return None


def licences(folder: Path) -> list[Path]:
    """The licence files of a checkpoint; a link that leaves it is left out."""
    files = [path for path in sorted(folder.glob("LICENSE*")) if path.is_file()]
    return [path for path in files if stays_inside(path, folder)]


def read_json(
    path: Path, *, limit: int = _JSON_LIMIT, error: type[MtuExportError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes, by the rules of :func:`strict_json`.

    Raises ``error`` with the file's name, also for the pointer that git-lfs leaves in its place.
    """
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path} is not a file")
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes, more than {limit:,}")
        data = path.read_bytes()
        if is_lfs_pointer(data):
            raise error(lfs_message(path))
        value = strict_json(data)
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read as JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{path} does not hold a JSON object")
    return value


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text that every parser reads alike.

    Raises ``ValueError`` for a repeated key, a number that no double holds (``NaN``, ``1e999``),
    half a surrogate pair, bytes that are not UTF-8, and nesting beyond Python's stack.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(
            decoded,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("objects and lists are nested too deep") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite double")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, entry in pairs:
        if name in value:
            raise ValueError(f"key {name[:80]!r} appears twice")
        value[name] = entry
    return value
