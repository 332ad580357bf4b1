"""Tests of the benchmarks' own code; no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
