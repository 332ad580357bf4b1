"""Manifests from somewhere else: every rule of the contract refuses with one line of ours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtu_export import bundle
from mtu_export.bundle import runner
from mtu_export.spec import BundleError, MtuExportError
from mtu_export.testing.campaigns.mutations.values import ODD
from tests.bundle.test_generate import request
from tests.support import handmade
from tests.support.handmade import DROP

Path_ = tuple[str | int, ...]
PAGE = Path(__file__).parents[2] / "runtime" / "README.md"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("hostile") / "fill", "fill")


@pytest.fixture
def copied(valid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(valid, tmp_path / "b"))


def attempt(folder: Path) -> np.ndarray:
    loop = runner.open_loop(bundle.read(folder))
    return runner.generate(loop, request("fill"))[1]


def test_the_valid_one_is_a_picture(copied: Path) -> None:
    """The test of the tests: nothing is refused that was not changed."""
    assert attempt(copied).shape == (1, 3, handmade.HEIGHT, handmade.WIDTH)


# ------------------------------------------------------------------------- one value of a manifest

SAMPLE: Path_ = ("parts", 2, "inputs", 0)
ENTRY: Path_ = ("parts", 2, "entries", "fill")
TABLE: Path_ = ("loop", "schedules", 1)
PASS: Path_ = (*TABLE, "passes", 1)
CALLS: Path_ = ("tasks", 0, "flow", "calls")
TEXT: Path_ = (*CALLS, 2, "inputs", "encoder_hidden_states")
PICTURES: Path_ = ("tasks", 0, "inputs", "pictures")
LATENT = {"kind": "latent"}
TOKENS = {"kind": "tokens", "tokenizer": "tokenizer"}
GUIDED = {"kind": "guided"}
COLUMN = {"kind": "column", "name": "timestep"}
DECODED = {"kind": "output", "call": "vae_decoder", "name": "sample"}
DENOISED = {"kind": "output", "call": "unet", "name": "out_sample"}
NUMBER = {"kind": "number", "name": "amount"}
CASES: list[tuple[int, Path_, Any, str]] = [
    (1, ("name",), "\ud800", "surrogates not allowed"),
    (1, ("new",), json.loads("[" * 70 + "]" * 70), "more than 64 objects and lists"),
    (1, ("name",), "x" * 4_000_000, "bytes; at most 4,000,000"),
    (1, ("name",), float("nan"), "cannot be read as JSON: NaN is not a finite double"),
    (1, (*PASS, "m", 0), float("-inf"), "-Infinity is not a finite double"),
    (2, ("schema_version",), "1.3", "was written by an earlier version; export it again"),
    (2, ("schema_version",), "1.0", "was written by an earlier version; export it again"),
    (2, ("schema_version",), "3.0", "schema 3.0 is not readable; this mtu-export reads 2.x"),
    (2, ("schema_version",), DROP, "schema_version is missing or malformed"),
    (2, ("schema_version",), "2.0\n", "schema_version is missing or malformed"),
    (2, ("schema_version",), 2.0, "schema_version: must be a string"),
    (2, ("tasks", 0, "flow", "new"), 1, r"tasks\[0\].flow: unknown key 'new'"),
    (2, (*CALLS, 2, "twice"), False, r"calls\[2\]: unknown key 'twice'"),
    (2, (*TEXT, "scale"), 1.0, "encoder_hidden_states: unknown key 'scale'"),
    (2, (*TEXT, "sources", 0, "blur"), 2, "unknown key 'blur'"),
    (2, ("tasks", 0, "inputs", "sounds"), {}, r"tasks\[0\].inputs: unknown key 'sounds'"),
    (2, (*PICTURES, "image", "crop"), "none", "image: unknown key 'crop'"),
    (3, ("parts",), [], "parts: must have at least 1 item"),
    (3, ("tasks",), [], "tasks: must have at least 1 item"),
    (3, ("tasks", 0), 7, r"tasks\[0\]: must be an object, got 7"),
    (3, ("image", "height"), 10**9, "height: must be at most 8,192"),
    (3, ("image", "height"), 0, "height: must be at least 1, got 0"),
    (3, ("image", "width"), 24.5, "width: .*integer"),
    (3, ("latent", "channels"), 10**6, "channels: must be at most 1,024"),
    (3, ("latent", "factor"), "8", "factor: must be an integer"),
    (3, (*SAMPLE, "shape"), [-1, 9, 2, 3], r"shape\[0\]: must be at least 1, got -1"),
    (3, (*SAMPLE, "shape"), [2**31, 9, 2, 3], "must be at most 2,147,483,647"),
    (3, (*SAMPLE, "shape"), [True, 9, 2, 3], "must be an integer, got True"),
    (3, (*SAMPLE, "shape"), [1] * 10**5, "must have at most 8 items"),
    (3, (*SAMPLE, "shape"), ["1"], "must be an integer, got '1'"),
    (3, (*SAMPLE, "dtype"), "float64", "must be 'float32' or 'int32'"),
    (3, ("parts", 2, "kind"), "unet", "kind: must be 'denoiser'"),
    (3, ("parts", 2, "name"), "../x", "name: must match"),
    (3, ("parts", 2, "data"), ["x"] * 17, "data: must have at most 16 items"),
    (3, ("files", 1, "path"), 5, r"files\[1\].path: must be a string, got 5"),
    (3, ("files", 1, "sha256"), "ab", "sha256: must match"),
    (3, ("tasks", 0, "guidance", "kind"), "more", "kind: must be 'none'"),
    (3, ("tasks", 0, "guidance"), {"kind": "text"}, "guidance: key 'text' is missing"),
    (3, ("tasks", 0, "steps"), 0, "steps: must be at least 1, got 0"),
    (3, ("tasks", 0, "strength"), 0, "strength: must be greater than 0"),
    (3, ("tasks", 0, "strength"), 1.5, "strength: must be at most 1"),
    (3, ("tasks", 0, "name"), "../fill", "name: must match"),
    (3, ("tasks", 0, "flow"), DROP, "key 'flow' is missing"),
    (3, CALLS, [], "calls: must have at least 1 item"),
    (3, (*CALLS, 2, "when"), "sometimes", "when: must be 'once'"),
    (3, (*CALLS, 2, "inputs"), {}, "inputs: must have at least 1 item"),
    (3, (*TEXT, "sources"), [], "sources: must have at least 1 item"),
    (3, (*TEXT, "sources"), [LATENT] * 17, "sources: must have at most 16 items"),
    (3, (*TEXT, "sources", 0, "kind"), "depth", r"sources\[0\].kind: must be 'latent'"),
    (3, (*TEXT, "sources", 0, "name"), DROP, "key 'name' is missing"),
    (3, (*TEXT, "sources", 0, "multiply"), 0, "multiply: must be at least 1e-09"),
    (3, (*TEXT, "sources", 0, "divide"), 1e-300, "divide: must be at least 1e-09"),
    (3, (*TABLE, "start", "noise"), 0, "noise: must be greater than 0"),
    (3, (*TEXT, "sources", 0, "only"), "noise", "only: must be 'prompt' or 'image'"),
    (3, (*CALLS, 2, "inputs", "sample", "axis"), 0, "axis: must be at least 1"),
    (3, (*PICTURES, "image", "range"), [0, 1], "range: must be '-1..1'"),
    (3, (*PICTURES, "image", "filter"), "box", "filter: must be 'lanczos' or 'nearest'"),
    (3, (*PICTURES, "image", "kind"), "depth", "kind: must be 'picture'"),
    (3, ("loop", "schedules"), {}, "schedules: must be a list"),
    (3, TABLE, 5, r"loop.schedules\[1\]: must be an object"),
    (3, (*TABLE, "start"), DROP, "key 'start' is missing"),
    (3, (*TABLE, "passes"), [], "passes: must have at least 1 item"),
    (3, (*TABLE, "passes"), [0] * 10**6, r"passes\[0\]: must be an object"),
    (3, (*PASS, "m", 0), 1e300, "must be at most 1e.09"),
    (3, (*PASS, "m", 0), "1", "must be a number"),
    (3, (*PASS, "x"), [1], "must have at least 4 items"),
    (3, (*PASS, "noise"), DROP, "key 'noise' is missing"),
    (3, (*PASS, "columns", "timestep"), None, "timestep: must be a number"),
    (3, (*PASS, "columns", "timestep"), [], "timestep: must"),
    (3, (*PASS, "input_scale"), 0, "input_scale: must be greater than 0"),
    (4, ("files", 2, "path"), "../tokenizer", "leaves the bundle"),
    (4, ("files", 2, "path"), "/etc/passwd", "leaves the bundle"),
    (4, ("files", 2, "path"), "a\x00b", "leaves the bundle"),
    (4, ("files", 2, "path"), "a\\b", "leaves the bundle"),
    (4, ("files", 2, "path"), "C:b", "leaves the bundle"),
    (4, ("files", 2, "path"), "tokenizer/", "leaves the bundle"),
    (4, ("files", 0, "path"), "._x", "is a file of the macOS Finder"),
    (4, ("files", 0, "path"), "nothing", "'nothing' is missing from the bundle"),
    (4, ("parts", 2, "path"), "unet/../unet", "leaves the bundle"),
    (4, ("parts", 2, "path"), "é" * 200, "File name too long"),
    (4, ("parts", 2, "path"), "x" * 256, "path: must have at most 255 characters"),
    (5, ("parts", 1, "path"), "unet", "path 'unet' is there twice"),
    (5, ("files", 0, "path"), "tokenizer", "path 'tokenizer' is there twice"),
    (5, ("files", 0, "path"), "unet/model.onnx", "path 'unet/model.onnx' lies within 'unet'"),
    (6, ("parts", 2, "bytes"), 1, "the manifest says 1"),
    (6, ("parts", 2, "sha256"), "0" * 64, "sha256 differs"),
    (6, ("files", 2, "bytes"), 1, "the manifest says 1"),
    (6, ("files", 2, "sha256"), "0" * 64, "sha256 differs"),
    (7, ("files",), [], "files has no hash of 'tokenizer'"),
    (7, ("tokenizers", 0, "path"), "unet", "tokenizers: files has no hash of 'unet'"),
    (7, ("parts", 2, "data"), ["unet/x"], r"parts.unet.data: files has no hash of 'unet/x'"),
    (8, ("parts", 1, "name"), "unet", "part 'unet' is there twice"),
    (8, ("parts", 2, "name"), "pipeline", "'pipeline' is no name of a part"),
    (8, ("parts", 2, "entries"), {"other": "model.onnx"}, r"entries: must be those of the tasks"),
    (8, ("parts", 2, "entries"), {}, "entries: must have at least 1 item"),
    (8, ("parts", 2, "name"), "net", "must be those of the tasks that run net"),
    (8, (*CALLS, 1, "part"), "text_encoder", "must be those of the tasks that run vae_encoder"),
    (8, ("parts", 2, "witness"), {"edit": [1]}, "witness: 'edit' is no task of entries"),
    (8, ("parts", 2, "task_inputs"), {"edit": []}, "task_inputs: 'edit' is no task of entries"),
    (8, ("parts", 2, "task_inputs"), {"fill": []}, "names are not those of inputs"),
    (8, ("parts", 2, "cost", "task_weight_bytes"), {"x": 1}, "'x' is no task of entries"),
    (8, (*SAMPLE, "name"), "timestep", r"parts\[2\].inputs: a name is there twice"),
    (8, (*CALLS, 1, "id"), "text_encoder", "call 'text_encoder' is there twice"),
    (8, (*TABLE, "steps"), 2, r"schedules\[1\]: these steps and strength are there twice"),
    (8, ENTRY, "../unet/model.onnx", "is not a file of 'unet'"),
    (8, ENTRY, "._model.onnx", "is not a file of 'unet'"),
    (8, ENTRY, "-model.onnx", "is not a file of 'unet'"),
    (9, (*PASS, "x", 3), 1, r"passes\[1\] looks back before the start"),
    (9, (*PASS, "m", 2), -1e-9, r"passes\[1\] looks back before the start"),
    (11, (*CALLS, 3, "when"), "once", "a call 'once' follows one 'pass'"),
    (11, (*CALLS, 2, "when"), "guided", "only is for calls in a pass"),
    (11, (*CALLS, 0, "when"), "end", "a call 'end' has no 'tokens'"),
    (11, (*CALLS, 2, "inputs", "timestep"), DROP, "'timestep' has no source"),
    (11, (*CALLS, 2, "inputs", "depth"), {"sources": [LATENT]}, "'depth' is no input of unet"),
    (11, (*TEXT, "sources"), [DECODED], "'vae_decoder' is no earlier call whose output a call"),
    (11, (*TEXT, "sources"), [DENOISED], "'unet' is no earlier call whose output a call 'pass'"),
    (11, (*TEXT, "sources"), [GUIDED], "a call 'pass' has no 'guided'"),
    (11, (*TEXT, "sources"), [TOKENS], "a call 'pass' has no 'tokens'"),
    (11, (*TEXT, "sources", 0, "call"), "nobody", "'nobody' is no earlier call"),
    (11, (*TEXT, "sources", 0, "name"), "pooled", "text_encoder has no output 'pooled'"),
    (11, (*TEXT, "sources"), [NUMBER], "the task has no number 'amount'"),
    (11, (*TEXT, "sources"), [{"kind": "tensor", "name": "x"}], "the task has no tensor 'x'"),
    (11, (*TEXT, "axis"), 1, "axis belongs to several sources, and to them alone"),
    (11, (*CALLS, 2, "inputs", "sample", "axis"), DROP, "axis belongs to several sources"),
    (11, (*CALLS, 1, "inputs", "sample", "empty"), "x", "empty is for calls in a pass"),
    (11, (*CALLS, 1, "inputs", "sample", "sources", 0, "only"), "image", "only is for calls in a"),
    (11, (*CALLS, 1, "inputs", "sample", "sources"), [LATENT], "a call 'once' has no 'latent'"),
    (11, (*CALLS, 1, "inputs", "sample", "sources"), [COLUMN], "a call 'once' has no 'column'"),
    (11, (*CALLS, 1, "inputs", "sample", "sources"), [DENOISED], "'unet' is no earlier call"),
    (11, (*CALLS, 1, "inputs", "sample", "sources", 0, "outside"), "image", "no mask 'image'"),
    (11, (*CALLS, 1, "inputs", "sample", "sources", 0, "name"), "hint", "no picture 'hint'"),
    (11, (*CALLS, 3, "inputs", "latent_sample", "sources"), [DENOISED], "a call 'end' can take"),
    (11, (*CALLS, 3, "inputs", "latent_sample", "sources"), [COLUMN], "a call 'end' has no 'colu"),
    (11, (*TEXT, "sources", 0), {**LATENT, "multiply": 2, "divide": 2}, "exclude each other"),
    (11, ("tasks", 0, "flow", "prediction", "call"), "vae_decoder", "is no call 'pass'"),
    (11, ("tasks", 0, "flow", "prediction", "name"), "x", "unet has no output 'x'"),
    (11, ("tasks", 0, "flow", "prediction"), DROP, "picture: 'vae_decoder' is no call 'once'"),
    (11, ("tasks", 0, "flow", "picture", "call"), "unet", "'unet' is no call 'end'"),
    (11, ("tasks", 0, "flow", "refined"), {"call": "unet", "name": "out_sample"}, "no call 'guid"),
    (11, ("tasks", 0, "flow", "start"), LATENT, "a call 'once' has no 'latent'"),
    (11, ("tasks", 0, "strength"), 0.5, "start and the task's strength come together"),
    (11, ("tokenizers",), [], "'tokenizer' is no tokenizer"),
    (11, (*PICTURES, "mask", "kind"), "grey", "the task has no mask 'mask'"),
    (13, ("parts", 2, "bytes"), 64 * 10**9 + 1, "bytes: must be at most 64,000,000,000"),
    (13, ("files", 1, "bytes"), 256 * 10**6 + 1, "bytes: must be at most 256,000,000"),
    (12, ("latent",), DROP, "task 'fill': its loop has no table"),
    (12, ("loop",), DROP, "task 'fill': its loop has no table"),
    (12, ("loop", "schedules"), [], "task 'fill': its loop has no table"),
    (12, ("latent", "factor"), 7, "is no multiple of 7"),
    (12, ("latent", "channels"), 5, r"'sample' must be .1, 9, 2, 3., it gets .1, 10, 2, 3."),
    (12, ("image", "height"), 20, "is no multiple of 8"),
    (12, ("image", "height"), 24, r"must be .1, 3, 16, 24., it gets .1, 3, 24, 24."),
    (12, (*SAMPLE, "shape"), [], "has another batch than 1"),
    (12, (*SAMPLE, "shape"), [1, 8, 2, 3], r"'sample' must be \[1, 8, 2, 3\], it gets \[1, 9, 2"),
    (12, (*SAMPLE, "shape"), [65, 9, 2, 3], "calls in a pass have one batch of 1 to 64"),
    (12, (*SAMPLE, "shape"), [2, 9, 2, 3], "'encoder_hidden_states' differs by branch and must"),
    (12, (*SAMPLE, "dtype"), "int32", "input 'sample' must be float32"),
    (
        12,
        ("parts", 2, "inputs", 1, "shape"),
        [10**9],
        "one batch of 1 to 64, they have 1, 1000000000",
    ),
    (12, ("parts", 2, "inputs", 2, "shape"), [1, 77, 10**9], r"it gets \[1, 77, 8\]"),
    (12, ("parts", 2, "outputs", 0, "shape"), [1, 4, 3, 2], r"prediction must be \[1, 4, 2, 3\]"),
    (12, ("parts", 2, "outputs", 0, "shape"), [2, 4, 2, 3], "differs by branch and must"),
    (12, ("parts", 2, "outputs", 0, "dtype"), "int32", "unet: its outputs must be float32"),
    (12, ("parts", 0, "inputs", 0, "shape"), [1, 2**30], "'input_ids' must be .1, 1073741824."),
    (12, ("parts", 0, "inputs", 0, "dtype"), "float32", "'input_ids' must be int32"),
    (12, ("tokenizers", 0, "length"), 2**40, "a prompt has 3 to 1024 tokens"),
    (12, ("tokenizers", 0, "length"), 2, "a prompt has 3 to 1024 tokens"),
    (12, ("parts", 1, "outputs", 0, "shape"), [1, 8, 2, 3], r"it gets \[1, 13, 2, 3\]"),
    (12, ("parts", 3, "outputs", 0, "shape"), [1, 3, 16, 16], r"picture must be \[1, 3, 16, 24\]"),
    (12, (*CALLS, 2, "inputs", "sample", "axis"), 2, "cannot be joined along axis 2"),
    (12, (*CALLS, 2, "inputs", "sample", "axis"), 7, "cannot be joined along axis 7"),
    (12, (*CALLS, 2, "inputs", "sample", "sources", 1, "every"), 4, "cannot be joined"),
    (12, (*CALLS, 2, "inputs", "sample", "sources", 1, "every"), 5, "is no multiple of 5"),
    (12, (*CALLS, 0, "inputs", "input_ids", "sources", 0, "multiply"), 2, "neither joined with"),
    (12, (*PASS, "columns"), {}, r"schedules\[1\]: a pass has no column 'timestep'"),
    (12, (*PASS, "columns", "timestep"), [1, 2], "column 'timestep' is no number"),
    (12, (*CALLS, 2, "inputs", "timestep", "sources", 0, "name"), "x", "a pass has no column 'x'"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [case[1:] for case in CASES],
    ids=[f"rule {case[0]}-{i}-{case[1][-1]}" for i, case in enumerate(CASES)],
)
def test_a_manifest_that_is_refused(copied: Path, path: Path_, value: Any, message: str) -> None:
    handmade.edit(copied, *path, value=value)
    with pytest.raises(BundleError, match=message) as caught:
        attempt(copied)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600


def test_every_rule_of_the_page_has_a_case() -> None:
    """Rule 10 is of tensors alone: ``test_hostile_files.py`` and ``test_hostile_goldens.py``."""
    section = PAGE.read_text("utf-8").split("## Before anything is trusted")[1].split("\n## ")[0]
    rules = {int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)}
    assert rules == {case[0] for case in CASES} | {10}


# ------------------------------------------------------------------------------------ at random


def slots(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Where in a JSON value anything can be changed."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from slots(value, (*path, key))


# Names, hashes and costs are read by none; the rest of the manifest is what counts.
INNER = ("latent", "loop", "image", "tasks", "parts", "files", "tokenizers")
SOURCES = [LATENT, TOKENS, GUIDED, COLUMN, DECODED, DENOISED, NUMBER, {"kind": "picture"}]
VALUES = [{"sources": [source]} for source in (LATENT, COLUMN, DENOISED)]
PUT = [*ODD, *SOURCES, *VALUES, "once", "pass", "guided", "end", "mask", "unet", [1, 9, 2, 3]]


@pytest.mark.slow
@settings(
    max_examples=300,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_is_a_picture_or_one_line(
    valid: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """One or two values of a manifest replaced or taken away, every third within the flow."""
    folder = tmp_path_factory.mktemp("any") / "b"
    shutil.copytree(valid, folder)
    for _ in range(data.draw(st.integers(1, 2))):
        manifest = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
        places = [place for place in slots(manifest) if place[0] in INNER or len(place) == 1]
        if data.draw(st.integers(0, 2)) == 0:
            places = [place for place in places if "flow" in place] or places
        value = DROP if data.draw(st.integers(0, 3)) == 0 else data.draw(st.sampled_from(PUT))
        handmade.edit(folder, *data.draw(st.sampled_from(places)), value=value)
    try:
        picture = attempt(folder)
    except MtuExportError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 1000
    else:
        assert picture.shape == (1, 3, handmade.HEIGHT, handmade.WIDTH)
        assert np.isfinite(picture).all()
    finally:
        shutil.rmtree(folder)
