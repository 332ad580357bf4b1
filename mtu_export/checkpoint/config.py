"""``unet/config.json``: what format 1 allows in it, its tasks, and the stock config of a fold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtu_export.checkpoint.folder import read_json
from mtu_export.checkpoint.layout import PipelineLayout
from mtu_export.spec import CheckpointError, Task, shown

FORMAT = 1
MTU_KEYS = (
    "mtu_format",
    "num_experts",
    "task_embedding_dim",
    "router_hidden_dim",
    "tasks",
    "task_norm",
)
"""Keys that ``unet/config.json`` has beside those of a stock UNet."""
RESCALE = "_rescale"
"""Key of the factor between the experts' value rows and the dense model's; see ``rescale``."""
STOCK_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": None,
    "cross_attention_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
}
"""Defaults of the stock UNet for the keys that are read here; a config may leave them out."""
CLASS_SUFFIX = "UNet2DConditionModel"
WHERE = "unet/config.json"
TRAINING_KEYS = (
    "decay",
    "gradient_checkpointing",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
"""Keys that diffusers' training (``EMAModel.save_pretrained``) leaves in a part's config.

diffusers ignores them when it loads the part, and so does everything here."""
_UNSUPPORTED_INPUTS: Mapping[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default", None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,),
    "time_cond_proj_dim": (None,),
}
"""Stock keys whose other values need inputs that no export has, with the legal values."""
_TEXT_TIME = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
_COUNTS = (
    "attention_head_dim",
    "layers_per_block",
    "norm_num_groups",
    "num_attention_heads",
    "sample_size",
    "transformer_layers_per_block",
)
"""Stock keys that are a positive integer, a list of such, or None."""
_FLAGS = (
    "center_input_sample",
    "flip_sin_to_cos",
    "mid_block_only_cross_attention",
    "resnet_skip_time_act",
    "upcast_attention",
    "use_linear_projection",
)
_NUMBERS = (
    "dropout",
    "freq_shift",
    "mid_block_scale_factor",
    "norm_eps",
    "resnet_out_scale_factor",
)
_LARGEST = 2**24
_DEEPEST = 128
_MOST_BLOCKS = 2048


def read_config(folder: Path) -> dict[str, Any]:
    """``unet/config.json`` with the stock defaults; format, family, sizes and VAE are checked."""
    if not (folder / "unet").is_dir():
        if (folder / "config.json").is_file():
            family(read_json(folder / "config.json"))  # says what to do with a dense UNet's folder
        raise CheckpointError(f"{folder} has no unet/ folder: not a checkpoint")
    config = {**STOCK_DEFAULTS, **without_training_keys(read_json(folder / "unet" / "config.json"))}
    family(config)
    _check_format(config)
    check_sizes(config)
    _ = PipelineLayout.read(folder, config).scaling_factor  # refuses one out of range
    return config


def without_training_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without :data:`TRAINING_KEYS`."""
    return {key: value for key, value in config.items() if key not in TRAINING_KEYS}


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes of another type than a UNet's, or absurd ones, before anything is built."""
    for key in ("in_channels", "out_channels", "cross_attention_dim"):
        value = config.get(key, STOCK_DEFAULTS[key])
        if not _is_size(value):
            raise CheckpointError(f"{WHERE}: {key} must be a positive integer, got {shown(value)}")
    levels = config.get("block_out_channels", STOCK_DEFAULTS["block_out_channels"])
    if not isinstance(levels, (list, tuple)) or not levels or not all(map(_is_size, levels)):
        raise CheckpointError(f"{WHERE}: block_out_channels must be a list of positive integers")
    for key, value in config.items():
        deep = key.endswith(("layers_per_block", "num_experts"))
        for entry in _flattened(value):
            nested = isinstance(entry, (list, tuple))
            if key in _COUNTS and not (entry is None or nested or _is_size(entry)):
                raise CheckpointError(
                    f"{WHERE}: {key} must be a positive integer or a list of such, "
                    f"got {shown(value)}"
                )
            if isinstance(entry, int) and abs(entry) > _LARGEST:
                raise CheckpointError(f"{WHERE}: {key} is absurdly large: {shown(entry)}")
            if (deep and isinstance(entry, int) and entry > _DEEPEST) or (
                isinstance(entry, (list, tuple)) and len(entry) > 4096
            ):
                raise CheckpointError(f"{WHERE}: {key} is absurdly large")
    layers = _largest(config.get("layers_per_block", 2))
    blocks = len(levels) * layers * _largest(config.get("transformer_layers_per_block", 1))
    if blocks > _MOST_BLOCKS:
        raise CheckpointError(
            f"{WHERE}: layers_per_block and transformer_layers_per_block are "
            f"absurdly large: about {blocks:,} blocks, at most {_MOST_BLOCKS:,} are read"
        )


def _flattened(value: Any) -> Iterator[Any]:
    """A value, and whatever is in its lists at any depth."""
    pending = [value]
    while pending:
        entry = pending.pop()
        yield entry
        pending += entry if isinstance(entry, (list, tuple)) else ()


