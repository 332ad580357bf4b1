"""What tests of training share: checkpoints to begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.testing.dense import write_dense
from tests.support.shared import SharedFolders


@pytest.fixture(scope="session")
def four_tasks(make_tiny: Callable[..., Path]) -> Path:
    """A whole tiny MTU checkpoint of the paper's four tasks."""
    return make_tiny("tiny", whole=True, tasks=["t2i", "edit", "sr", "inpaint"])


@pytest.fixture(scope="session")
def dense(shared_folders: SharedFolders) -> Path:
    """A whole tiny dense pipeline."""
    return shared_folders.folder("pipeline", "dense", lambda out: write_dense("tiny", out))
