"""The checkpoint folder of format 1 on disk: where it is, its config, its weights.

Reads no tensor data unless asked and imports torch only to hand tensors over. A pickle is
refused and never opened. Errors are ``CheckpointError`` with the file's name.
"""

from __future__ import annotations

from mtu_export.checkpoint.folder import (
    EMBEDDED,
    REVISION,
    SOURCE,
    is_lfs_pointer,
    lfs_message,
    licences,
    locate,
    read_json,
    refuse_revision,
    source_keys,
    source_of,
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
    "EMBEDDED",
    "FLOATS",
    "INTEGERS",
    "POSITION_IDS",
    "REVISION",
    "SHARD_BYTES",
    "SOURCE",
    "TEXT_WEIGHTS",
    "WEIGHTS",
    "Header",
    "compare",
    "file_headers",
    "headers",
    "is_lfs_pointer",
    "lfs_message",
    "licences",
    "locate",
    "read_json",
    "refuse_revision",
    "source_keys",
    "source_of",
    "stays_inside",
    "strict_json",
    "tensor",
    "weight_files",
    "write",
]
