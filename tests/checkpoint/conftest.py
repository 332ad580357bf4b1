"""A UNet's folder that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def unet(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    return tmp_path / "unet"
