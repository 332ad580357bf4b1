"""The config of a stock ``UNet2DConditionModel``: types, sizes, and keys that no graph holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from mtu_export.checkpoint import Folder
from mtu_export.checkpoint.folder import read_json
from mtu_export.checkpoint.validation import StrictModel, legal, refused, validate
from mtu_export.spec import CheckpointError, shown

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
_LARGEST, _DEEPEST = 2**24, 128
_MOST_BLOCKS = 2048


def _bounded(value: Any) -> Any:
    """Refuse integers of an absurd size, at any depth."""
    for entry in _flattened(value):
        if isinstance(entry, int) and abs(entry) > _LARGEST:
            raise refused(f"must be at most {_LARGEST:,}")
    return value


def _flattened(value: Any) -> Iterator[Any]:
    """A value, and whatever is in its lists at any depth."""
    pending = [value]
    while pending:
        entry = pending.pop()
        yield entry
        pending += entry if isinstance(entry, (list, tuple)) else ()


_Size = Annotated[int, Field(ge=1, le=_LARGEST)]
_Depth = Annotated[int, Field(ge=1, le=_DEEPEST)]
Size = Annotated[_Size, legal(f"a positive integer, at most {_LARGEST:,}")]
Depth = Annotated[_Depth, legal(f"a positive integer, at most {_DEEPEST}")]
Levels = Annotated[
    Sequence[_Size], Field(min_length=1), legal(f"a list of positive integers up to {_LARGEST:,}")
]
Sizes = Annotated[
    _Size | Sequence[_Size | Sequence[_Size]] | None,
    legal(f"a positive integer or a list of them, at most {_LARGEST:,}"),
]
Depths = Annotated[
    _Depth | Sequence[_Depth | Sequence[_Depth]] | None,
    legal(f"a positive integer or a list of them, at most {_DEEPEST}"),
]
_LEAST = 4
ScaleWidth = Annotated[
    Annotated[int, Field(ge=_LEAST, le=_LARGEST)] | None,
    legal(f"null or an integer from {_LEAST} to {_LARGEST:,}"),
]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST), legal("a number")]
Flag = bool | None
_NO_INPUT = "; others need an input that no export has"
NoInput = Annotated[None, legal("null" + _NO_INPUT)]
NotTrue = Annotated[Literal[False] | None, legal("false" + _NO_INPUT)]
NotGated = Annotated[Literal["default"] | None, legal('"default"' + _NO_INPUT)]
TextTime = Annotated[Literal["text_time"] | None, legal('null or "text_time"' + _NO_INPUT)]


class StockConfig(StrictModel):
    """The keys of a stock UNet's config that are checked; diffusers knows more of them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_bounded)]]

    in_channels: Size = STOCK_DEFAULTS["in_channels"]
    out_channels: Size = STOCK_DEFAULTS["out_channels"]
    cross_attention_dim: Size = STOCK_DEFAULTS["cross_attention_dim"]
    block_out_channels: Levels = STOCK_DEFAULTS["block_out_channels"]
    sample_size: Sizes = None
    attention_head_dim: Sizes = 8
    num_attention_heads: Sizes = None
    norm_num_groups: Sizes = 32
    layers_per_block: Depths = 2
    transformer_layers_per_block: Depths = 1
    reverse_transformer_layers_per_block: Depths = None
    center_input_sample: Flag = False
    flip_sin_to_cos: Flag = True
    mid_block_only_cross_attention: Flag = None
    resnet_skip_time_act: Flag = False
    upcast_attention: Flag = False
    use_linear_projection: Flag = False
    dropout: Number = 0.0
    freq_shift: Number = 0
    mid_block_scale_factor: Number = 1
    norm_eps: Number = 1e-5
    resnet_out_scale_factor: Number = 1.0
    addition_embed_type: TextTime = None
    addition_time_embed_dim: Size | None = None
    projection_class_embeddings_input_dim: Size | None = None
    attention_type: NotGated = "default"
    class_embed_type: NoInput = None
    class_embeddings_concat: NotTrue = False
    dual_cross_attention: NotTrue = False
    encoder_hid_dim: NoInput = None
    encoder_hid_dim_type: NoInput = None
    num_class_embeds: NoInput = None
    time_cond_proj_dim: ScaleWidth = None

    @model_validator(mode="after")
    def _validate_together(self) -> StockConfig:
        depths = (self.layers_per_block, self.transformer_layers_per_block)
        blocks = len(self.block_out_channels) * prod(map(_largest, depths))
        if blocks > _MOST_BLOCKS:
            raise refused(
                "layers_per_block and transformer_layers_per_block are absurdly large: about "
                f"{blocks:,} blocks, at most {_MOST_BLOCKS:,} are read"
            )
        time, total = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
        is_text_time = self.addition_embed_type == "text_time"
        if is_text_time and not (time and total and total > 6 * time):
            raise refused(
                "projection_class_embeddings_input_dim must be the width of the pooled text and 6 "
                f"times addition_time_embed_dim, got {shown(total)} and {shown(time)}"
            )
        return self


def without_training_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without :data:`TRAINING_KEYS`."""
    return {key: value for key, value in config.items() if key not in TRAINING_KEYS}


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a stock UNet's values of a wrong type or absurd size, before anything is built."""
    validate(StockConfig, dict(config), CheckpointError, WHERE)


def _largest(value: Any) -> int:
    """The largest integer in a value and its lists, at least 1."""
    return max((entry for entry in _flattened(value) if isinstance(entry, int)), default=1)


def read(path: Folder) -> dict[str, Any]:
    """The ``config.json`` of a stock UNet with its defaults, validated; unknown keys are refused.

    Raises ``CheckpointError``.
    """
    config = {**STOCK_DEFAULTS, **without_training_keys(read_json(path))}
    check_sizes(config)
    for key in config:
        if not key.startswith("_") and key not in stock_keys():
            raise CheckpointError(f"{WHERE}: unknown key {key[:80]!r}")
    return config


@cache
def stock_keys() -> frozenset[str]:
    """The arguments of diffusers' ``UNet2DConditionModel``, read from its source, not imported."""
    from importlib.util import find_spec

    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    source = (folder / "models" / "unets" / "unet_2d_condition.py").read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == CLASS_SUFFIX:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return frozenset(argument.arg for argument in method.args.args[1:])
    raise AssertionError("diffusers has no UNet2DConditionModel")
