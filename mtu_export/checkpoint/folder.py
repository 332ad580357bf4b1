"""Locate a checkpoint, tell its own files from links that leave it, and read its JSON."""

from __future__ import annotations

import json
import re
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from mtu_export.checkpoint.variants import (
    STEMS,
    variant_patterns,
    variants,
)
from mtu_export.checkpoint.view import Document, Entry, Folder, children, sources
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
_LONGEST_REF = 200
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIGS = ("*.json", "*.txt", "LICENSE*")
_WEIGHTS = tuple(
    f"*/{stem}{shard}.safetensors" for stem in STEMS for shard in ("", "-?????-of-?????")
)
_LEFT_OUT = ("safety_checker/*", "image_encoder/*")
"""Parts of pipelines with weights that nothing here reads."""


def locate(
    model: str | Path | None, revision: str | None = None, variant: str | None = None
) -> Path:
    """Folder of a checkpoint: a local path, a hub id (``owner/name``), or None: the embedded.

    Of a hub's cache (``models--OWNER--NAME``) it is the snapshot of the revision. ``revision`` is a
    branch, tag or commit of the hub, and nothing else has one; ``variant`` is that of the weights
    to fetch. Raises ``CheckpointError`` for a file, see ``models.sources.open``.
    """
    place = place_of(model, revision, variant)
    if not place.is_dir():
        raise CheckpointError(
            f"{str(place)!r} is a file; a checkpoint is a folder, which `upcycle` makes of a "
            "model in one file"
        )
    return place


def place_of(
    model: str | Path | None, revision: str | None = None, variant: str | None = None
) -> Path:
    """As :func:`locate`; a model in one file is that file."""
    if model is None:
        refuse_revision("the default checkpoint", revision)
        return EMBEDDED
    try:
        place = Path(model).expanduser()
        if place.is_dir() and _is_hub_cache(place):
            return _snapshot(place, revision)
        if place.exists():
            refuse_revision(model, revision)
            return place
    except (OSError, RuntimeError) as error:  # too long, or ~nobody
        raise CheckpointError(f"no checkpoint folder {str(model)[:200]!r}: {error}") from None
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"no checkpoint folder {str(model)!r}")
    owner, _, name = str(model).partition("/")
    if Path(owner).is_dir():  # a mistyped path, not a hub id
        raise CheckpointError(
            f"no checkpoint folder {str(model)!r}: the folder {owner!r} holds no {name!r}"
        )
    return _download(str(model), revision, variant)


def _is_hub_cache(folder: Path) -> bool:
    return folder.resolve().name.startswith("models--") and (folder / "snapshots").is_dir()


def _snapshot(cache: Path, revision: str | None) -> Path:
    """The snapshot of a revision (a branch, tag or commit) in a hub's cache; ``main`` for None."""
    name = revision or "main"
    snapshots = {
        path.name: path for path in sorted((cache / "snapshots").iterdir()) if path.is_dir()
    }
    refs = {
        path.relative_to(cache / "refs").as_posix(): path.read_text("utf-8").strip()
        for path in sorted((cache / "refs").rglob("*"))
        if path.is_file() and path.stat().st_size < _LONGEST_REF
    }
    commit = refs.get(name, name)
    if commit not in snapshots and revision is None and len(snapshots) == 1:
        (commit,) = snapshots
    if commit not in snapshots:
        able = ", ".join([*refs, *snapshots][:6]) or "none"
        raise CheckpointError(f"{cache} has no snapshot of the revision {name[:80]!r}: {able}")
    return snapshots[commit]


def refuse_revision(model: str | Path, revision: str | None) -> None:
    """Raise ``PlanError`` for a revision of what is not on the hub."""
    if revision is not None:
        raise PlanError(
            "--revision is for a checkpoint on the hub, OWNER/NAME; "
            f"{str(model)[:200]!r} is not on the hub"
        )


def source_of(model: str | Path | None, folder: Folder) -> tuple[str, str | None]:
    """Name of a located checkpoint, and the commit of one on the hub, whose snapshots it names."""
    place = next(iter(sources(folder)), None)
    if place is None:
        return folder.name, None
    cached = _hub_repository(place.resolve()) if place.is_dir() else None
    if cached is not None and cached.name.startswith("models--"):
        return cached.name.removeprefix("models--").replace("--", "/"), place.resolve().name
    if model is None or Path(model).expanduser().exists():
        return place.resolve().name, None
    return str(model), place.name


def source_keys(model: str | Path, folder: Folder) -> dict[str, str]:
    """What the config of a checkpoint made of one on the hub says of it: name and commit."""
    name, revision = source_of(model, folder)
    return {} if revision is None else {SOURCE: name, REVISION: revision}


def _download(hub_id: str, revision: str | None, variant: str | None) -> Path:
    """The snapshot of a repository; of a pipeline, only the weights that are read here.

    Repositories of pipelines also hold whole models in one file, variants and safety checkers:
    several times the bytes of the pipeline.
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
        if pipeline and variant is not None:
            weights = _variant_weights(hub_id, revision, variant)
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


def _variant_weights(hub_id: str, revision: str | None, variant: str) -> tuple[str, ...]:
    """Patterns of the weights of a variant, and of the plain ones of parts without it."""
    from huggingface_hub import list_repo_files

    wanted = variant_patterns(variant)
    names = [PurePosixPath(name) for name in list_repo_files(hub_id, revision=revision)]
    able = {str(name.parent) for name in names if any(name.match(each) for each in wanted)}
    plain = {str(n.parent) for n in names if any(n.match(each) for each in _WEIGHTS)} - able
    return (*wanted, *(each.replace("*", part, 1) for part in sorted(plain) for each in _WEIGHTS))


def _refuse_variants(hub_id: str, part: str, revision: str | None) -> None:
    """Name the variants of a repository that has the weights of a part in variants alone."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(hub_id, revision=revision)
    except Exception:  # offline: what is missing is named when it is read
        return
    files = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    able = sorted({variant for stem in STEMS for variant in variants(files, stem)})
    if able:
        raise CheckpointError(
            f"{hub_id!r} has the weights of {part}/ in the variant {', '.join(able)} alone: give "
            f"--variant {able[0]}"
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


def licences(folder: Folder) -> list[Path]:
    """The licence files of a checkpoint; a link that leaves it is left out."""
    files = [path for name, path in children(folder).items() if name.startswith("LICENSE")]
    paths = [path for path in files if isinstance(path, Path) and path.is_file()]
    return [path for path in paths if stays_inside(path, path.parent)]


def read_json(
    path: Folder, *, limit: int = _JSON_LIMIT, error: type[MtuExportError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes, by the rules of :func:`strict_json`.

    Raises ``error`` with the file's name, also for the pointer that git-lfs leaves in its place.
    """
    if isinstance(path, Document):
        return dict(path.value)
    if isinstance(path, Entry):
        raise error(f"{path} is missing")
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
