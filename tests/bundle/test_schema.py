"""runtime/manifest.schema.json: as generated, true of real manifests, false of changed ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mtu_export import bundle
from mtu_export.bench import record
from mtu_export.spec import BundleError

RUNTIME = Path(__file__).parents[2] / "runtime"
BUNDLE = RUNTIME / "testdata" / "edit-onnx-int8"


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    document = json.loads((RUNTIME / "manifest.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


@pytest.fixture
def manifest() -> dict[str, Any]:
    return json.loads((BUNDLE / "manifest.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(BUNDLE, tmp_path_factory.mktemp("schema") / "b")


def test_the_file_is_what_is_generated() -> None:
    text = (RUNTIME / "manifest.schema.json").read_text("utf-8")
    assert text == json.dumps(bundle.json_schema(), indent=2) + "\n", "run: make schema"
    text = (RUNTIME / "bench.schema.json").read_text("utf-8")
    assert text == json.dumps(record.json_schema(), indent=2) + "\n", "run: make schema"
    Draft202012Validator.check_schema(json.loads(text))


def test_real_manifests_are_valid(
    schema: Draft202012Validator, manifest: dict[str, Any], onnx_bundle: Path
) -> None:
    """A whole bundle, and one of the UNet alone, fresh from the exporter."""
    fresh = json.loads((onnx_bundle / "manifest.json").read_text("utf-8"))
    for document in (manifest, fresh):
        assert list(schema.iter_errors(document)) == []
    assert schema.is_valid({**manifest, "schema_version": "2.7", "new": 1})
    for key in ("latent", "loop", "golden", "files"):  # nothing of a loop
        del manifest[key]
    assert schema.is_valid(manifest)


Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: object) -> Change:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def repeated(count: int, *path: str | int) -> Change:
    """So many of the first item of a list."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = document[path[-1]][:1] * count

    return change


MOST = {"parts": 33, "files": 65, "tasks": 65, "tokenizers": 17, "proof": 1025}
PASS = ("loop", "schedules", 0, "passes", 0)
CALLS = ("tasks", 0, "flow", "calls")
INPUT = (*CALLS, 0, "inputs", "input_ids")
CHANGES: list[tuple[str, Change]] = [
    *((f"no {key}", drop(key)) for key in ("schema_version", "tasks", "parts", "image", "proof")),
    ("major 1", put("schema_version", value="1.3")),
    ("major 3", put("schema_version", value="3.0")),
    ("no version", put("schema_version", value="one")),
    ("no height", drop("image", "height")),
    ("height 0", put("image", "height", value=0)),
    ("width true", put("image", "width", value=True)),
    ("factor in words", put("latent", "factor", value="8")),
    ("no channels", drop("latent", "channels")),
    ("unknown kind of part", put("parts", 0, "kind", value="decoder")),
    ("name of a part", put("parts", 0, "name", value="Net")),
    ("no part", put("parts", value=[])),
    ("hash cut", put("parts", 0, "sha256", value="ab")),
    ("bytes as text", put("files", 0, "bytes", value="1")),
    ("data a name", put("parts", 0, "data", value="weights")),
    ("shape not static", put("parts", 2, "inputs", 0, "shape", value=[1, -1, 4, 6])),
    ("shape of floats", put("parts", 2, "outputs", 0, "shape", value=[1.5])),
    ("entry a number", put("parts", 0, "entries", "edit", value=1)),
    ("no dtype", drop("parts", 0, "inputs", 0, "dtype")),
    ("no flops", drop("parts", 0, "cost", "flops_total")),
    ("part's scheme a name", put("parts", 0, "scheme", value="int8")),
    ("guidance without image", drop("tasks", 0, "guidance", "image")),
    ("unknown guidance", put("tasks", 0, "guidance", "kind", value="cfg")),
    ("steps 0", put("tasks", 0, "steps", value=0)),
    ("strength 2", put("tasks", 0, "strength", value=2)),
    ("prompt 1", put("tasks", 0, "prompt", value=1)),
    ("no flow", drop("tasks", 0, "flow")),
    ("no inputs", drop("tasks", 0, "inputs")),
    ("no picture of the flow", drop("tasks", 0, "flow", "picture")),
    ("unknown key of a flow", put("tasks", 0, "flow", "new", value=1)),
    ("unknown key of a call", put(*CALLS, 0, "new", value=1)),
    ("unknown key of a source", put(*INPUT, "sources", 0, "new", value=1)),
    ("unknown key of the inputs", put("tasks", 0, "inputs", "new", value={})),
    ("unknown kind of source", put(*INPUT, "sources", 0, "kind", value="depth")),
    ("no kind of source", drop(*INPUT, "sources", 0, "kind")),
    ("key of another source", put(*INPUT, "sources", 0, "name", value="x")),
    ("no source", put(*INPUT, "sources", value=[])),
    ("axis 0", put(*INPUT, "axis", value=0)),
    ("multiply 0", put(*INPUT, "sources", 0, "multiply", value=0)),
    ("only a word", put(*INPUT, "sources", 0, "only", value="text")),
    ("when never", put(*CALLS, 0, "when", value="never")),
    ("call without a part", drop(*CALLS, 0, "part")),
    ("call without inputs", put(*CALLS, 0, "inputs", value={})),
    ("name of a picture", put("tasks", 0, "inputs", "pictures", value={"A": {"kind": "mask"}})),
    ("tensor of no shape", put("tasks", 0, "inputs", "tensors", value={"a": {"shape": []}})),
    ("number without default", put("tasks", 0, "inputs", "numbers", value={"a": {"minimum": 0}})),
    ("no pad", drop("tokenizers", 0, "pad")),
    ("schedules by steps", put("loop", "schedules", value={"4": {}})),
    ("no start", drop("loop", "schedules", 0, "start")),
    ("start without noise", drop("loop", "schedules", 0, "start", "noise")),
    ("noise 0 at the start", put("loop", "schedules", 0, "start", "noise", value=0)),
    *((f"too many {key}", repeated(most, key)) for key, most in MOST.items()),
    ("too many calls", repeated(65, *CALLS)),
    ("too many sources", repeated(17, *INPUT, "sources")),
    ("too many schedules", repeated(1001, "loop", "schedules")),
    ("no pass", put("loop", "schedules", 0, "passes", value=[])),
    ("three coefficients", put(*PASS, "x", value=[1, 0, 0])),
    ("a coefficient null", put(*PASS, "m", value=[1, 0, 0, None])),
    ("input_scale 0", put(*PASS, "input_scale", value=0)),
    ("no columns", drop(*PASS, "columns")),
    ("column of words", put(*PASS, "columns", "timestep", value="1")),
    ("empty column", put(*PASS, "columns", "timestep", value=[])),
    ("no noise", drop(*PASS, "noise")),
    ("golden without prompt", put("golden", value={"steps": 4})),
    ("proof without floor", drop("proof", 0, "floor_db")),
    ("passed yes", put("proof", 0, "passed", value="yes")),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[row[0] for row in CHANGES])
def test_a_changed_manifest_is_neither_valid_nor_read(
    name: str,
    change: Change,
    schema: Draft202012Validator,
    manifest: dict[str, Any],
    copied: Path,
) -> None:
    """The schema refuses it, and so does ours: an app that trusts the schema is not stricter."""
    change(manifest)
    assert not schema.is_valid(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError):
        bundle.read(copied)
