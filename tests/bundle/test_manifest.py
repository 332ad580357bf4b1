"""The manifest's model against its schema and its contract; what is refused before a hash."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError, validators

from mtu_export import bundle
from mtu_export.bundle import reading
from mtu_export.bundle.manifest import Latent
from mtu_export.checkpoint import strict_json
from mtu_export.spec import BundleError
from mtu_export.testing.campaigns.mutations.values import ODD
from tests.support import handmade

RUNTIME = Path(__file__).parents[2] / "runtime"
FROZEN = Path(__file__).parents[1] / "frozen" / "2.0" / "edit-onnx-fp32"


def keywords(schema: dict[str, Any] | bool) -> Iterator[str]:
    """Keywords of a schema at any depth; names of properties are none."""
    if isinstance(schema, bool):
        return
    yield from schema
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    inner += [
        schema[key] for key in ("items", "additionalProperties", "propertyNames") if key in schema
    ]
    for one in inner:
        yield from keywords(one)


def test_the_schema_uses_the_keywords_of_the_contract_alone() -> None:
    """Other languages implement these and no others."""
    page = (RUNTIME / "README.md").read_text("utf-8")
    (text,) = re.findall(r"in these keywords alone: (.*?)\. Lengths", page, re.DOTALL)
    listed = set(re.findall(r"`([^`]+)`", text))
    assert set(keywords(bundle.json_schema())) == listed - {"false"}


def ecma_pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
    """In ECMA-262 ``$`` is the end alone; in Python a last line feed may follow."""
    if isinstance(value, str) and not re.search(pattern.replace("$", r"\Z"), value):
        yield ValidationError("does not match")


SCHEMA = validators.extend(Draft202012Validator, {"pattern": ecma_pattern})(bundle.json_schema())


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def is_read(document: Any) -> bool:
    try:
        reading.validated(bundle.Manifest, json.dumps(document))
    except BundleError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 600
        return False
    return True


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of every kind of source and flow, with goldens and proof."""
    root = tmp_path_factory.mktemp("manifest")
    folders = [handmade.write(root / name, name) for name in ("fill", "img2img")]
    folders.append(handmade.write_translator(root / "translate"))
    documents = [json.loads((folder / bundle.MANIFEST).read_text("utf-8")) for folder in folders]
    return [*documents, frozen(), everything(documents[1])]


def frozen() -> Any:
    """A bundle that was written long ago, as it is."""
    return json.loads((FROZEN / bundle.MANIFEST).read_text("utf-8"))


def everything(document: Any) -> Any:
    """A manifest with the keys that the others do not have."""
    document = copy.deepcopy(document)
    calls = document["tasks"][0]["flow"]["calls"]
    guided = {"sources": [{"kind": "guided", "divide": 2.0}, {"kind": "latent"}], "axis": 1}
    calls.insert(3, {"id": "s", "part": "s", "when": "guided", "inputs": {"m": guided}})
    document["tasks"][0]["flow"]["refined"] = {"call": "s", "name": "m"}
    document["loop"]["skipped"] = {"3": "why"}
    for step in document["loop"]["schedules"][0]["passes"]:
        step["columns"]["angles"] = [0.5, 1.0]
    part = document["parts"][0]
    part["data"] = ["weights.bin"]
    part["task_inputs"] = {"img2img": part["inputs"]}
    part["cost"]["task_weight_bytes"] = {"img2img": 1}
    part["witness"] = {"img2img": [0.5]}
    lora = {"name": "a", "sha256": "0", "scale": 0.5, "layers": {"unet": 3}, "unused": {}}
    lora |= {"forms": {"LoHa": 3}, "adapter": "b", "blocks": {"mid": 1.5}}
    document["source"] |= {"loras": [lora], "notes": ["a note"], "revision": "1"}
    document["golden"] = {"prompt": "a", "negative_prompt": "b", "steps": 4, "strength": 0.5}
    verdict = {"part": "unet", "task": "img2img", "stage": "exported", "psnr_db": 100.0}
    verdict |= {"max_abs": 1e-3, "floor_db": 60.0, "runner": "x", "passed": True, "reason": None}
    return {**document, "proof": [verdict, {**verdict, "passed": None, "psnr_db": None}]}


SOURCES: list[Any] = [
    {"kind": "latent"},
    {"kind": "tokens", "tokenizer": "t"},
    {"kind": "picture", "name": "image", "every": 8, "only": "image"},
    {"kind": "output", "call": "unet", "name": "y", "multiply": 1e-9},
    {"kind": "guided", "divide": 1e-10},
    {"kind": "number"},
]
ODD_JSON: list[Any] = [
    *(*ODD, 1.0, 24.0, -0.0, "1.2\n", "2.1", "2.1\n", "0" * 64, {"kind": "text"}, [1, 0, 0, 0]),
    *(10**15, "a_1", "A", "a" * 65, "once", "guided", "lanczos", "0..1", 1e-9, *SOURCES),
    {"sources": SOURCES[:2], "axis": 1},
]


@pytest.mark.slow
@settings(
    max_examples=600,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@example(data=None)
def test_model_and_schema_accept_the_same_documents(manifests: list[Any], data: Any) -> None:
    """One or two values changed, taken away or put under another key."""
    if data is None:
        assert all(is_read(document) and SCHEMA.is_valid(document) for document in manifests)
        return
    document = copy.deepcopy(data.draw(st.sampled_from(manifests)))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(list(places(document))))
        node = document
        for step in path:
            node = node[step]
        match data.draw(st.sampled_from(["put", "drop", "rename", "repeat"])):
            case "put":
                node[key] = copy.deepcopy(data.draw(st.sampled_from(ODD_JSON)))
            case "drop":
                del node[key]
            case "rename" if isinstance(node, dict):
                node[data.draw(st.sampled_from(["x", "", "X", "4", "x\n", "x" * 65]))] = node[key]
            case "repeat" if isinstance(node[key], list):
                node[key] = node[key] * data.draw(st.sampled_from([2, 9, 70, 1100]))
    try:
        strict_json(json.dumps(document))
    except ValueError:
        return  # no JSON that readers understand alike
    assert is_read(document) == SCHEMA.is_valid(document)


