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


def test_real_manifests_are_valid(
    schema: Draft202012Validator, manifest: dict[str, Any], onnx_bundle: Path
) -> None:
    """A whole bundle, and one of the UNet alone, fresh from the exporter."""
    fresh = json.loads((onnx_bundle / "manifest.json").read_text("utf-8"))
    for document in (manifest, fresh):
        assert list(schema.iter_errors(document)) == []
    for key in ("text", "files", "loop"):  # schema 1.0
        del manifest[key]
    assert schema.is_valid({**manifest, "schema_version": "1.0"})
    assert schema.is_valid({**manifest, "schema_version": "1.7", "new": 1, "loop": None})


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


PASS = ("loop", "schedules", "4", "passes", 0)
CHANGES: list[tuple[str, Change]] = [
    *((f"no {key}", drop(key)) for key in ("schema_version", "tasks", "parts", "latent", "proof")),
    ("major 2", put("schema_version", value="2.0")),
    ("no version", put("schema_version", value="one")),
    ("no height", drop("image", "height")),
    ("height 0", put("image", "height", value=0)),
    ("width true", put("image", "width", value=True)),
    ("factor in words", put("latent", "factor", value="8")),
    ("no scaling", drop("latent", "scaling_factor")),
    ("unknown component", put("parts", 0, "component", value="decoder")),
    ("no part", put("parts", value=[])),
    ("hash cut", put("parts", 0, "sha256", value="ab")),
    ("bytes as text", put("files", 0, "bytes", value="1")),
    ("shape not static", put("parts", 2, "inputs", 0, "shape", value=[1, -1, 4, 6])),
    ("shape of floats", put("parts", 2, "outputs", 0, "shape", value=[1.5])),
    ("entry a number", put("parts", 0, "entries", "edit", value=1)),
    ("no dtype", drop("parts", 0, "inputs", 0, "dtype")),
    ("no flops", drop("parts", 0, "cost", "flops_total")),
    ("part's scheme a name", put("parts", 0, "scheme", value="int8")),
    ("unknown kind", put("tasks", 0, "conditioning", 0, "kind", value="depth")),
    ("channels 0", put("tasks", 0, "conditioning", 0, "channels", value=0)),
    ("scaled 1", put("tasks", 0, "conditioning", 0, "scaled", value=1)),
    ("guidance without image", drop("tasks", 0, "guidance", "image")),
    ("unknown guidance", put("tasks", 0, "guidance", "kind", value="cfg")),
    ("steps 0", put("tasks", 0, "steps", value=0)),
    ("prompt 1", put("tasks", 0, "prompt", value=1)),
    ("no pad", drop("tokenizers", 0, "pad")),
    ("text a list", put("text", value=[])),
    ("text of nothing", put("text", value={"x": 1})),
    ("no output", drop("text", "inputs", "encoder_hidden_states", 0, "output")),
    ("input of nothing", put("text", "inputs", "encoder_hidden_states", value=[])),
    ("folder a number", put("text", "tokenizers", "text_encoder", value=1)),
    ("steps in words", put("loop", "schedules", "four", value={})),
    ("no sigma", drop("loop", "schedules", "4", "init_noise_sigma")),
    *(
        (
            f"too many {key}",
            lambda document, key=key, most=most: document.update({key: document[key][:1] * most}),
        )
        for key, most in (("files", 65), ("tasks", 65), ("tokenizers", 17), ("proof", 1025))
    ),
    ("no pass", put("loop", "schedules", "4", "passes", value=[])),
    ("three coefficients", put(*PASS, "x", value=[1, 0, 0])),
    ("a coefficient null", put(*PASS, "m", value=[1, 0, 0, None])),
    ("input_scale 0", put(*PASS, "input_scale", value=0)),
    ("no timestep", drop(*PASS, "timestep")),
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


@pytest.mark.parametrize(
    "change",
    [
        put("text", "inputs", "encoder_hidden_states", 0, "output", value="pooled"),
        put("text", "inputs", "encoder_hidden_states", 0, "component", value="text_encoder_2"),
        put("text", "tokenizers", value={}),
    ],
)
def test_text_that_comes_from_nowhere_is_refused(
    change: Change, manifest: dict[str, Any], copied: Path
) -> None:
    change(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match="is not an output of a text encoder"):
        bundle.read(copied)
