"""What people hold, opened as a checkpoint: folders, variants, hubs, single files, other parts.

Nothing is copied or converted on disk: what is not one folder is a view of what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint import Document, Folder, View
from mtu_export.models.sources import single
from mtu_export.spec import CheckpointError, PlanError

_ENCODERS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_INDEX, _SCHEDULER = "model_index.json", "scheduler_config.json"


def open(
    model: str | Path | None,
    revision: str | None = None,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    text_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
    prediction_type: str | None = None,
) -> Folder:
    """The checkpoint that a user names, with parts from elsewhere in place of its own.

    ``model`` and ``revision`` are those of ``checkpoint.locate``, or a model in one file.
    ``variant`` is that of the weights (``"fp16"``). ``vae`` is a folder or a file; text encoders
    and tokenizers are folders in the pipeline's order, or one pipeline with all of them.
    ``prediction_type`` is the scheduler's. Reads JSON and headers alone. Raises
    ``CheckpointError`` and ``PlanError``.
    """
    place = checkpoint.place_of(model, revision, variant)
    parts = _parts("--text-encoder", text_encoders, _ENCODERS)
    parts |= _parts("--tokenizer", tokenizers, _TOKENIZERS)
    source = _source(place, variant, prediction_type, frozenset(parts))
    if vae is not None:
        parts["vae"] = _vae(vae, source)
    notes = [f"The {n.replace('_', ' ')} is {_shown(place)}." for n, place in parts.items()]
    if prediction_type is not None and place.is_dir():
        parts["scheduler"] = _scheduler(source, prediction_type)
        notes.append(f"The scheduler's prediction_type is {prediction_type}, as asked for.")
    return _overlaid(source, parts, notes) if parts else source


def _source(
    place: Path, variant: str | None, prediction_type: str | None, given: frozenset[str]
) -> Folder:
    """A folder, its variant, or the model in a file."""
    if place.is_dir():
        return place if variant is None else checkpoint.with_variant(place, variant)
    if variant is not None:
        raise PlanError(f"--variant is for a folder of parts; {str(place)!r} is one file")
    return single.open_model(place, prediction_type, given)


def _shown(place: Folder) -> str:
    """A part's name in the model card: the last two words of its path."""
    return "/".join(str(place).split("/")[-2:])


def _overlaid(source: Folder, parts: Mapping[str, Folder], notes: Sequence[str]) -> View:
    """A checkpoint with other parts, which its index names too."""
    entries: dict[str, Folder | None] = {**parts}
    index = source / _INDEX
    if index.is_file():
        classes = {name: _class(name, place) for name, place in parts.items()}
        value = {**checkpoint.read_json(index), **{n: c for n, c in classes.items() if c}}
        entries[_INDEX] = Document(where=str(index), value=value)
    return View(
        where=str(source),
        base=source,
        entries=entries,
        absent={n: why for n, why in checkpoint.refusals(source).items() if n not in parts},
        notes=(*checkpoint.notes(source), *notes),
    )


def _class(name: str, place: Folder) -> list[str] | None:
    """Library and class of a part, for the index."""
    if name in _TOKENIZERS:
        return ["transformers", "CLIPTokenizer"]
    if name == "scheduler" or not (place / "config.json").is_file():
        return None
    config = checkpoint.read_json(place / "config.json")
    if name == "vae":
        return ["diffusers", str(config.get("_class_name"))]
    kinds = config.get("architectures")
    return ["transformers", str(kinds[0])] if isinstance(kinds, list) and kinds else None


# ------------------------------------------------------------------------------- parts by flags


def _vae(path: str | Path, source: Folder) -> Folder:
    """The VAE of a folder or a file; what a file does not say is that of the source's kind."""
    place = _existing("--vae", path)
    if place.is_file():
        config = source / "unet" / "config.json"
        unet = checkpoint.read_json(config) if config.is_file() else {}
        return single.open_vae(place, unet.get("addition_embed_type") == "text_time")
    return _part("--vae", place, "vae")


def _parts(flag: str, paths: Sequence[str | Path], names: Sequence[str]) -> dict[str, Folder]:
    """Parts by name: of one pipeline all of ``names`` that it has, else one folder each."""
    places = [_existing(flag, path) for path in paths]
    if len(places) > len(names):
        raise PlanError(f"{flag} takes at most {len(names)} folders, got {len(places)}")
    for place in places:
        if not place.is_dir():
            raise PlanError(f"{flag} takes a folder; {str(place)!r} is a file")
    if len(places) == 1 and (places[0] / names[0]).is_dir():
        there = [name for name in names if (places[0] / name).is_dir()]
        return {name: places[0] / name for name in there}
    return {name: _part(flag, place, name) for name, place in zip(names, places, strict=False)}


def _part(flag: str, place: Path, name: str) -> Folder:
    """A part's folder, or that of the part in a pipeline's folder."""
    if (place / name).is_dir():
        return place / name
    if name in _TOKENIZERS or (place / "config.json").is_file():
        return place
    raise CheckpointError(f"{flag} {str(place)!r} has neither config.json nor {name}/")


def _existing(flag: str, path: str | Path) -> Path:
    try:
        place = Path(path).expanduser()
        if place.exists():
            return place
    except (OSError, RuntimeError):  # too long, or ~nobody
        pass
    raise CheckpointError(f"{flag}: there is no {str(path)[:200]!r}")


def _scheduler(source: Folder, prediction_type: str) -> View:
    """The scheduler with another prediction type."""
    place = source / "scheduler"
    path = place / _SCHEDULER
    if not path.is_file():
        raise CheckpointError(f"{source} has no scheduler/: --prediction-type changes nothing")
    config: dict[str, Any] = {**checkpoint.read_json(path), "prediction_type": prediction_type}
    document = Document(where=str(path), value=config)
    return View(where=str(place), base=place, entries={_SCHEDULER: document})
