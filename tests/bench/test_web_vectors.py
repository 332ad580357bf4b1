"""The ES module of runtime/web in Node: the shared vectors, the expected picture, its types."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from mtu_export import bundle
from mtu_export.bench.web import engine
from mtu_export.spec import ToolchainError
from tests.support import vectors
from tests.support.tools import missing, require

WEB = Path(__file__).parents[2] / "runtime" / "web"
TESTS = Path(__file__).parent / "web"
MODULES = sorted(WEB.glob("*.js"))


def run_node(name: str, **environment: str) -> str:
    command = [require("node"), "--test", "--test-reporter=tap", str(TESTS / name)]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failures = re.findall(r"^not ok .*$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, failures or done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_vector_is_met() -> None:
    report = run_node("vectors.test.js")
    names = re.findall(r"^ok \d+ - (.*)$", report, re.MULTILINE)
    links = [c for c in vectors.read("hostile.json") if any(e["op"] == "link" for e in c["edits"])]
    assert len(links) == 3
    hostile = [name for name in names if name.startswith("hostile: ")]
    assert len(hostile) == len(vectors.read("hostile.json")) - len(links)
    for kind, file in (("loops", "loops.json"), ("fits", "fits.json"), ("noise", "noise.json")):
        cases = vectors.read(file)
        count = len(cases["cases"] if isinstance(cases, dict) else cases)
        assert sum(name.startswith(f"{kind}: ") for name in names) == count + (kind == "noise")
    assert {"tokens: texts", "tokens: texts_with_added_tokens"} <= set(names)
    assert not re.search(r"# (SKIP|TODO)", report)


def test_a_page_that_is_loaded_anew_goes_on() -> None:
    assert len(re.findall(r"^ok \d+ - ", run_node("resume.test.js"), re.MULTILINE)) == 4


@pytest.mark.slow
def test_it_makes_the_expected_picture() -> None:
    try:
        package = engine.find()
    except ToolchainError as error:
        missing(f"{error} (make web)")
    report = run_node("picture.test.js", ORT_WEB=str(package))
    assert len(re.findall(r"^ok \d+ - ", report, re.MULTILINE)) == 8


def test_its_schema_is_that_of_the_manifest() -> None:
    text = (WEB / "manifest_schema.js").read_text("utf-8")
    document = text.partition("export default ")[2].removesuffix(";\n")
    assert json.loads(document) == bundle.json_schema(), "run: make schema"


@pytest.mark.slow
def test_its_types_hold() -> None:
    tsc = engine.cache().parents[1] / "typescript" / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.is_file():
        missing("TypeScript is not in the cache (make web)")
    command = [require("node"), str(tsc), "-p", str(WEB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=[path.name for path in MODULES])
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


def test_nothing_but_itself_is_imported() -> None:
    names = {path.name for path in MODULES}
    for path in MODULES:
        for source in re.findall(r'from "([^"]+)"|import\("([^"]+)"\)', path.read_text("utf-8")):
            assert "".join(source).removeprefix("./") in names, path.name
