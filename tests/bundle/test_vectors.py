"""The shared vectors of runtime/testdata, met by the independent reader and by mtu-export."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mtu_export import bundle
from mtu_export.bundle import images, runner, tokenizer, verification
from mtu_export.spec import BundleError
from tests.support import independent_loop, vectors
from tests.support.vectors import TESTDATA, Json

BUNDLE = TESTDATA / "edit-onnx-int8"
HOSTILE = vectors.read("hostile.json")
LOOPS = vectors.read("loops.json")
FITS = vectors.read("fits.json")
TOKENS = vectors.read("tokens.json")
RULES = range(1, 14)
CLOSE = 2e-5
"""Of the largest number expected."""
EXIF = 0x0112


def named(cases: list[Json]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


# ---------------------------------------------------------------------------------- hostile.json


def test_every_rule_has_two_edits() -> None:
    counts = Counter(case["rule"] for case in HOSTILE)
    assert all(counts[rule] >= 2 for rule in RULES)
    assert set(counts) == {0, *RULES}
    assert len({(case["rule"], case["name"]) for case in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: f"{case['rule']}: {case['name']}")
def test_an_edit_is_refused_by_its_rule(case: Json, tmp_path: Path) -> None:
    folder = vectors.edited(case, tmp_path)
    if case["rule"] == 0:
        assert independent_loop.trusted(folder)["target"] == "onnx"
        exported = bundle.read(folder)
        calls = {call.part for task in exported.tasks for call in task.flow.calls}
        if calls <= {part.name for part in exported.parts}:
            runner.open_loop(exported)
        else:
            with pytest.raises(BundleError, match="needs it"):
                runner.open_loop(exported)
        return
    with pytest.raises(independent_loop.Refused) as refused:
        independent_loop.trusted(folder)
    assert refused.value.rule == case["rule"], refused.value
    with pytest.raises(BundleError):
        used(folder)


def used(folder: Path) -> None:
    """Read, run and verify a bundle: where a file is opened, what is in it is checked."""
    exported = bundle.read(folder)
    runner.open_loop(exported)
    verification.verify_bundle(exported)


# ------------------------------------------------------------------------------------ loops.json


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return load_file(TESTDATA / "loops.safetensors")


def below(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def results(document: Json, case: Json, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The last latent, where there is a loop, and the picture, by the independent reader."""
    task, asked = copy.deepcopy(case["task"]), dict(case["request"])
    task["guidance"] = asked.pop("guidance", task["guidance"])
    checker = independent_loop.Checker(document, task, below(tensors, "constants/"))
    checker.check_order()
    checker.check_shapes()
    for kind in ("pictures", "tensors"):
        names = task["inputs"].get(kind, {})
        asked[kind] = {name: tensors[f"{kind}/{name}"] for name in names}
    tables = [(s["steps"], s.get("strength"), s) for s in document["schedules"]]
    key = (asked.get("steps"), asked.get("strength"))
    passes = [p for *k, s in tables if tuple(k) == key for p in s["passes"]]
    drawn = len(passes) if any(p["noise"] for p in passes) else 0
    request = independent_loop.Request(**asked, noise=tensors["noise"][: 1 + drawn])
    loop = independent_loop.Loop(
        document,
        task,
        below(tensors, "constants/"),
        vectors.closed_form(document["parts"]),
        lambda path, text: tensors[f"ids/{path}/{text}"],
        request,
    )
    latents, picture = loop.picture()
    return [*latents[-1:], picture]


def as_manifest(document: Json) -> Json:
    return {**document, "loop": {"schedules": document["schedules"]}}


