"""The evaluation of a flow on closed-form sessions: what each input of each call gets, by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bundle import images, sampler
from mtu_export.bundle.evaluation import Evaluation, Request
from mtu_export.spec import Arrays, Guidance, Pass, PlanError, TensorSpec
from mtu_export.spec.flow import Flow, Inputs

SIZE, CELLS = (16, 24), (2, 3)
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)
LABELS = RANDOM.uniform(-1, 1, (1, 2, *SIZE)).astype(np.float32)
MASK = np.zeros((1, 1, *SIZE), np.float32)
MASK[..., 3:, 5:] = 1
X = sampler.noise((1, 4, *CELLS), 3)
STEP = Pass(
    timestep=981.0,
    input_scale=0.5,
    x=(1.0, 0, 0, 0),
    m=(0.0, 0, 0, 0),
    features={"angles": (0.25, 0.5, 0.75)},
)
WORDS = {"a red cat": 0.25, "blurred": -2.0}
"""Ids of prompts; the closed-form text encoder repeats them."""
EMPTY = np.full((1, 5), -1.0, np.float32)
NONE = Guidance(kind="none")
TEXT = Guidance(kind="text", text=7.5)
BOTH = Guidance(kind="text_image", text=7.5, image=1.5)
GUIDANCE = st.sampled_from([NONE, TEXT, BOTH])
INPUTS = {
    "pictures": {"image": {"kind": "picture"}, "grey": {"kind": "grey"}, "mask": {"kind": "mask"}},
    "tensors": {"labels": {"shape": [1, 2, *SIZE]}},
    "numbers": {"amount": {"default": 0.5, "minimum": 0.0, "maximum": 1.0}},
}
Specs = Mapping[str, Mapping[str, tuple[int, ...]]]


def value(*sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"sources": list(sources), **more}


def call(part: str, when: str, **inputs: dict[str, Any]) -> dict[str, Any]:
    return {"id": part, "part": part, "when": when, "inputs": inputs}


def evaluation(
    specs: Specs, *calls: dict[str, Any], guidance: Guidance = NONE, **more: Any
) -> Evaluation:
    """The evaluation of calls whose parts have these inputs; ``more`` is of flow and request."""
    flow = {"picture": {"call": calls[-1]["id"], "name": "y"}, "calls": calls}
    flow |= {key: more.pop(key) for key in ("prediction", "refined", "start") if key in more}
    request = {"prompt": "a red cat", "noise": None, "steps": 1, "tensors": {"labels": LABELS}}
    request |= {"pictures": {"image": IMAGE, "grey": IMAGE[:, 1:2], "mask": MASK}, **more}
    return Evaluation(
        Flow.model_validate_json(json.dumps(flow)),
        Inputs.model_validate_json(json.dumps(INPUTS)),
        {
            part: [TensorSpec(name=name, shape=shape) for name, shape in inputs.items()]
            for part, inputs in specs.items()
        },
        {"empty": EMPTY, "sizes": np.full((1, 2), 64, np.float32)},
        guidance,
        Request(**request),
        lambda _, text: np.array([[WORDS[text]]], np.float32),
    )


class Recorder:
    """A session that keeps what it is asked and gives an array for each call."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self.outputs, self.asked = list(outputs), list[Arrays]()

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.asked.append(inputs)
        return {"y": self.outputs[min(len(self.asked), len(self.outputs)) - 1]}


# ------------------------------------------------------------------------------------- sources


def source_of(source: dict[str, Any], shape: tuple[int, ...], **request: Any) -> np.ndarray:
    """What a source gives to an input of this shape in a call that is made once."""
    asked = evaluation({"p": {"a": shape}}, call("p", "once", a=value(source)), **request)
    return asked.call_inputs(asked.flow.calls[0])["a"]