def test_one_line_says_where_and_what(manifests: list[Any]) -> None:
    document = copy.deepcopy(manifests[0])
    document["parts"][0]["cost"]["parameters"] = "x"
    with pytest.raises(BundleError) as caught:
        reading.validated(bundle.Manifest, json.dumps(document))
    line = "manifest.json: parts[0].cost.parameters: must be an integer, got 'x'"
    assert str(caught.value) == line


def test_reading_and_writing_are_inverse(manifests: list[Any]) -> None:
    for document in manifests:
        read = reading.validated(bundle.Manifest, json.dumps(document))
        assert read.to_json() == document


# ----------------------------------------------------------------------- before the first hash


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "b", "fill")


def edited(folder: Path, change: Any) -> None:
    path = folder / bundle.MANIFEST
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def within(document: dict[str, Any]) -> None:
    document["files"].append({**document["files"][0], "path": "unet/model.onnx"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].append(m["files"][0]), "path 'goldens.safetensors' is there twice"),
        (lambda m: m["files"].extend(m["files"] * 2000), "files: must have at most 64 items"),
        (lambda m: m["parts"].append(m["parts"][0]), "part 'text_encoder' is there twice"),
        (lambda m: m["parts"][1].update(path="unet"), "path 'unet' is there twice"),
        (within, "path 'unet/model.onnx' lies within 'unet'"),
        (lambda m: m["tasks"].append(m["tasks"][0]), "task 'fill' is there twice"),
        (lambda m: m["files"][-1].update(bytes=1), "the manifest says 1"),
        (lambda m: m["files"][0].update(path="nothing"), "'nothing' is missing"),
        (lambda m: m["files"][0].update(path="._x"), "is a file of the macOS Finder"),
        (lambda m: m.update(name="x" * 4_000_000), "bytes; at most 4,000,000"),
        (lambda m: m.update(new=json.loads("[" * 70 + "]" * 70)), "more than 64 objects"),
    ],
)
def test_nothing_is_hashed_of_what_is_refused(
    copied: Path, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated rows of one large file were each hashed, and parts before their names were read."""
    edited(copied, change)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed"))
    with pytest.raises(BundleError, match=message):
        bundle.read(copied)


def test_each_file_is_hashed_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, names = hashlib.file_digest, []

    def counted(stream: Any, name: str) -> Any:
        names.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    bundle.read(copied)
    assert names
    assert len(set(names)) == len(names)


def test_a_manifest_that_is_a_link_says_what_to_do(copied: Path) -> None:
    shutil.move(copied / bundle.MANIFEST, copied.parent / "blob")
    (copied / bundle.MANIFEST).symlink_to(copied.parent / "blob")
    with pytest.raises(BundleError, match=r"is a link: copy .* cp -L, or .* local_dir"):
        bundle.read(copied)


def test_what_the_finder_leaves_behind_changes_nothing(copied: Path) -> None:
    for name in ("unet/.DS_Store", "tokenizer/._vocab.json", "._x"):
        (copied / name).write_bytes(b"x")
    bundle.read(copied)
    (copied / "tokenizer" / "._link").symlink_to("vocab.json")
    with pytest.raises(BundleError, match="link"):
        bundle.read(copied)


# --------------------------------------------------------------------------------------- writing


def test_a_value_that_a_copy_brought_in_is_refused_when_it_is_written(copied: Path) -> None:
    """``model_copy`` validates nothing."""
    manifest = bundle.read_manifest(copied)
    before = (copied / bundle.MANIFEST).read_bytes()
    assert manifest.latent is not None
    latent = manifest.latent.model_copy(update={"channels": 0})
    with pytest.raises(BundleError, match=r"latent\.channels: must be at least 1, got 0$"):
        bundle.write_manifest(copied, manifest.model_copy(update={"latent": latent}))
    assert (copied / bundle.MANIFEST).read_bytes() == before


def test_a_record_of_a_value_out_of_range_is_a_bundle_error() -> None:
    line = r"^manifest\.json: Latent: factor: must be at least 1, got 0$"
    with pytest.raises(BundleError, match=line), bundle.refuse_invalid_records():
        Latent(channels=4, factor=0)


# -------------------------------------------------------------------------------------- goldens


def test_a_golden_of_another_shape_is_refused_by_its_header(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goldens were loaded whole, of whatever size, once for each task."""
    import numpy as np

    large = np.zeros((64, 1024), np.float32)
    bundle.write_goldens(copied, {}, {"fill": {"noise": large, "other": large}})
    handmade.reseal(copied)
    tensors = bundle.Goldens(bundle.read(copied)).loop("fill")
    monkeypatch.setattr(np, "isfinite", lambda *_: pytest.fail("read"))
    with pytest.raises(BundleError, match=r"loop/fill/noise must be \[1, 4, 2, 3\]"):
        tensors["noise"]
    assert list(tensors) == ["noise"]


def test_a_long_header_is_refused(copied: Path) -> None:
    path = copied / bundle.GOLDENS
    header = b'{"__metadata__": {"a": "' + b"x" * 4_000_001 + b'"}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    handmade.reseal(copied)
    with pytest.raises(BundleError, match=r"a header of 4,000,0.. bytes; at most 4,000,000"):
        bundle.Goldens(bundle.read(copied))
