"""The live model in several threads at once: each runs its own task."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from mtu_export import MTUUNet2DConditionModel
from mtu_export.graph import capture
from mtu_export.models.mtu import network as mtu
from mtu_export.models.pipeline.unet import unet_graph

TASKS = ("t2i", "relight")
WAIT_S = 120


@pytest.fixture
def unet(make_tiny: Callable[..., Path], relight: str) -> MTUUNet2DConditionModel:
    folder = make_tiny("atom", tasks=["t2i", relight])
    return MTUUNet2DConditionModel.from_pretrained(folder, subfolder="unet")


def inputs(unet: MTUUNet2DConditionModel, task: str) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    channels = unet.config["in_channels"] + unet.task(task).channels
    sample = torch.randn(1, channels, 8, 8, generator=random)
    text = torch.randn(1, 77, unet.config["cross_attention_dim"], generator=random)
    return sample, torch.tensor([401.0]), text


def predict(unet: Any, task: str) -> Tensor:
    return unet(*inputs(unet, task), task=task, return_dict=False)[0]


@pytest.fixture
def meeting(unet: MTUUNet2DConditionModel) -> Iterator[Callable[[], None]]:
    """Makes both threads wait for each other inside every pass, before the experts run."""
    barrier = Barrier(len(TASKS))
    handles: list[Any] = []

    def start() -> None:
        def wait(*_: object) -> None:
            barrier.wait(WAIT_S)

        assert unet.mid_block is not None
        handles.append(unet.mid_block.register_forward_pre_hook(wait))
        block: Any = unet.mid_block.attentions[0].transformer_blocks[0]  # type: ignore[index]
        handles.append(block.ff.register_forward_pre_hook(wait))

    yield start
    for handle in handles:
        handle.remove()


def in_threads(work: Callable[[str], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(TASKS)) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(work, t) for t in TASKS]]


def test_two_threads_run_two_tasks(
    unet: MTUUNet2DConditionModel, meeting: Callable[[], None]
) -> None:
    unet.requires_grad_(False)
    expected = [predict(unet, task) for task in TASKS]
    meeting()
    for actual, alone in zip(in_threads(lambda task: predict(unet, task)), expected, strict=True):
        torch.testing.assert_close(actual, alone, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_two_threads_have_the_gradients_of_their_tasks(
    unet: MTUUNet2DConditionModel, meeting: Callable[[], None], checkpointing: bool
) -> None:
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    names = [name for name, _ in unet.named_parameters()]

    def gradients(task: str) -> dict[str, Tensor | None]:
        loss = predict(unet, task).square().mean()
        values = torch.autograd.grad(loss, list(unet.parameters()), allow_unused=True)
        return dict(zip(names, values, strict=True))

    expected = [gradients(task) for task in TASKS]
    meeting()
    for task, actual, alone in zip(TASKS, in_threads(gradients), expected, strict=True):
        other = next(name for name in TASKS if name != task)
        assert actual[f"conv_in.{other}.weight"] is None
        assert actual["task_embedding.weight"] is not None
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, alone[name], rtol=1e-5, atol=1e-8)


def test_the_backward_of_another_thread_recomputes_the_task_of_its_forward(
    unet: MTUUNet2DConditionModel,
) -> None:
    unet.train().enable_gradient_checkpointing()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, [unet.task_embedding.weight])[0]

    losses = [predict(unet, task).square().mean() for task in TASKS]
    expected = [gradient(predict(unet, task).square().mean()) for task in TASKS]
    with ThreadPoolExecutor(1) as pool:
        actual = [pool.submit(gradient, loss).result(WAIT_S) for loss in losses]
    for mine, alone in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, alone)


def test_a_task_inside_a_task(unet: MTUUNet2DConditionModel) -> None:
    """A copy runs another task while the first one runs; the first goes on with its own."""
    unet.requires_grad_(False)
    twin = copy.deepcopy(unet)
    first, second = (predict(unet, task) for task in TASKS)
    inner = []
    assert unet.mid_block is not None
    hook = unet.mid_block.register_forward_pre_hook(
        lambda *_: inner.append((predict(twin, TASKS[1]), twin.mid_block is unet.mid_block))
    )
    torch.testing.assert_close(predict(unet, TASKS[0]), first, rtol=0, atol=0)
    hook.remove()
    ((nested, same),) = inner
    assert not same
    torch.testing.assert_close(nested, second, rtol=0, atol=0)


def test_the_live_model_is_captured_and_stored(unet: MTUUNet2DConditionModel) -> None:
    unet.requires_grad_(False)
    for task in TASKS:
        channels = unet.config["in_channels"] + unet.task(task).channels
        graph = unet_graph(unet, unet.config, channels=channels, batch=1, latent=(8, 8), task=task)
        program = capture.capture("unet", {task: graph}).methods[task]
        actual = program.module()(*inputs(unet, task))
        torch.testing.assert_close(actual, predict(unet, task), rtol=1e-5, atol=1e-6)
    stream = io.BytesIO()
    torch.save(unet, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    torch.testing.assert_close(predict(again, "t2i"), predict(unet, "t2i"), rtol=0, atol=0)


def test_modules_of_no_task_say_so(unet: MTUUNet2DConditionModel) -> None:
    assert unet.mid_block is not None
    block: Any = unet.mid_block.attentions[0].transformer_blocks[0]  # type: ignore[index]
    for module in (block.ff, block.norm3):
        with pytest.raises(RuntimeError, match="no task is active"):
            module(torch.zeros(1, 2, 16))
    with unet.activate(unet.task("t2i")):
        assert block.ff(torch.zeros(1, 2, 16)).shape == (1, 2, 16)
    with pytest.raises(RuntimeError, match="no task is active"):
        block.ff(torch.zeros(1, 2, 16))
    assert isinstance(unet, mtu.MTUUNet2DConditionModel)


@pytest.mark.slow
def test_it_compiles_whole(unet: MTUUNet2DConditionModel) -> None:
    unet.requires_grad_(False)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    for task in TASKS:
        actual = compiled(*inputs(unet, task), task=task, return_dict=False)[0]
        torch.testing.assert_close(actual, predict(unet, task))
