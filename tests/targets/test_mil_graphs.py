"""Random small graphs, made with the MIL builder and with torch side by side, agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mtu_export.targets.coreml import mil

from .mil_packages import mb, save

NUMBER = itertools.count()
Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Node:
    """A value of both graphs: a MIL variable, and what torch makes of the same."""

    var: Any
    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


def _weights(draw: Draw, *shape: int) -> np.ndarray:
    seed = draw(st.integers(0, 2**16))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _axis(draw: Draw, node: Node) -> int:
    rank = len(node.shape)
    return draw(st.integers(-rank, rank - 1))


def unary(draw: Draw, a: Node, b: Node) -> Node:
    name, function = draw(
        st.sampled_from(
            [
                ("silu", F.silu),
                ("gelu", F.gelu),
                ("sigmoid", torch.sigmoid),
                ("tanh", torch.tanh),
                ("relu", F.relu),
                ("sin", torch.sin),
                ("abs", torch.abs),
            ]
        )
    )
    return Node(getattr(mb, name)(x=a.var), function(a.value))


def binary(draw: Draw, a: Node, b: Node) -> Node:
    name, function = draw(
        st.sampled_from(
            [
                ("add", torch.add),
                ("sub", torch.sub),
                ("mul", torch.mul),
                ("maximum", torch.maximum),
                ("minimum", torch.minimum),
            ]
        )
    )
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        b = a
    return Node(getattr(mb, name)(x=a.var, y=b.var), function(a.value, b.value))


def linear(draw: Draw, a: Node, b: Node) -> Node:
    if not 1 <= len(a.shape) <= 3:
        return a
    width = draw(st.integers(1, 6))
    weight, bias = _weights(draw, width, a.shape[-1]), _weights(draw, width)
    value = F.linear(a.value, torch.from_numpy(weight), torch.from_numpy(bias))
    return Node(mb.linear(x=a.var, weight=weight, bias=bias), value)


def matmul(draw: Draw, a: Node, b: Node) -> Node:
    if len(a.shape) < 2:
        return a
    if draw(st.booleans()):
        value = a.value @ a.value.mT
        return Node(mb.matmul(x=a.var, y=a.var, transpose_y=True), value)
    return Node(mb.matmul(x=a.var, y=a.var, transpose_x=True), a.value.mT @ a.value)


def conv(draw: Draw, a: Node, b: Node) -> Node:
    if len(a.shape) != 4:
        return a
    width, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3]))
    weight = _weights(draw, width, a.shape[1], size, size)
    pad, step = size // 2, draw(st.integers(1, 2))
    var = mb.conv(x=a.var, weight=weight, pad_type="custom", pad=[pad] * 4, strides=[step, step])
    return Node(var, F.conv2d(a.value, torch.from_numpy(weight), None, step, pad))


def transpose(draw: Draw, a: Node, b: Node) -> Node:
    perm = draw(st.permutations(range(len(a.shape))))
    return Node(mb.transpose(x=a.var, perm=perm), a.value.permute(perm))


def reshape(draw: Draw, a: Node, b: Node) -> Node:
    cut = draw(st.integers(0, len(a.shape)))
    shape = [int(np.prod(a.shape[:cut])), -1]
    return Node(mb.reshape(x=a.var, shape=shape), a.value.reshape(shape))


def expand(draw: Draw, a: Node, b: Node) -> Node:
    if len(a.shape) > 3:
        return a
    axis = draw(st.integers(0, len(a.shape)))
    return Node(mb.expand_dims(x=a.var, axes=[axis]), a.value.unsqueeze(axis))


def concat(draw: Draw, a: Node, b: Node) -> Node:
    axis, other = _axis(draw, a), Node(mb.square(x=a.var), a.value**2)
    value = torch.cat([a.value, other.value, a.value], axis)
    return Node(mb.concat(values=[a.var, other.var, a.var], axis=axis), value)


def cut(draw: Draw, a: Node, b: Node) -> Node:
    begin, end, places = [], [], []
    for size in a.shape:
        first = draw(st.integers(0, size - 1))
        last = draw(st.integers(first + 1, size))
        begin.append(first)
        end.append(last)
        places.append(slice(first, last))
    return Node(mb.slice_by_index(x=a.var, begin=begin, end=end), a.value[tuple(places)])


def split(draw: Draw, a: Node, b: Node) -> Node:
    axis = _axis(draw, a)
    if a.shape[axis] % 2:
        return a
    first, second = mb.split(x=a.var, num_splits=2, axis=axis)
    low, high = a.value.chunk(2, axis)
    return Node(mb.sub(x=first, y=second), low - high)


def softmax(draw: Draw, a: Node, b: Node) -> Node:
    axis = _axis(draw, a)
    return Node(mb.softmax(x=a.var, axis=axis), F.softmax(a.value, axis))


def mean(draw: Draw, a: Node, b: Node) -> Node:
    axis, keep = _axis(draw, a), draw(st.booleans()) or len(a.shape) == 1
    var = mb.reduce_mean(x=a.var, axes=[axis], keep_dims=keep)
    return Node(var, a.value.mean(axis, keepdim=keep))


def norm(draw: Draw, a: Node, b: Node) -> Node:
    size = a.shape[-1:]
    gamma, beta = _weights(draw, *size), _weights(draw, *size)
    # A wide epsilon: rows of equal values would amplify the last bit otherwise.
    var = mb.layer_norm(x=a.var, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float32(0.125))
    value = F.layer_norm(a.value, size, torch.from_numpy(gamma), torch.from_numpy(beta), 0.125)
    return Node(var, value)


def gather(draw: Draw, a: Node, b: Node) -> Node:
    axis = _axis(draw, a)
    places = draw(st.lists(st.integers(0, a.shape[axis] - 1), min_size=1, max_size=4))
    value = a.value.index_select(axis, torch.tensor(places))
    var = mb.gather(x=a.var, indices=np.array(places, np.int32), axis=axis)
    return Node(var, value)


STEPS = [unary, binary, linear, matmul, conv, transpose, reshape, expand, concat, cut, split]
STEPS += [softmax, mean, norm, gather]


@pytest.mark.slow
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_evaluator_and_torch_agree_on_random_graphs(data: st.DataObject, tmp_path: Path) -> None:
    opset = data.draw(st.sampled_from([6, 7, 8]))
    shape = (1, *data.draw(st.tuples(*[st.integers(1, 5)] * 3)))
    x = _weights(data.draw, *shape)
    nodes: list[Node] = []
    kinds = data.draw(st.lists(st.sampled_from(STEPS), min_size=12, max_size=24))

    def build(placeholder: Any) -> list[Any]:
        nodes.append(Node(placeholder, torch.from_numpy(x)))
        for kind in kinds:
            recent = nodes[-6:]
            a, b = data.draw(st.sampled_from(recent)), data.draw(st.sampled_from(recent))
            node = kind(data.draw, a, b)
            if node is not a and node.value.numel() < 4096 and node.value.abs().max() < 1e3:
                nodes.append(node)
        stored = mb.const(val=np.zeros(64, np.float32))
        return [*(node.var for node in nodes[1:]), mb.square(x=stored)]

    path = save(tmp_path / f"Graph{next(NUMBER)}.mlpackage", {"x": x}, build, opset)
    actual = list(mil.open(path, "main")({"x": x}).values())
    for got, node in zip(actual[:-1], nodes[1:], strict=True):
        want = node.value.numpy()
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-4 * max(1, np.abs(want).max())