def _largest(value: Any) -> int:
    """The largest integer in a value and its lists, at least 1."""
    return max((entry for entry in _flattened(value) if isinstance(entry, int)), default=1)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_format(config: Mapping[str, Any]) -> None:
    version = config.get("mtu_format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{WHERE}: mtu_format must be {FORMAT}, got {shown(version)}")
    if version > FORMAT:
        raise CheckpointError(
            f"{WHERE}: mtu_format {shown(version)} needs a newer mtu-export "
            f"(this one reads format {FORMAT})"
        )


def family(config: Mapping[str, Any]) -> str:
    """Name of the checkpoint's family: ``MTUUNet2DConditionModel`` -> ``"mtu"``."""
    name = config.get("_class_name")
    if name == CLASS_SUFFIX:
        raise CheckpointError(
            "the UNet is dense (UNet2DConditionModel); make a checkpoint that starts equal to it "
            "with: mtu-export upcycle SOURCE OUT --task ... --rescale"
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9]*" + CLASS_SUFFIX, name):
        raise CheckpointError(
            f"{WHERE}: _class_name {shown(name)} is not that of an MTU checkpoint"
        )
    return name.removesuffix(CLASS_SUFFIX).lower()


def rescale(config: Mapping[str, Any]) -> int | None:
    """The factor that ``upcycle`` multiplied value rows by: N with ``--rescale``, else 1.

    None where the checkpoint does not say, which those from elsewhere, random ones and old ones do
    not. Raises ``CheckpointError``.
    """
    experts = config.get("num_experts")
    factor = config.get(RESCALE)
    if factor is None:
        return 1 if experts == 1 else None
    if not _is_size(factor) or factor not in (1, experts):
        raise CheckpointError(
            f"{WHERE}: {RESCALE} must be 1 or num_experts ({shown(experts)}), got {shown(factor)}"
        )
    return factor


def tasks(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a config, checked; names are unique."""
    entries = config.get("tasks")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise CheckpointError(f"{WHERE}: tasks must be a list of at least one task")
    parsed = tuple(Task.from_json(entry, index) for index, entry in enumerate(entries))
    names = [task.name for task in parsed]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(f"{WHERE}: task {name!r} is there twice")
    return parsed


def check_config(config: Mapping[str, Any], stock_keys: Iterable[str]) -> None:
    """Refuse a newer format, unknown keys and values that format 1 does not allow."""
    _check_format(config)
    check_sizes(config)
    for key in ("num_experts", "task_embedding_dim", "router_hidden_dim"):
        value = config.get(key)
        if not _is_size(value):
            raise CheckpointError(f"{WHERE}: {key} must be a positive integer, got {shown(value)}")
    norm = config.get("task_norm", "replace")
    if norm not in ("replace", "stacked"):
        raise CheckpointError(
            f"{WHERE}: task_norm must be 'replace' or 'stacked', got {shown(norm)}"
        )
    rescale(config)
    legal = {*MTU_KEYS, *stock_keys}
    for key in config:
        if not key.startswith("_") and key not in legal:
            raise CheckpointError(f"{WHERE}: unknown key {key[:80]!r}")
    _check_stock(config)
    names = {task.name for task in tasks(config)}
    if norm == "stacked" and names & {"weight", "bias"}:
        raise CheckpointError(
            f"{WHERE}: with stacked norms no task can be named 'weight' or 'bias': these are the "
            "names of the shared norm's tensors"
        )


def _check_stock(config: Mapping[str, Any]) -> None:
    """Refuse configs that need inputs no export has, and flags and numbers of a wrong type."""
    for key, legal in _UNSUPPORTED_INPUTS.items():
        value = config.get(key, legal[0])
        if not any(
            value is other or (isinstance(other, str) and value == other) for other in legal
        ):
            names = " or ".join(json.dumps(other) for other in legal)
            raise CheckpointError(
                f"{WHERE}: {key} {shown(value)} needs an input that no export has; legal: {names}"
            )
    for key in _FLAGS:
        if not isinstance(config.get(key), (bool, type(None))):
            raise CheckpointError(f"{WHERE}: {key} must be true or false, got {shown(config[key])}")
    for key in _NUMBERS:
        value = config.get(key, 0)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= _LARGEST:
            raise CheckpointError(f"{WHERE}: {key} must be a number, got {shown(value)}")
    if config.get("addition_embed_type") == "text_time":
        time, total = (config.get(key) for key in _TEXT_TIME)
        if not (_is_size(time) and _is_size(total)) or total <= 6 * time:  # type: ignore[operator]
            raise CheckpointError(
                f"{WHERE}: {_TEXT_TIME[1]} must be the width of the pooled text and 6 times "
                f"{_TEXT_TIME[0]}, got {shown(total)} and {shown(time)}"
            )


def stock_config(config: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """The config of the stock ``UNet2DConditionModel`` that a folded task is."""
    kept = {k: v for k, v in config.items() if k not in MTU_KEYS and not k.startswith("_")}
    return {**kept, "in_channels": in_channels, "_class_name": CLASS_SUFFIX}
