"""The cases of ``loops.json``: tasks and requests."""

from __future__ import annotations

from itertools import product
from typing import Any

from benchmarks.vectors.loop_parts import (
    ANCESTRAL,
    DECODE,
    ENCODE,
    EULER,
    HIDDEN,
    IMAGE,
    PART,
    PART_NOISE,
    PLAIN,
    PNDM,
    TIMESTEP,
    Json,
    call,
    draw,
    flow,
    output,
    source,
    text,
    value,
)

NONE = {"kind": "none"}
TEXT = {"kind": "text", "text": 3.5}
BOTH = {"kind": "text_image", "text": 3.5, "image": 1.5}


def case(
    name: str, flow_: Json, scales: Json, steps: int | None, inputs: Json, **request: Any
) -> Json:
    """A task and a request of it; ``prompted`` is False where no call has tokens."""
    fields: Json = {"prompt": "prompt"} if request.pop("prompted", True) else {}
    if steps is not None:
        fields["steps"] = steps
    if request.pop("negative", False):
        fields["negative_prompt"] = "negative"
    task: Json = {"name": "task", "guidance": scales, "steps": steps or 1}
    if "strength" in request:
        task["strength"] = request["strength"]
    return {
        "name": name,
        "task": {**task, "inputs": inputs, "flow": flow_},
        "request": fields | request,
    }


