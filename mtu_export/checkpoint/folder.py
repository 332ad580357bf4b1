"""Where a checkpoint is, which of its files are its own, and how its JSON is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mtu_export.spec import CheckpointError, ToolchainMissing

EMBEDDED = Path(__file__).parent / "embedded" / "shapes"
_JSON_LIMIT = 64_000_000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAID = ("*.json", "*.txt", "LICENSE*")
_SHARDS = ("", "-?????-of-?????")
_WEIGHTS = tuple(
    f"{part}/{stem}{shard}.safetensors"
    for stem, parts in (
        ("diffusion_pytorch_model", ("unet", "vae")),
        ("model", ("text_encoder", "text_encoder_2")),
    )
    for part in parts
    for shard in _SHARDS
)


def locate(model: str | Path | None, revision: str | None = None) -> Path:
    """Folder of a checkpoint: a local path, a hub id (``owner/name``), or None: the embedded.

    ``revision`` is a branch, tag or commit of the hub.
    """
    if model is None:
        return EMBEDDED
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise CheckpointError(f"{str(folder)!r} is a file; a checkpoint is a folder with unet/")
    except (OSError, RuntimeError) as error:  # too long, or ~nobody
        raise CheckpointError(f"no checkpoint folder {str(model)[:200]!r}: {error}") from None
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"no checkpoint folder {str(model)!r}")
    return _download(str(model), revision)


def _download(hub_id: str, revision: str | None) -> Path:
    """The snapshot of a repository: of a pipeline the weights that are read here alone.

    Repositories of pipelines also hold whole models in one file, half-precision twins and safety
    checkers: several times the bytes of the pipeline.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ToolchainMissing("huggingface_hub", "all") from None
    try:
        said = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_SAID]))
        pipeline = (said / "unet" / "config.json").is_file()
        rows = _WEIGHTS if pipeline else ("*.safetensors",)
        found = snapshot_download(hub_id, revision=revision, allow_patterns=[*_SAID, *rows])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{hub_id!r} is neither a folder nor reachable on the hub: {reason}"
        ) from None
    return Path(found)


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, stays in ``folder`` or in its repository's hub cache."""
    home = folder.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    return home in path.resolve().parents


def licences(folder: Path) -> list[Path]:
    """The licence files of a checkpoint; a link that leaves it is left out."""
    files = [path for path in sorted(folder.glob("LICENSE*")) if path.is_file()]
    return [path for path in files if stays_inside(path, folder)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; anything else is a ``CheckpointError``.

    No JSON of ours are: ``NaN``, a key that is there twice, a lone surrogate (no UTF-8 has it).
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file")
        if path.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(f"{path} has more than {_JSON_LIMIT:,} bytes")
        found = json.loads(
            path.read_text("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=refuse_twins,
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return found


def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; ``ValueError`` for a key that is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name[:80]!r} is there twice")
        found[name] = value
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
