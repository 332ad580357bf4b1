"""What a loop begins from and what is made of its last latent; a flow without a loop."""

from __future__ import annotations

import numpy as np

from tests.bundle.test_evaluation import (
    DECODE,
    DENOISE,
    ENCODE,
    HIDDEN,
    IMAGE,
    NONE,
    PREDICTION,
    STEP,
    Recorder,
    X,
    call,
    denoiser_inputs,
    encode,
    encoded,
    evaluation,
    prepared,
    value,
)


def test_the_start_is_a_source_of_once_calls() -> None:
    encoder = call("image", "once", a=value({"kind": "picture", "name": "image"}))
    net = call("net", "pass", sample=value({"kind": "latent"}))
    asked = evaluation(
        {"image": {"a": IMAGE.shape}, "net": {"sample": X.shape}, "decoder": {"latent": X.shape}},
        *(encoder, net, DECODE),
        prediction=PREDICTION,
        start={"kind": "output", "call": "image", "name": "y", "multiply": 0.18215},
    )
    asked.run_once(asked.flow.calls[0], Recorder(X))
    np.testing.assert_array_equal(asked.start(), X * np.float32(0.18215))
    assert prepared(1, NONE).start() is None


def test_end_calls_take_the_last_latent_and_what_was_made_once() -> None:
    first = call("first", "end", latent=value({"kind": "latent", "divide": 0.5}))
    output = {"kind": "output", "call": "first", "name": "y"}
    last = call("last", "end", a=value(output), words=value(HIDDEN))
    asked = evaluation(
        {
            **{"text": {"ids": (1, 1)}, "net": denoiser_inputs(1)},
            **{"first": {"latent": X.shape}, "last": {"a": X.shape, "words": (1, 5)}},
        },
        *(ENCODE, DENOISE, first, last),
        prediction=PREDICTION,
    )
    asked.run_once(asked.flow.calls[0], encode)
    sessions = {"first": Recorder(X + 1), "last": Recorder(IMAGE)}
    np.testing.assert_array_equal(asked.picture(X, sessions.__getitem__), IMAGE)
    np.testing.assert_array_equal(sessions["first"].asked[0]["latent"], X / np.float32(0.5))
    np.testing.assert_array_equal(sessions["last"].asked[0]["a"], X + 1)
    np.testing.assert_array_equal(sessions["last"].asked[0]["words"], encoded("a red cat"))


def test_a_flow_without_a_loop_is_its_once_calls() -> None:
    first = call("first", "once", a=value({"kind": "picture", "name": "image"}))
    last = call("last", "once", a=value({"kind": "output", "call": "first", "name": "y"}))
    shape = {"a": IMAGE.shape}
    asked = evaluation({"first": shape, "last": shape}, first, last)
    asked.run_once(asked.flow.calls[0], lambda inputs: {"y": inputs["a"] * 2})
    asked.run_once(asked.flow.calls[1], lambda inputs: {"y": inputs["a"] + 1})
    np.testing.assert_array_equal(asked.picture(None, {}.__getitem__), IMAGE * 2 + 1)


def test_columns_of_vectors_are_joined() -> None:
    """Each is [1, n], whatever the shape of the input that they make together."""
    angles = {"kind": "column", "name": "angles"}
    net = call("net", "pass", both=value(angles, {**angles, "multiply": 2}, axis=1))
    specs = {"net": {"both": (1, 6)}, "decoder": {"latent": X.shape}}
    asked = evaluation(specs, net, DECODE, prediction=PREDICTION)
    session = Recorder(X)
    asked.denoiser({"net": session})(X, STEP)
    assert session.asked[0]["both"].tolist() == [[0.25, 0.5, 0.75, 0.5, 1.0, 1.5]]
