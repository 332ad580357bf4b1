"""Variants of weights in one folder (``fp16``): names of their files, and a view with one.

diffusers writes ``stem.fp16.safetensors``, shards as ``stem.fp16-00001-of-00002.safetensors`` or
``stem-00001-of-00002.fp16.safetensors``, and ``stem.safetensors.index.fp16.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mtu_export.checkpoint.view import Folder, View, children
from mtu_export.spec import CheckpointError, PlanError

STEMS = ("diffusion_pytorch_model", "model")
"""Stems of the weight files of diffusers and of transformers."""
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_VARIANT = re.compile(r"\w[\w-]{0,63}")


def variants(names: Iterable[str], stem: str) -> list[str]:
    """The variants of a stem among names of files."""
    pattern = re.compile(rf"{re.escape(stem)}{_SHARD}\.(\w[\w-]*?){_SHARD}\.safetensors")
    return sorted({match[1] for name in names if (match := pattern.fullmatch(name))})


def variant_of(names: Iterable[str], stem: str, variant: str) -> str | None:
    """The file of one variant among names: its weights, or the index of its shards."""
    able = {*names}
    forms = (f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json")
    shards = (n for n in sorted(able) if variants([n], stem) == [variant])
    return next((name for name in forms if name in able), next(shards, None))


def variant_patterns(variant: str) -> tuple[str, ...]:
    """Patterns of the files of a variant, for a download."""
    shards = (f".{variant}", f".{variant}-?????-of-?????", f"-?????-of-?????.{variant}")
    return tuple(f"*/{stem}{end}.safetensors" for stem in STEMS for end in shards)


def with_variant(folder: Folder, variant: str) -> View:
    """A checkpoint whose parts have the weights of a variant, those without it their plain ones.

    Raises ``PlanError`` for what is no variant's name and ``CheckpointError`` where no part has it.
    """
    if not _VARIANT.fullmatch(variant):
        raise PlanError(f"--variant takes a name such as fp16, got {variant[:80]!r}")
    places = {name: place for name, place in children(folder).items() if place.is_dir()}
    own = _part(folder, variant)
    parts = {name: _part(place, variant) for name, place in places.items()}
    entries = {name: part for name, part in parts.items() if part is not None}
    if own is None and not entries:
        able = {v for place in (folder, *places.values()) for v in _variants(place)}
        there = f"it has: {', '.join(sorted(able))}" if able else "it has none"
        raise CheckpointError(f"{folder} has no weights of the variant {variant!r}; {there}")
    own_entries = {} if own is None else own.entries
    return View(where=str(folder), base=folder, entries={**own_entries, **entries})


def _variants(part: Folder) -> list[str]:
    names = list(children(part))
    return [variant for stem in STEMS for variant in variants(names, stem)]


def _part(part: Folder, variant: str) -> View | None:
    """A part whose weights are those of the variant; None where it has not that one."""
    names = list(children(part))
    for stem in STEMS:
        name = variant_of(names, stem, variant)
        if name is None:
            continue
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        file = part / name
        if name.endswith(".json"):
            entries = {single: None, index: file}
        elif name == f"{stem}.{variant}.safetensors":
            entries = {single: file, index: None}
        else:
            raise CheckpointError(f"{part} has shards of the variant {variant!r} without an index")
        return View(where=str(part), base=part, entries=entries)
    return None
