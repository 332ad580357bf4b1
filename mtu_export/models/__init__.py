"""Model families: each a package with a ``FAMILY``, found by what it claims of a folder.

``pipeline`` and ``lora`` are what families share, ``sources`` opens what people hold.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from mtu_export import checkpoint
from mtu_export.checkpoint import Folder
from mtu_export.spec import CheckpointError, Family, Model, UnknownName, shown, telemetry

_SHARED = ("lora", "pipeline", "sources")
_PLANNED = {
    "StableDiffusion3Pipeline": "planned",
    "FluxPipeline": "planned",
    "PixArtSigmaPipeline": "planned",
    "SanaPipeline": "planned",
    "StableDiffusionXLControlNetPipeline": "planned",
    "StableDiffusionControlNetPipeline": "planned",
    "KandinskyV22Pipeline": "not planned",
    "StableCascadeDecoderPipeline": "not planned",
}
"""Classes of pipelines that people bring and no family claims yet."""


def names() -> tuple[str, ...]:
    """Names of the families: the packages below this one."""
    folders = (p.parent.name for root in __path__ for p in Path(root).glob("*/__init__.py"))
    return tuple(sorted(name for name in folders if name not in _SHARED))


def load(name: str) -> Family:
    """The family of this name; imports neither torch nor diffusers."""
    if name not in names():
        raise UnknownName("model family", name, names())
    telemetry.turn_off()
    return cast(Family, importlib.import_module(f"{__name__}.{name}").FAMILY)


def open(folder: Folder) -> Model:
    """The model in a checkpoint folder, by the one family that claims it.

    Reads JSON alone. Raises ``CheckpointError`` where none or several do.
    """
    claims = [name for name in names() if load(name).claims(folder)]
    if len(claims) == 1:
        return load(claims[0]).open(folder)
    if claims:
        raise CheckpointError(f"{folder} is claimed by several families: {', '.join(claims)}")
    raise CheckpointError(_unclaimed(folder))


def _unclaimed(folder: Folder) -> str:
    """A line on the classes of a folder and those that are claimed."""
    claimed = dict.fromkeys(c for name in names() for c in load(name).classes)
    legal = f"legal: {', '.join(claimed)}"
    files = ("unet/config.json", "model_index.json", "config.json")
    configs = {n: checkpoint.read_json(folder / n) for n in files if (folder / n).is_file()}
    if not configs:
        return f"{folder} is no checkpoint: it has no model_index.json and no unet/; {legal}"
    if "unet" in configs.get("model_index.json", {}) and "unet/config.json" not in configs:
        return (
            f"{folder} has no unet/config.json, which its model_index.json names; complete the "
            "copy or download"
        )
    kinds = {name: config.get("_class_name") for name, config in configs.items()}
    where = next((n for n, kind in kinds.items() if str(kind) not in claimed), next(iter(kinds)))
    plan = _PLANNED.get(str(kinds[where]))
    return f"{folder}: {where} says {shown(kinds[where])}{f' ({plan})' if plan else ''}; {legal}"