def edits() -> list[Json]:
    """Guidance of every kind in batches of 1 to 4, tables and negative prompts in turn."""
    cases = []
    tables = (PLAIN, PNDM, EULER, ANCESTRAL)
    for i, (guidance, batch) in enumerate(product((NONE, TEXT, BOTH), (1, 2, 3, 4))):
        denoise = call(
            "pass",
            "denoise",
            f"edit_{batch}",
            sample=value(
                source("latent"),
                output("encode", "moments", multiply=0.7, only="image"),
                axis=1,
            ),
            timestep=TIMESTEP,
            text=HIDDEN,
        )
        negative = guidance is not NONE and i % 2 == 1
        name = f"{guidance['kind']} in batches of {batch}" + ", negative" * negative
        steps = tables[(i + i // 4) % 4]
        flow_ = flow(text(), ENCODE, denoise, DECODE)
        cases.append(case(name, flow_, guidance, steps, IMAGE, negative=negative))
    return cases


EVERY = flow(
    text(),
    text("text_2", "text_2", "open"),
    call("once", "outside", "encoder", sample=source("picture", "image", outside="mask")),
    call(
        "pass",
        "denoise",
        "every",
        sample=value(
            source("latent", multiply=0.9),
            source("picture", "mask", every=2),
            output("outside", "moments", only="image"),
            source("picture", "image", mean=2, only="image", divide=2.0),
            axis=1,
        ),
        timestep=TIMESTEP,
        features=source("column", "features", multiply=1.5),
        gain=source("column", "gain", only="prompt"),
        text=value(
            output("text", "hidden"), output("text_2", "hidden"), axis=2, empty="empty_joined"
        ),
        pooled=output("text_2", "pooled", only="prompt"),
        sizes=value(source("constant", "sizes"), source("tensor", "label"), axis=1),
        strength=source("number", "amount"),
        label=source("tensor", "label", only="image"),
    ),
    DECODE,
)
EVERY_INPUTS = {
    "pictures": {"image": {"kind": "picture"}, "mask": {"kind": "mask"}},
    "tensors": {"label": {"shape": [1, 5]}},
    "numbers": {"amount": {"default": 0.5, "minimum": 0, "maximum": 2}},
}
CONTROL = flow(
    text(),
    call("once", "read", "reader", hint=source("picture", "hint")),
    call(
        "pass",
        "control",
        "control",
        sample=source("latent"),
        timestep=TIMESTEP,
        hint=output("read", "features", only="image"),
        scale=source("number", "amount"),
    ),
    call(
        "pass",
        "denoise",
        "controlled",
        sample=source("latent"),
        timestep=TIMESTEP,
        text=HIDDEN,
        down=output("control", "down"),
        mid=output("control", "mid", multiply=0.8),
    ),
    DECODE,
)
CONTROL_INPUTS = {
    "pictures": {"hint": {"kind": "picture", "range": "0..1"}},
    "numbers": {"amount": {"default": 1, "minimum": 0, "maximum": 2}},
}
REFINED = flow(
    text(),
    draw(2),
    call(
        "guided",
        "refine",
        "refiner",
        m=source("guided", multiply=0.5),
        x=source("latent"),
        gain=source("column", "gain"),
        text=output("text", "hidden"),
    ),
    call(
        "guided",
        "smooth",
        "smoother",
        middle=output("refine", "middle"),
        m=source("guided"),
    ),
    DECODE,
    refined={"call": "smooth", "name": "out"},
)
CLOCKED = flow(
    text(),
    call("pass", "clock", "clock", timestep=TIMESTEP, latent=source("latent")),
    call(
        "pass",
        "denoise",
        "clocked",
        sample=source("latent"),
        time=output("clock", "embedding"),
        text=HIDDEN,
    ),
    DECODE,
)
PAINTED = flow(
    text(),
    draw(1),
    call("end", "enlarge", "upscaler", latent=source("latent")),
    call(
        "end",
        "decode",
        "painter",
        large=output("enlarge", "large"),
        picture=source("picture", "image"),
        mask=source("picture", "mask"),
    ),
)
PAINTED_INPUTS = {"pictures": EVERY_INPUTS["pictures"]}
TRANSLATED = flow(
    text("words"),
    call(
        "once",
        "decode",
        "translator",
        picture=value(source("picture", "image"), source("picture", "depth"), axis=1),
        text=output("words", "hidden"),
    ),
    prediction=None,
)
TRANSLATED_INPUTS = {
    "pictures": {"image": {"kind": "picture"}, "depth": {"kind": "grey", "range": "0..1"}}
}
STARTED = flow(text(), ENCODE, draw(2), DECODE, start=output("encode", "moments", multiply=0.8))
STARTED_ALONE = flow(text(), draw(1), DECODE, start=source("constant", "start"))
SAME = flow(text(), draw(2, text=value(output("text", "hidden"))), DECODE)
DRAWN = flow(text(), draw(2), DECODE)
FIXED = flow(draw(3, text=value(source("constant", "empty_text", multiply=0.5))), DECODE)
OFF = {"kind": "text_image", "text": 3.5, "image": 0.5}

CASES = [
    *edits(),
    case("every kind of source", EVERY, BOTH, PNDM, EVERY_INPUTS),
    case(
        "every kind of source, negative",
        EVERY,
        BOTH,
        ANCESTRAL,
        EVERY_INPUTS,
        negative=True,
        numbers={"amount": 1.75},
    ),
    case("start from a picture", STARTED, TEXT, PART, IMAGE, strength=0.5, negative=True),
    case("start and noise", STARTED, TEXT, PART_NOISE, IMAGE, strength=0.25),
    case("start from a constant", STARTED_ALONE, NONE, PART, {}, strength=0.5),
    case("residuals of a hint", CONTROL, BOTH, EULER, CONTROL_INPUTS),
    case(
        "residuals of a hint, a number set",
        CONTROL,
        TEXT,
        PLAIN,
        CONTROL_INPUTS,
        numbers={"amount": 0.25},
        negative=True,
    ),
    case("parts on the guided sum", REFINED, TEXT, PNDM, {}),
    case("one output for all branches", CLOCKED, TEXT, EULER, {}),
    case("two end calls", PAINTED, NONE, PLAIN, PAINTED_INPUTS),
    case("no loop", TRANSLATED, NONE, None, TRANSLATED_INPUTS),
    case("no empty constant", SAME, TEXT, PLAIN, {}),
    case("no empty constant, negative", SAME, TEXT, PLAIN, {}, negative=True),
    case("no prompt", FIXED, TEXT, PLAIN, {}, prompted=False),
    case("text scale of at most 1", DRAWN, TEXT, PLAIN, {}, guidance={"kind": "text", "text": 0.5}),
    case("image scale below 1", REFINED, BOTH, PLAIN, {}, guidance=OFF, negative=True),
]
"""What each reader runs; names are for people."""
