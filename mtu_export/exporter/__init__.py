"""The exporter: a checkpoint and a plan go in, a proven bundle comes out."""

from __future__ import annotations

from mtu_export.exporter.assembly import Watch, export, unwatched
from mtu_export.exporter.folded import save_folded

__all__ = ["Watch", "export", "save_folded", "unwatched"]
