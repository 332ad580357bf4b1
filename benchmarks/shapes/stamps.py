"""Short names of what figures depend on, so that those of other weights are not taken for them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtu_export import checkpoint

UNET = ("unet/config.json", f"unet/{checkpoint.WEIGHTS}.safetensors")
PARTS = (
    f"vae/{checkpoint.WEIGHTS}.safetensors",
    f"text_encoder/{checkpoint.TEXT_WEIGHTS}.safetensors",
)


def stamp(files: Sequence[Path], *facts: Any) -> str:
    """Eight hexadecimal digits that change with the content of files and with what is said."""
    basis = [json.dumps(facts, sort_keys=True).encode(), *(_digest(path) for path in files)]
    return hashlib.sha256(b"".join(basis)).hexdigest()[:8]


@functools.cache
def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