def expected(case: Json, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    names = [f"expected/{case['name']}/{kind}" for kind in ("latent", "picture")]
    return [tensors[name] for name in names if name in tensors]


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference, as a share of the largest number expected."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@named(LOOPS["cases"])
def test_a_loop_comes_to_its_result(case: Json, tensors: dict[str, np.ndarray]) -> None:
    ours, theirs = results(as_manifest(LOOPS), case, tensors), expected(case, tensors)
    assert [array.shape for array in ours] == [array.shape for array in theirs]
    assert distance(ours, theirs) < CLOSE


def sources(task: Json) -> Iterator[Json]:
    for call in task["flow"]["calls"]:
        for value in call["inputs"].values():
            yield value
            yield from value["sources"]


def without(key: str) -> Callable[[Json, Json], None]:
    """A flow that lacks a key everywhere."""

    def change(document: Json, case: Json) -> None:
        for node in sources(case["task"]):
            node.pop(key, None)

    return change


def scaled(*path: str | int) -> Callable[[Json, Json], None]:
    """Tables of which one number is another."""

    def change(document: Json, case: Json) -> None:
        for table in document["schedules"]:
            for node in [table, *table["passes"]]:
                if path[0] in node:
                    parent: Any = node
                    for step in path[:-1]:
                        parent = parent[step]
                    parent[path[-1]] *= 1.1

    return change


def other_request(**fields: Any) -> Callable[[Json, Json], None]:
    def change(document: Json, case: Json) -> None:
        for key, value in fields.items():
            if key in case["request"]:
                case["request"][key] = value

    return change


def other_guidance(key: str) -> Callable[[Json, Json], None]:
    def change(document: Json, case: Json) -> None:
        if key in case["task"]["guidance"]:
            case["task"]["guidance"][key] *= 1.1

    return change


CHANGES = {
    **{key: without(key) for key in ("multiply", "divide", "only", "outside", "empty")},
    **{f"x{k}": scaled("x", k) for k in range(4)},
    **{f"m{k}": scaled("m", k) for k in range(4)},
    "noise": scaled("noise"),
    "input_scale": scaled("input_scale"),
    "start noise": scaled("start", "noise"),
    "start picture": scaled("start", "picture"),
    "timestep": scaled("columns", "timestep"),
    "gain": scaled("columns", "gain"),
    "features": scaled("columns", "features", 0),
    "negative prompt": other_request(negative_prompt="prompt"),
    "number": other_request(numbers={"amount": 1.0}),
    "text scale": other_guidance("text"),
    "image scale": other_guidance("image"),
    "refined": lambda document, case: case["task"]["flow"].pop("refined", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_loops_tell_a_reader_that_errs(name: str, tensors: dict[str, np.ndarray]) -> None:
    """What a reader could leave out or take wrong moves the result of at least one case."""
    distances = []
    for original in LOOPS["cases"]:
        document, case = as_manifest(copy.deepcopy(LOOPS)), copy.deepcopy(original)
        CHANGES[name](document, case)
        if name == "refined":
            calls = case["task"]["flow"]["calls"]
            case["task"]["flow"]["calls"] = [c for c in calls if c["when"] != "guided"]
        distances.append(distance(results(document, case, tensors), expected(case, tensors)))
    assert max(distances) > 100 * CLOSE
    assert min(distances) < CLOSE, "the others stay"


# ------------------------------------------------------------------------------------- fits.json


@pytest.fixture(scope="module")
def fitted() -> dict[str, np.ndarray]:
    return load_file(TESTDATA / "fits.safetensors")


def raw(case: Json) -> np.ndarray:
    """The pixels of a case as they lie in its file."""
    shape = (case["file_height"], case["file_width"])
    data = (TESTDATA / case["file"]).read_bytes()
    if case["file"].endswith(".grey16"):
        return np.frombuffer(data, "<u2").reshape(shape)
    return np.frombuffer(data, np.uint8).reshape(*shape, 4)


def turned_image(case: Json) -> Image.Image:
    image = Image.fromarray(raw(case))
    image.getexif()[EXIF] = case["orientation"]
    return image


def levels(case: Json, array: np.ndarray) -> np.ndarray:
    """0 to 255 of a fitted picture, 0 or 255 of a mask."""
    span = case["picture"].get("range", "-1..1")
    if case["picture"]["kind"] == "mask" or span == "0..1":
        return array * 255
    return array if span == "0..255" else (array + 1) * 127.5


@named(FITS)
def test_a_picture_fits(case: Json, fitted: dict[str, np.ndarray]) -> None:
    image = turned_image(case)
    picture: dict[str, Any] = dict(case["picture"])
    theirs = fitted[case["name"]]
    alone = independent_loop.fit_picture(image, picture, case["height"], case["width"])
    kind, size = picture.pop("kind"), (case["width"], case["height"])
    fit = images.fit_mask if kind == "mask" else images.fit
    if kind == "grey":
        picture["grey"] = True
    ours = fit(image, *size, **picture)
    for array in (alone, ours):
        assert (array.shape, array.dtype) == (theirs.shape, np.float32)
        assert np.abs(levels(case, array) - levels(case, theirs)).max() <= case["levels"] + 1e-3


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@named([case for case in FITS if case["levels"] == 0 and case["file"].endswith(".rgba")])
def test_exact_pictures_are_those_of_the_rules(case: Json, fitted: dict[str, np.ndarray]) -> None:
    """I2, I4, I6 and I7 in whole numbers, without an imaging library."""
    pixels = TURNS[case["orientation"]](raw(case)).astype(np.int64)
    rgb, a = pixels[..., :3], pixels[..., 3:]
    rgb = (2 * (rgb * a + 255 * (255 - a)) + 255) // 510
    grey = (rgb @ np.array([19595, 38470, 7471]) + 32768) >> 16
    (h, w), (ih, iw) = (case["height"], case["width"]), grey.shape
    p, q = (iw, w) if iw * h <= ih * w else (ih, h)
    rows = [(ih * q - h * p + (2 * i + 1) * p) // (2 * q) for i in range(h)]
    columns = [(iw * q - w * p + (2 * i + 1) * p) // (2 * q) for i in range(w)]
    kind = case["picture"]["kind"]
    taken = (rgb if kind == "picture" else grey[..., None])[rows][:, columns]
    taken = taken >= 128 if kind == "mask" else taken
    assert np.array_equal(taken.transpose(2, 0, 1)[None], fitted[case["name"]])


# ----------------------------------------------------------------------------------- tokens.json


@pytest.mark.parametrize(
    ("texts", "more"), [("texts", []), ("texts_with_added_tokens", TOKENS["added_tokens"])]
)
def test_texts_have_their_ids(texts: str, more: list[Json]) -> None:
    folder = BUNDLE / "tokenizer"
    (record,) = json.loads((BUNDLE / "manifest.json").read_text("utf-8"))["tokenizers"]
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["added_tokens"] += more
    alone = independent_loop.Tokenizer(folder, record)
    alone.added = document["added_tokens"]
    ours = tokenizer.open_document(folder, document, record["length"])
    assert len(TOKENS[texts]) > 5
    for case in TOKENS[texts]:
        assert alone(case["text"]).tolist() == [case["ids"]], case["text"]
        ids, cut = ours.encode(case["text"])
        assert (ids.tolist(), cut) == ([case["ids"]], case["cut"])
