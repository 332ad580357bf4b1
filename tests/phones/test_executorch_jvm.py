"""The embedded model's `.pte` bundle in Java: the Kotlin tests over it, and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.phones import maven
from tests.support import exports, tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOLERANCE_DB = 0.1
"""Kernels are the wheel's in Java and Python; other threads may share the work differently."""
TESTS = {
    "executorch-jvm": {"ModuleTest", "TensorTest"},
    "executorch": {"BundleTest", "CallsTest", "MissingTest"},
}
"""Classes of tests of each module that need the bundle, or say what is called."""


def counts(module: str) -> dict[str, tuple[int, int]]:
    """Class of tests -> tests that ran and tests that were skipped."""
    reports = (maven.ANDROID / module / "target" / "surefire-reports").glob("TEST-*.xml")
    suites = [ElementTree.parse(report).getroot() for report in reports]
    return {
        suite.attrib["name"].rpartition(".")[2]: (
            int(suite.attrib["tests"]) - int(suite.attrib["skipped"]),
            int(suite.attrib["skipped"]),
        )
        for suite in suites
    }


@pytest.fixture(scope="module")
def bundle() -> Path:
    """The bundle, after Maven has run the tests of both modules over it."""
    folder, library = exports.all_tasks("executorch"), maven.library()
    properties = (f"-Dexecutorch={library}", f"-Dpte={folder}")
    names = ",".join(name for module in TESTS.values() for name in sorted(module))
    chosen = (f"-Dtest={names}", "-Dsurefire.failIfNoSpecifiedTests=false")
    maven.build("test", "-pl", "executorch-jvm,executorch", "-am", *chosen, *properties)
    return folder


def test_nothing_is_skipped(bundle: Path) -> None:
    for module, names in TESTS.items():
        ran = counts(module)
        assert names <= set(ran)
        for name in names:
            assert ran[name][0] > 0, name
            assert ran[name][1] == 0, name


def test_goldens_are_those_of_the_exporter(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    proof = {
        (entry["task"], entry["part"], entry["stage"]): entry["psnr_db"]
        for entry in manifest["proof"]
        if entry["stage"] != "folded"
    }
    report = maven.ANDROID / "executorch" / "target" / "verdicts.txt"
    lines = [line.split() for line in report.read_text("utf-8").splitlines()]
    reached = {(task, part, stage): float(decibels) for task, part, stage, decibels, _ in lines}
    assert {task for task, _, _ in reached} == {task["name"] for task in manifest["tasks"]}
    assert proof.keys() <= reached.keys()
    for key, decibels in proof.items():
        assert reached[key] == pytest.approx(decibels, abs=TOLERANCE_DB), key


def test_the_library_for_phones_fits_pages_of_16_kib(tmp_path: Path) -> None:
    tools.require("aarch64-linux-gnu-g++")
    script = maven.ANDROID / "executorch-jvm" / "assemble.py"
    folder = tmp_path / "library"
    command = [sys.executable, str(script), "--arch", "aarch64", "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    runner = maven.script("runner/assemble.py")
    alignment = {path.name: runner.read_elf(path).alignment for path in folder.iterdir()}
    assert alignment["libmtu_executorch_jni.so"] == runner.OWN_PAGE
    assert min(alignment.values()) >= runner.PAGE, alignment
    assert len(alignment) == 1 + len(runner.ENGINE_LIBRARIES)