def test_a_picture_is_taken_as_it_is_outside_a_mask_at_every_pixel_or_as_means() -> None:
    image = {"kind": "picture", "name": "image"}
    np.testing.assert_array_equal(source_of(image, IMAGE.shape), IMAGE)
    outside = source_of({**image, "outside": "mask"}, IMAGE.shape)
    np.testing.assert_array_equal(outside[..., :3, :], IMAGE[..., :3, :])
    np.testing.assert_array_equal(outside[..., :, :5], IMAGE[..., :, :5])
    assert not outside[..., 3:, 5:].any()
    every = source_of({**image, "every": 8}, (1, 3, *CELLS))
    np.testing.assert_array_equal(every, IMAGE[..., [0, 8], :][..., [0, 8, 16]])
    mean = source_of({**image, "mean": 8}, (1, 3, *CELLS))
    for row in range(2):
        for column in range(3):
            cell = IMAGE[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = [np.mean(channel.astype(np.float64)) for channel in cell]
            np.testing.assert_array_equal(mean[0, :, row, column], np.array(expected, np.float32))
    both = source_of({**image, "outside": "mask", "mean": 8}, (1, 3, *CELLS))
    np.testing.assert_array_equal(both, images.cell_means(IMAGE * (MASK < 0.5), 8))
    mask = source_of({"kind": "picture", "name": "mask", "every": 8}, (1, 1, *CELLS))
    np.testing.assert_array_equal(mask[0, 0], [[0, 0, 0], [0, 1, 1]])


def test_tensors_numbers_and_constants() -> None:
    np.testing.assert_array_equal(source_of({"kind": "tensor", "name": "labels"}, (1, 2)), LABELS)
    number = {"kind": "number", "name": "amount"}
    assert source_of(number, (1, 2, 2)).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    filled = source_of({**number, "multiply": 4}, (1,), numbers={"amount": 0.25})
    assert (filled.tolist(), filled.dtype) == ([1.0], np.float32)
    assert source_of({"kind": "constant", "name": "sizes"}, (1, 2)).tolist() == [[64, 64]]
    assert source_of({"kind": "tokens", "tokenizer": "t"}, (1, 1)).tolist() == [[0.25]]


@settings(max_examples=50, deadline=None)
@given(factor=st.floats(1e-6, 1e6))
def test_multiply_and_divide_are_one_operation_of_float32(factor: float) -> None:
    labels, wide = {"kind": "tensor", "name": "labels"}, LABELS.astype(np.float64)
    rounded = float(np.float32(factor))
    product = source_of({**labels, "multiply": factor}, LABELS.shape)
    np.testing.assert_array_equal(product, (wide * rounded).astype(np.float32))
    quotient = source_of({**labels, "divide": factor}, LABELS.shape)
    np.testing.assert_array_equal(quotient, (wide / rounded).astype(np.float32))
    assert product.dtype == quotient.dtype == np.float32


def test_sources_are_joined_along_an_axis_in_their_order() -> None:
    names = ("mask", "image", "grey")
    sources = [{"kind": "picture", "name": name} for name in names]
    asked = evaluation({"p": {"a": (1, 5, *SIZE)}}, call("p", "once", a=value(*sources, axis=1)))
    joined = asked.call_inputs(asked.flow.calls[0])["a"]
    np.testing.assert_array_equal(joined, np.concatenate([MASK, IMAGE, IMAGE[:, 1:2]], 1))


@pytest.mark.parametrize("kind", ["picture", "tensor"])
def test_what_the_request_lacks_is_named(kind: str) -> None:
    name = {"picture": "image", "tensor": "labels"}[kind]
    with pytest.raises(PlanError, match=f"the request has no '{name}', which the task needs"):
        source_of({"kind": kind, "name": name}, (1,), **{f"{kind}s": {}})


# ------------------------------------------------------------------------------------ once calls

ENCODE = call("text", "once", ids=value({"kind": "tokens", "tokenizer": "t"}))
HIDDEN = {"kind": "output", "call": "text", "name": "y"}


def encoded(prompt: str) -> np.ndarray:
    return np.full((1, 5), WORDS[prompt], np.float32)


def encode(inputs: Arrays) -> dict[str, np.ndarray]:
    return {"y": np.repeat(inputs["ids"], 5, 1)}


@pytest.mark.parametrize(
    ("guidance", "negative", "texts"),
    [
        (NONE, None, ["a red cat"]),
        (TEXT, None, ["a red cat"]),
        (TEXT, "blurred", ["a red cat", "blurred"]),
        (BOTH, "blurred", ["a red cat", "blurred"]),
        (Guidance(kind="text", text=1.0), "blurred", ["a red cat"]),
    ],
)
def test_calls_that_depend_on_the_prompt_are_made_again_for_the_negative_one(
    guidance: Guidance, negative: str | None, texts: list[str]
) -> None:
    """And those that depend on such calls; where guidance is off, it is not looked at."""
    longer = {"id": "more", "part": "more", "when": "once", "inputs": {"a": value(HIDDEN)}}
    encoder = call("image", "once", a=value({"kind": "picture", "name": "image"}))
    asked = evaluation(
        {"text": {"ids": (1, 1)}, "more": {"a": (1, 5)}, "image": {"a": IMAGE.shape}},
        *(ENCODE, longer, encoder),
        guidance=guidance,
        negative_prompt=negative,
    )
    more, image = Recorder(X), Recorder(X)
    for once, session in zip(asked.flow.calls, (encode, more, image), strict=True):
        asked.run_once(once, session)
    for inputs, text in zip(more.asked, texts, strict=True):
        np.testing.assert_array_equal(inputs["a"], encoded(text))
    assert len(image.asked) == 1


# ---------------------------------------------------------------------------------------- passes


def denoiser_inputs(batch: int) -> dict[str, tuple[int, ...]]:
    return {
        "sample": (batch, 7, *CELLS),
        "timestep": (1,),
        "angles": (batch, 3),
        "words": (batch, 5),
        "sizes": (1, 2),
    }


DENOISE = call(
    "net",
    "pass",
    sample=value(
        {"kind": "latent"},
        {"kind": "picture", "name": "image", "mean": 8, "only": "image", "multiply": 2},
        axis=1,
    ),
    timestep=value({"kind": "column", "name": "timestep"}),
    angles=value({"kind": "column", "name": "angles"}),
    words=value(HIDDEN, empty="empty"),
    sizes=value({"kind": "constant", "name": "sizes"}),
)
PREDICTION = {"call": "net", "name": "y"}
DECODE = call("decoder", "end", latent=value({"kind": "latent", "divide": 0.5}))


def denoise(inputs: Arrays) -> dict[str, np.ndarray]:
    """Linear in all that it is given."""
    channels = inputs["sample"][:, :4] + inputs["sample"][:, 4:].sum((1, 2, 3), keepdims=True)
    words = inputs["words"].mean(1).reshape(-1, 1, 1, 1)
    return {"y": (channels + words).astype(np.float32)}


def prepared(batch: int, guidance: Guidance, negative: str | None = None) -> Evaluation:
    asked = evaluation(
        {"text": {"ids": (1, 1)}, "net": denoiser_inputs(batch), "decoder": {"latent": X.shape}},
        *(ENCODE, DENOISE, DECODE),
        guidance=guidance,
        negative_prompt=negative,
        prediction=PREDICTION,
    )
    asked.run_once(asked.flow.calls[0], encode)
    return asked


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 5), guidance=GUIDANCE, negative=st.sampled_from([None, "blurred"]))
def test_any_batch_gives_what_one_branch_after_the_other_gives(
    batch: int, guidance: Guidance, negative: str | None
) -> None:
    """The prediction by hand, and the inputs of every chunk."""
    asked: list[Arrays] = []

    def session(inputs: Arrays) -> dict[str, np.ndarray]:
        asked.append(inputs)
        return denoise(inputs)

    m = prepared(batch, guidance, negative).denoiser({"net": session})(X, STEP)
    means = 2 * images.cell_means(IMAGE, 8)
    unprompted = EMPTY if negative is None else encoded(negative)
    branches = sampler.branches(guidance)
    words = [encoded("a red cat") if branch.text else unprompted for branch in branches]
    pictures = [means * branch.image for branch in branches]
    outputs = [
        X + picture.sum(dtype=np.float64) + text.mean()
        for picture, text in zip(pictures, words, strict=True)
    ]
    np.testing.assert_allclose(m, sampler.guide(guidance, outputs), rtol=1e-4, atol=1e-4)
    assert len(asked) == -(-guidance.passes // batch)
    for chunk, inputs in enumerate(asked):
        assert {name: array.shape for name, array in inputs.items()} == denoiser_inputs(batch)
        assert inputs["timestep"].tolist() == [981]
        assert inputs["angles"].tolist() == [[0.25, 0.5, 0.75]] * batch
        assert all(array.dtype == np.float32 for array in inputs.values())
        for row in range(batch):
            branch = min(chunk * batch + row, len(branches) - 1)
            np.testing.assert_array_equal(inputs["sample"][row, :4], X[0])
            np.testing.assert_array_equal(inputs["sample"][row, 4:], pictures[branch][0])
            np.testing.assert_array_equal(inputs["words"][row], words[branch][0])


@pytest.mark.parametrize(("only", "kept"), [("prompt", (0, 0, 1)), ("image", (0, 1, 1))])
@pytest.mark.parametrize("negative", [None, "blurred"])
def test_only_is_zeros_in_the_other_branches(
    only: str, kept: tuple[int, ...], negative: str | None
) -> None:
    """Whatever the text is: ``only`` looks at the branch."""
    labels = {"kind": "tensor", "name": "labels", "only": only}
    hidden = {**HIDDEN, "only": only}
    net = call("net", "pass", labels=value(labels), hidden=value(hidden))
    shapes = {"labels": (3, *LABELS.shape[1:]), "hidden": (3, 5)}
    asked = evaluation(
        {"text": {"ids": (1, 1)}, "net": shapes, "decoder": {"latent": X.shape}},
        *(ENCODE, net, DECODE),
        guidance=BOTH,
        negative_prompt=negative,
        prediction=PREDICTION,
    )
    asked.run_once(asked.flow.calls[0], encode)
    session = Recorder(np.repeat(X, 3, 0))
    asked.denoiser({"net": session})(X, STEP)
    (inputs,) = session.asked
    texts = [negative or "a red cat"] * 2 + ["a red cat"]
    for row, keep in enumerate(kept):
        np.testing.assert_array_equal(inputs["labels"][row], keep * LABELS[0])
        np.testing.assert_array_equal(inputs["hidden"][row], keep * encoded(texts[row])[0])


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 4), guidance=GUIDANCE)
def test_residuals_of_one_pass_call_feed_another_branch_by_branch(
    batch: int, guidance: Guidance
) -> None:
    """As a ControlNet's do: the network's input of a branch is the residual of that branch."""
    control = call("control", "pass", words=value(HIDDEN, empty="empty"))
    residual = {"kind": "output", "call": "control", "name": "y", "multiply": 0.5}
    net = call("net", "pass", sample=value({"kind": "latent"}), residual=value(residual))
    asked = evaluation(
        {
            "text": {"ids": (1, 1)},
            "control": {"words": (batch, 5)},
            "net": {"sample": (batch, *X.shape[1:]), "residual": (batch, 1, 1, 1)},
            "decoder": {"latent": X.shape},
        },
        *(ENCODE, control, net, DECODE),
        guidance=guidance,
        prediction=PREDICTION,
    )
    asked.run_once(asked.flow.calls[0], encode)
    sessions = {
        "control": lambda inputs: {"y": inputs["words"].mean(1).reshape(-1, 1, 1, 1)},
        "net": lambda inputs: {"y": inputs["sample"] + inputs["residual"]},
    }
    words = [0.25 if branch.text else -1.0 for branch in sampler.branches(guidance)]
    expected = sampler.guide(guidance, [X + np.float32(0.5 * word) for word in words])
    np.testing.assert_allclose(asked.denoiser(sessions)(X, STEP), expected, atol=1e-5)


