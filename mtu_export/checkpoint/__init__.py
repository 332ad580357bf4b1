"""The checkpoint folder of format 1 on disk: where it is, its config, its weights.

Reads no tensor data unless asked and imports torch only to hand tensors over. A pickle is
refused and never opened. Errors are ``CheckpointError`` with the file's name.
"""

from __future__ import annotations

from mtu_export.checkpoint.config import (
    CLASS_SUFFIX,
    FORMAT,
    MTU_KEYS,
    RESCALE,
    STOCK_DEFAULTS,
    check_config,
    check_sizes,
    family,
    read_config,
    rescale,
    stock_config,
    task_from_json,
    tasks,
    without_training_keys,
)
from mtu_export.checkpoint.folder import (
    EMBEDDED,
    is_lfs_pointer,
    lfs_message,
    licences,
    locate,
    read_json,
    stays_inside,
    strict_json,
)
from mtu_export.checkpoint.weights import (
    FLOATS,
    INTEGERS,
    POSITION_IDS,
    SHARD_BYTES,
    TEXT_WEIGHTS,
    WEIGHTS,
    Header,
    compare,
    file_headers,
    headers,
    tensor,
    weight_files,
    write,
)

__all__ = [
    "CLASS_SUFFIX",
    "EMBEDDED",
    "FLOATS",
    "FORMAT",
    "INTEGERS",
    "MTU_KEYS",
    "POSITION_IDS",
    "RESCALE",
    "SHARD_BYTES",
    "STOCK_DEFAULTS",
    "TEXT_WEIGHTS",
    "WEIGHTS",
    "Header",
    "check_config",
    "check_sizes",
    "compare",
    "family",
    "file_headers",
    "headers",
    "is_lfs_pointer",
    "lfs_message",
    "licences",
    "locate",
    "read_config",
    "read_json",
    "rescale",
    "stays_inside",
    "stock_config",
    "strict_json",
    "task_from_json",
    "tasks",
    "tensor",
    "weight_files",
    "without_training_keys",
    "write",
]
