"""One line of an error, whatever a library puts into it."""

from __future__ import annotations

import pytest
import torch

from mtu_export.graph import capture
from mtu_export.graph.capture import Graph
from mtu_export.models.pipeline.unet import as_checkpoint_error
from mtu_export.spec import CheckpointError, NotFoldable, TensorSpec, ToolchainError, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n  three  \nfour"), "three"),
        (ValueError(""), "ValueError"),
        (ValueError(), "ValueError"),
        (MemoryError(), "MemoryError"),
        (KeyError("name"), "'name'"),
        (RuntimeError("\x1b[31mred\x07"), "?[31mred?"),
        (RuntimeError("x" * 1000), "x" * 300),
    ],
    ids=str,
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


class Raising(torch.nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


def _capture(error: BaseException) -> None:
    spec = TensorSpec(name="x", shape=(1,))
    graph = Graph(module=Raising(error), inputs=(spec,), outputs=(spec,))
    capture.capture("unet", {"t2i": graph})


@pytest.mark.parametrize("message", ["", "\n", "first\nsecond"])
def test_a_capture_that_fails_is_one_line(message: str) -> None:
    with pytest.raises(
        ToolchainError, match=r"^torch\.export of unet for 't2i' failed: \S"
    ) as caught:
        _capture(RuntimeError(message))
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_not_said_to_be_the_models_fault() -> None:
    with pytest.raises(MemoryError):
        _capture(MemoryError())
    with pytest.raises(MemoryError), as_checkpoint_error():
        raise MemoryError
    with pytest.raises(NotFoldable, match="block"), as_checkpoint_error():
        raise NotFoldable("block")
    line = r"^unet/config\.json does not describe a UNet: KeyError$"
    with pytest.raises(CheckpointError, match=line), as_checkpoint_error():
        raise KeyError
