"""PEFT's config of a LoRA, LoHa or LoKr, from a file's header or a folder that PEFT saved."""

from __future__ import annotations

import math
import re
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
"""Most instructions of all compiled patterns together: the cost of matching, per character."""
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)
"""A layer's name: the automaton of such a pattern is as small as its text."""
_LARGEST_WILD = 2_000
"""As ``_LARGEST_PROGRAM``, of patterns that are no names."""
_VARIANT_KEYS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""Keys of a ``LoraConfig`` that make it compute something else than its tensors say."""
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""Key of alpha by ``peft_type``."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Alpha and rank of a ``LoraConfig``, with per-layer patterns matched as PEFT does."""

    rank: int
    alpha: float
    ranks: tuple[tuple[Pattern, float], ...] = ()
    alphas: tuple[tuple[Pattern, float], ...] = ()
    root: bool = False
    """Whether alpha is divided by the square root of the rank (rsLoRA)."""
    dora: bool = False

    def factor(self, layer: str, rank: int | None, where: str) -> float:
        """alpha/rank of a layer; refuses a rank that differs from the config's.

        Without a rank (a LoKr of two whole factors) it is the config's.
        """
        if not layer.isprintable():
            raise CheckpointError(f"{where}: its name {shown(layer)} is not text")
        expected = _first_match(self.ranks, layer, self.rank)
        rank = rank or int(expected)
        if expected != rank or rank < 1:
            raise CheckpointError(f"{where} has rank {rank}, its LoraConfig says {expected:g}")
        return _first_match(self.alphas, layer, self.alpha) / (
            math.sqrt(rank) if self.root else rank
        )


def _first_match(patterns: Sequence[tuple[Pattern, float]], layer: str, default: float) -> float:
    """The value of the first pattern that matches, as in PEFT's ``get_pattern_key``."""
    return next((value for pattern, value in patterns if pattern.match(layer)), default)


def from_header(
    metadata: Mapping[str, str], path: Path, components: Sequence[str]
) -> dict[str, Config]:
    """Configs by component from a file's metadata; one without prefixes is the UNet's."""
    if KEY not in metadata:
        return {}
    where = f"{path}: {KEY}"
    try:
        metadata_config = strict_json(metadata[KEY])
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(metadata_config, dict):
        raise CheckpointError(f"{where} does not hold a JSON object")
    if "r" in metadata_config:
        return {"unet": _parse_config(metadata_config, where)}
    configs = {}
    for component in components:
        prefix = f"{component}."
        fields = {
            key.removeprefix(prefix): value
            for key, value in metadata_config.items()
            if key.startswith(prefix)
        }
        if fields:
            configs[component] = _parse_config(fields, f"{where} of {component}")
    return configs


def config_beside(path: Path) -> Path | None:
    """The config file that PEFT's ``save_pretrained`` writes beside its weights, or None."""
    config = path.with_name(_CONFIG)
    return config if path.name == _FILE and config.is_file() else None


def from_folder(path: Path) -> dict[str, Config]:
    """The UNet's config from the file of :func:`config_beside`, if there is one."""
    file = config_beside(path)
    return {} if file is None else {"unet": _parse_config(checkpoint.read_json(file), str(file))}


def _parse_config(fields: Mapping[str, Any], where: str) -> Config:
    peft_type = fields.get("peft_type", "LORA")
    if not isinstance(peft_type, str) or peft_type not in _ALPHAS:
        legal = ", ".join(map(repr, _ALPHAS))
        raise CheckpointError(f"{where}: peft_type is {shown(peft_type)}; legal: {legal}")
    for key in _VARIANT_KEYS:
        if fields.get(key):
            raise CheckpointError(
                f"{where}: {key} is {shown(fields[key])}; legal: a sum of W and its product, DoRA"
            )
    rank = _number(fields, "r", where)
    if not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{where}: r must be a positive integer, got {shown(rank)}")
    return Config(
        rank=rank,
        alpha=_number(fields, _ALPHAS[peft_type], where),
        ranks=_patterns(fields, "rank_pattern", where),
        alphas=_patterns(fields, "alpha_pattern", where),
        root=_flag(fields, "use_rslora", where),
        dora=_flag(fields, "use_dora", where),
    )


def _flag(fields: Mapping[str, Any], key: str, where: str) -> bool:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} must be true or false, got {shown(value)}")
    return bool(value)


def _number(fields: Mapping[str, Any], key: str, where: str) -> float:
    value = fields.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return value
    raise CheckpointError(f"{where}: {key} must be a number, got {shown(value)}")


def _patterns(fields: Mapping[str, Any], key: str, where: str) -> tuple[tuple[Pattern, float], ...]:
    """Patterns in order, anchored as in PEFT; matching takes linear time (``spec.patterns``)."""
    values = fields.get(key) or {}
    if not isinstance(values, dict) or len(values) > _MOST_PATTERNS:
        raise CheckpointError(f"{where}: {key} must be an object of layers and numbers")
    compiled: list[tuple[Pattern, float]] = []
    wild = 0
    for source, value in values.items():
        try:
            pattern = compile_pattern(source, r"(.*\.)?({})$")
        except ValueError as error:
            raise CheckpointError(
                f"{where}: {key} {shown(source)} is not a usable pattern: {error}"
            ) from None
        wild += 0 if _PLAIN.fullmatch(source) else pattern.programsize
        compiled.append((pattern, _number({source: value}, source, f"{where}: {key}")))
    if (
        sum(pattern.programsize for pattern, _ in compiled) > _LARGEST_PROGRAM
        or wild > _LARGEST_WILD
    ):
        raise CheckpointError(f"{where}: {key} has too many long patterns")
    return tuple(compiled)
