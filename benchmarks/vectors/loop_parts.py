"""What the cases of ``loops.json`` share: tables, parts of closed form, shorthand for flows."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
LATENT = [1, 2, 2, 3]
PICTURE = [1, 3, 4, 6]
TOKENIZERS = [
    {"path": path, "bos": 0, "eos": 99, "pad": 99, "length": length}
    for path, length in (("clip", 8), ("open", 5))
]


# ---------------------------------------------------------------------------------------- tables


def step(
    timestep: float,
    x: list[float],
    m: list[float],
    input_scale: float = 1.0,
    noise: float = 0.0,
) -> Json:
    """One pass of a table."""
    features = [round(timestep / 500 - 1, 3), 0.25, -0.5]
    columns = {"timestep": timestep, "gain": round(1 - timestep / 2000, 4), "features": features}
    coefficients = {key: (values + [0.0] * 4)[:4] for key, values in (("x", x), ("m", m))}
    return {"columns": columns, "input_scale": input_scale, **coefficients, "noise": noise}


def table(
    steps: int, passes: list[Json], start: tuple[float, float], strength: float | None = None
) -> Json:
    """A table; ``start`` are the factors of noise and picture."""
    key: Json = {"steps": steps} | ({} if strength is None else {"strength": strength})
    return {**key, "start": {"noise": start[0], "picture": start[1]}, "passes": passes}


PLAIN, PNDM, EULER, ANCESTRAL, PART, PART_NOISE = 2, 3, 5, 6, 4, 7
SCHEDULES = [
    table(PLAIN, [step(751, [0.9], [-0.4]), step(251, [0.7, 0.2], [-0.5, 0.15])], (1, 0)),
    table(  # one pass more than steps; the last looks back as far as it can
        PNDM,
        [
            step(901, [1.2], [-0.7]),
            step(601, [0, 1.2], [-0.35, -0.35]),
            step(601, [1.1], [-0.8, 0, 0.25]),
            step(301, [0.5, 0.4, 0.1, 0.05], [-0.6, 0.1, 0.2, -0.05]),
        ],
        (1, 0),
    ),
    table(  # several sigmas, fractional timesteps
        EULER,
        [
            step(999, [0.3], [-5.5], 0.0682673),
            step(500.5, [0.35], [-1.25], 0.3123475),
            step(10.25, [0.6], [-0.6], 0.5299989),
        ],
        (14.614641, 0),
    ),
    table(
        ANCESTRAL,
        [
            step(999, [0.3], [-3.5], 0.125, 1.5),
            step(499, [0.35], [-1.5], 0.4, 0.75),
            step(0, [0.7], [-0.8], 0.8, 0),
        ],
        (8.25, 0),
    ),
    table(PART, [step(401, [0.9], [-0.3]), step(1, [0.8], [-0.2, 0.1])], (0.55, 0.835), 0.5),
    table(
        PART_NOISE,
        [step(201, [0.95], [-0.4], 1, 0.3), step(1, [0.9], [-0.2], 0.9, 0.1)],
        (0.4, 0.9165),
        0.25,
    ),
]


# ----------------------------------------------------------------------------------------- parts


def part(name: str, inputs: Json, outputs: Json) -> Json:
    """A part of closed form; ``inputs`` name to (shape, weight), ``outputs`` name to shape."""
    return {
        "name": name,
        "inputs": [
            {
                "name": key,
                "shape": shape,
                "dtype": "int32" if key == "ids" else "float32",
                "weight": weight,
            }
            for key, (shape, weight) in inputs.items()
        ],
        "outputs": [
            {"name": key, "shape": shape, "dtype": "float32"} for key, shape in outputs.items()
        ],
    }


def denoisers(batch: int) -> list[Json]:
    """The denoisers of one batch: of an edit, of text alone."""
    latent = [batch, *LATENT[1:]]
    text = ([batch, 4, 3], 1.0)
    return [
        part(
            f"edit_{batch}",
            {"sample": ([batch, 4, *LATENT[2:]], 0.6), "timestep": ([1], 1e-3), "text": text},
            {"out": latent},
        ),
        part(
            f"draw_{batch}",
            {"sample": (latent, 0.7), "timestep": ([batch], 1e-3), "text": text},
            {"out": latent},
        ),
    ]


PARTS = [
    part("text", {"ids": ([1, 8], 0.01)}, {"hidden": [1, 4, 3]}),
    part("text_2", {"ids": ([1, 5], 0.02)}, {"hidden": [1, 4, 3], "pooled": [1, 5]}),
    part("encoder", {"sample": (PICTURE, 0.4)}, {"moments": LATENT}),
    part("decoder", {"latent": (LATENT, 0.3)}, {"sample": PICTURE}),
    *denoisers(1),
    *denoisers(2),
    *denoisers(3),
    *denoisers(4),
    part(
        "every",  # an input of every kind of source, in a batch of 2
        {
            "sample": ([2, 8, *LATENT[2:]], 0.3),
            "timestep": ([2], 1e-3),
            "features": ([2, 3], 0.3),
            "gain": ([2, 2], 0.2),
            "text": ([2, 4, 6], 0.3),
            "pooled": ([2, 5], 0.3),
            "sizes": ([1, 11], 0.2),
            "strength": ([1, 2], 0.5),
            "label": ([2, 5], 0.3),
        },
        {"out": [2, *LATENT[1:]]},
    ),
    part("reader", {"hint": (PICTURE, 0.2)}, {"features": [1, 3, *LATENT[2:]]}),
    part(
        "control",
        {
            "sample": ([3, *LATENT[1:]], 0.4),
            "timestep": ([3], 1e-3),
            "hint": ([3, 3, *LATENT[2:]], 0.3),
            "scale": ([3, 1], 0.5),
        },
        {"down": [3, 2, 2, 3], "mid": [3, 4]},
    ),
    part(
        "controlled",
        {
            "sample": ([3, *LATENT[1:]], 0.5),
            "timestep": ([1], 1e-3),
            "text": ([3, 4, 3], 0.3),
            "down": ([3, 2, 2, 3], 0.6),
            "mid": ([3, 4], 0.6),
        },
        {"out": [3, *LATENT[1:]]},
    ),
    part("clock", {"timestep": ([1], 2e-3), "latent": (LATENT, 0.1)}, {"embedding": [1, 6]}),
    part(
        "clocked",
        {"sample": ([2, *LATENT[1:]], 0.6), "time": ([2, 6], 0.5), "text": ([2, 4, 3], 0.4)},
        {"out": [2, *LATENT[1:]]},
    ),
    part(
        "refiner",
        {"m": (LATENT, 0.9), "x": (LATENT, 0.2), "gain": ([1, 1], 0.3), "text": ([1, 4, 3], 0.2)},
        {"middle": LATENT},
    ),
    part("smoother", {"middle": (LATENT, 0.9), "m": (LATENT, 0.3)}, {"out": LATENT}),
    part("upscaler", {"latent": (LATENT, 0.7)}, {"large": [1, 2, *PICTURE[2:]]}),
    part(
        "painter",
        {
            "large": ([1, 2, *PICTURE[2:]], 0.5),
            "picture": (PICTURE, 0.4),
            "mask": ([1, 1, *PICTURE[2:]], 0.5),
        },
        {"sample": PICTURE},
    ),
    part(
        "translator",
        {"picture": ([1, 4, *PICTURE[2:]], 0.7), "text": ([1, 4, 3], 0.3)},
        {"sample": PICTURE},
    ),
]


# ----------------------------------------------------------------------------------------- flows


def source(kind: str, name: str | None = None, **keys: Any) -> Json:
    """A source."""
    return {"kind": kind} | ({} if name is None else {"name": name}) | keys


def output(call: str, name: str, **keys: Any) -> Json:
    """A source that is an output."""
    return source("output", name, call=call, **keys)


def value(*sources: Json, **keys: Any) -> Json:
    """What an input gets."""
    return {"sources": list(sources), **keys}


def call(when: str, id_: str, part_: str, **inputs: Json) -> Json:
    """A call; an input that is a source alone is the value of it."""
    values = {k: v if "sources" in v else value(v) for k, v in inputs.items()}
    return {"id": id_, "part": part_, "when": when, "inputs": values}


def text(id_: str = "text", part_: str = "text", tokenizer: str = "clip") -> Json:
    """The call of a text encoder."""
    return call("once", id_, part_, ids=source("tokens", tokenizer=tokenizer))


ENCODE = call("once", "encode", "encoder", sample=source("picture", "image"))
DECODE = call("end", "decode", "decoder", latent=source("latent", divide=0.6))
TIMESTEP = source("column", "timestep")
HIDDEN = value(output("text", "hidden"), empty="empty_text")
IMAGE = {"pictures": {"image": {"kind": "picture"}}}
END = {"call": "decode", "name": "sample"}


def flow(*calls: Json, prediction: str | None = "denoise", **keys: Any) -> Json:
    """A flow that ends with the decoder."""
    results = {"picture": END, **keys}
    if prediction is not None:
        results["prediction"] = {"call": prediction, "name": "out"}
    return {"calls": list(calls), **results}


def draw(batch: int, **keys: Any) -> Json:
    """The call of a denoiser of text alone."""
    return call(
        "pass",
        "denoise",
        f"draw_{batch}",
        sample=source("latent"),
        timestep=TIMESTEP,
        text=keys.get("text", HIDDEN),
    )
