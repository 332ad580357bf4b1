"""Files of several methods that are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mtu_export import targets
from mtu_export.spec import BundleError
from mtu_export.targets.executorch.lowering import write

executorch = targets.load("executorch")
pytestmark = pytest.mark.slow


def made(path: Path, names: tuple[str, ...], interface: str) -> Path:
    methods = {
        name: torch.export.export(nn.ReLU().eval(), (torch.zeros(1, 4),), strict=False)
        for name in names
    }
    write(methods, {"_identity": "{}", "_interface": interface}, path)
    return path


def test_names_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "deep.pte", ("edit",), "[" * 100_000)
    with pytest.raises(BundleError, match=r"deep\.pte: not a program of this product"):
        executorch.structure(path, "edit")


def test_a_method_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """The runtime would take the one and a reader the other."""
    row = '{"inputs": ["x"], "outputs": ["y"]}'
    path = made(tmp_path / "twice.pte", ("aa", "ab"), f'{{"aa": {row}, "ab": {row}}}')
    assert executorch.structure(path, "aa").inputs[0].name == "x"
    name = b"\x02\0\0\0ab\0"
    data = path.read_bytes()
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, name.replace(b"ab", b"aa")))
    with pytest.raises(BundleError, match="a method appears twice"):
        executorch.structure(path, "aa")


def test_a_method_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    row = '{"inputs": ["x"], "outputs": ["y"]}'
    path = made(tmp_path / "two.pte", ("edit", "sr"), f'{{"edit": {row}, "sr": {row}}}')
    for entry in ("nowhere", "forward", "_interface"):
        with pytest.raises(BundleError, match=f"no method '{entry}'; it has: edit, sr"):
            executorch.structure(path, entry)
