"""PEFT's ``LoraConfig``: in the header of a LoRA file, or in the folder that PEFT saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint.folder import strict_json
from mtu_export.spec import CheckpointError, shown
from mtu_export.spec.patterns import Pattern, compile_pattern

KEY = "lora_adapter_metadata"
"""Key of the safetensors header under which diffusers keeps the config, as JSON."""
_FILE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LARGEST = 1e6
_MOST_PATTERNS = 4096
_LARGEST_PROGRAM = 1_000_000
"""Instructions of all patterns of an object: what one layer's name may cost for each letter."""
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Keys of a ``LoraConfig`` that make another function of it than W + scale · up · down."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a ``LoraConfig`` says of alpha and rank; patterns are as PEFT matches them."""

    rank: int
    alpha: float
    ranks: tuple[tuple[Pattern, float], ...] = ()
    alphas: tuple[tuple[Pattern, float], ...] = ()
    root: bool = False
    """Whether alpha is divided by the root of the rank (rsLoRA)."""

    def factor(self, layer: str, rank: int, where: str) -> float:
        """alpha/rank of a layer; refuses a rank that is not the config's."""
        if not layer.isprintable():
            raise CheckpointError(f"{where}: its name {shown(layer)} is not text")
        expected = _first(self.ranks, layer, self.rank)
        if expected != rank:
            raise CheckpointError(f"{where} has rank {rank}, its LoraConfig says {expected:g}")
        return _first(self.alphas, layer, self.alpha) / (math.sqrt(rank) if self.root else rank)


def _first(rows: Sequence[tuple[Pattern, float]], layer: str, other: float) -> float:
    """The value of the first pattern that fits, as PEFT's ``get_pattern_key`` finds it."""
    return next((value for pattern, value in rows if pattern.match(layer)), other)


def from_header(
    metadata: Mapping[str, str], path: Path, components: Sequence[str]
) -> dict[str, Config]:
    """Configs by component, from the metadata of a file; without a prefix it is the UNet's."""
    if KEY not in metadata:
        return {}
    where = f"{path}: {KEY}"
    try:
        found = strict_json(metadata[KEY])
    except ValueError as error:
        raise CheckpointError(f"{where} is no JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} does not hold a JSON object")
    if "r" in found:
        return {"unet": _config(found, where)}
    rows = {}
    for component in components:
        prefix = f"{component}."
        row = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        if row:
            rows[component] = _config(row, f"{where} of {component}")
    return rows


def config_beside(path: Path) -> Path | None:
    """The file of the config that PEFT's ``save_pretrained`` writes beside its weights, if any."""
    config = path.with_name(_CONFIG)
    return config if path.name == _FILE and config.is_file() else None


def from_folder(path: Path) -> dict[str, Config]:
    """The config of :func:`config_beside`; of the UNet."""
    config = config_beside(path)
    return {} if config is None else {"unet": _config(checkpoint.read_json(config), str(config))}


def _config(found: Mapping[str, Any], where: str) -> Config:
    kind = found.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {shown(kind)}; legal: 'LORA'")
    for key in _VARIANTS:
        if found.get(key):
            raise CheckpointError(f"{where}: {key} is {shown(found[key])}; only plain LoRA is read")
    rank = _number(found, "r", where)
    if not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{where}: r must be a positive integer, got {shown(rank)}")
    root = found.get("use_rslora", False)
    if not isinstance(root, bool):
        raise CheckpointError(f"{where}: use_rslora must be true or false, got {shown(root)}")
    return Config(
        rank=rank,
        alpha=_number(found, "lora_alpha", where),
        ranks=_patterns(found, "rank_pattern", where),
        alphas=_patterns(found, "alpha_pattern", where),
        root=root,
    )


def _number(found: Mapping[str, Any], key: str, where: str) -> float:
    value = found.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return value
    raise CheckpointError(f"{where}: {key} must be a number, got {shown(value)}")


def _patterns(fields: Mapping[str, Any], key: str, where: str) -> tuple[tuple[Pattern, float], ...]:
    """Patterns in order, as PEFT puts them together; theirs is linear time, see ``patterns``."""
    values = fields.get(key) or {}
    if not isinstance(values, dict) or len(values) > _MOST_PATTERNS:
        raise CheckpointError(f"{where}: {key} must be an object of layers and numbers")
    compiled: list[tuple[Pattern, float]] = []
    for source, value in values.items():
        try:
            pattern = compile_pattern(source, r"(.*\.)?({})$")
        except ValueError as error:
            raise CheckpointError(
                f"{where}: {key} {shown(source)} is not a usable pattern: {error}"
            ) from None
        compiled.append((pattern, _number({source: value}, source, f"{where}: {key}")))
    if sum(pattern.programsize for pattern, _ in compiled) > _LARGEST_PROGRAM:
        raise CheckpointError(f"{where}: {key} has too many long patterns")
    return tuple(compiled)