def test_a_guided_call_takes_the_sum_and_its_output_the_place_of_it() -> None:
    refine = call(
        "side",
        "guided",
        m=value({"kind": "guided"}),
        x=value({"kind": "latent"}),
        t=value({"kind": "column", "name": "timestep"}),
        words=value(HIDDEN),
    )
    shapes = {"m": X.shape, "x": X.shape, "t": (1, 1), "words": (1, 5)}
    specs = {"text": {"ids": (1, 1)}, "net": denoiser_inputs(2), "side": shapes}
    asked = evaluation(
        {**specs, "decoder": {"latent": X.shape}},
        *(ENCODE, DENOISE, refine, DECODE),
        guidance=TEXT,
        negative_prompt="blurred",
        prediction=PREDICTION,
        refined={"call": "side", "name": "y"},
    )
    asked.run_once(asked.flow.calls[0], encode)
    side = Recorder(X + 9)
    m = asked.denoiser({"net": denoise, "side": side})(X, STEP)
    np.testing.assert_array_equal(m, X + 9)
    (inputs,) = side.asked
    plain = prepared(1, TEXT, "blurred").denoiser({"net": denoise})(X, STEP)
    np.testing.assert_allclose(inputs["m"], plain, rtol=1e-6)
    np.testing.assert_array_equal(inputs["x"], X)
    assert inputs["t"].tolist() == [[981]]
    np.testing.assert_array_equal(inputs["words"], encoded("a red cat"))
