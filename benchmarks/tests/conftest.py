"""Tests of the benchmarks' own code: small random checkpoints; no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def four_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny MTU checkpoint of the paper's four tasks."""
    from mtu_export.authoring import upcycle

    folder = tmp_path_factory.mktemp("four") / "tiny"
    upcycle.write_random("tiny", folder, tasks=["t2i", "edit", "sr", "inpaint"])
    return folder


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny dense pipeline."""
    from mtu_export.testing.dense import write_dense

    return write_dense("tiny", tmp_path_factory.mktemp("dense") / "pipeline")
