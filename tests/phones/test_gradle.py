"""Gradle files are not run here, so what they share with the poms, which are, is compared."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import mtu_export

ANDROID = Path(__file__).parents[2] / "runtime" / "android"
SPACE = {"m": "http://maven.apache.org/POM/4.0.0"}
HOST_ALONE = {"testkit", "executorch-jvm", "cli"}
"""Modules that no app embeds."""
MOST_LINES = 40


def pom(folder: Path) -> ElementTree.Element:
    """The project of a folder."""
    return ElementTree.parse(folder / "pom.xml").getroot()


def text(project: ElementTree.Element, path: str) -> str:
    """What an element of a pom holds."""
    words = project.findtext("/".join(f"m:{name}" for name in path.split("/")), None, SPACE)
    assert words, path
    return words


def modules() -> list[str]:
    """The modules that Maven builds."""
    return [str(each.text) for each in pom(ANDROID).iterfind("m:modules/m:module", SPACE)]


def catalogue() -> dict[str, dict[str, object]]:
    """Gradle's versions, libraries and plugins."""
    return tomllib.loads((ANDROID / "gradle" / "libs.versions.toml").read_text("utf-8"))


def script(name: str) -> str:
    """A Gradle file without its comments."""
    return re.sub(r"//.*", "", (ANDROID / name).read_text("utf-8"))


def test_modules_are_those_of_maven_that_apps_embed() -> None:
    included = re.findall(r'"(:[a-z-]+)"', script("settings.gradle.kts"))
    assert {name[1:] for name in included} == set(modules()) - HOST_ALONE
    for name in included:
        assert (ANDROID / name[1:] / "build.gradle.kts").is_file()


def test_versions_are_those_of_maven() -> None:
    versions, project = catalogue()["versions"], pom(ANDROID)
    assert versions["mtu"] == text(project, "version") == mtu_export.__version__
    for name in ("kotlin", "coroutines", "onnxruntime", "executorch"):
        assert versions[name] == text(project, f"properties/{name}.version"), name


def test_every_module_has_the_parents_version_and_its_own_artifact() -> None:
    project = pom(ANDROID)
    for name in modules():
        module = pom(ANDROID / name)
        parent = [text(module, f"parent/{key}") for key in ("groupId", "artifactId", "version")]
        assert parent == [text(project, key) for key in ("groupId", "artifactId", "version")]
        assert text(module, "artifactId") == f"mtu-{name}"


def test_the_language_of_metadata_is_that_of_maven() -> None:
    language = text(pom(ANDROID), "properties/kotlin.compiler.languageVersion")
    constant = "KOTLIN_" + language.replace(".", "_")
    for name in sorted(set(modules()) - HOST_ALONE - {"sample"}):
        settings = script(f"{name}/build.gradle.kts")
        assert re.findall(r"(?:language|api)Version = KotlinVersion\.(\w+)", settings) == [
            constant,
            constant,
        ]
        assert "explicitApi()" in settings


def test_the_version_that_executorch_is_compiled_against_is_the_wheels() -> None:
    source = ANDROID / "executorch/src/main/kotlin/io/mtuexport/executorch/ExecuTorchRuntime.kt"
    match = re.search(r'COMPILED_AGAINST: String = "(.+)"', source.read_text("utf-8"))
    constraints = (ANDROID.parents[1] / "constraints.txt").read_text("utf-8")
    pinned = re.search(r"^executorch==(.+)$", constraints, re.MULTILINE)
    assert match
    assert pinned
    assert match[1] == pinned[1] == catalogue()["versions"]["executorch"]


def test_libraries_and_plugins_are_used_and_known() -> None:
    known = {
        (kind, name.replace("-", "."))
        for kind in ("libraries", "plugins")
        for name in catalogue()[kind]
    }
    used = set()
    for file in sorted(ANDROID.rglob("*.gradle.kts")):
        words = script(str(file.relative_to(ANDROID)))
        used |= {
            ("plugins", name) for name in re.findall(r"alias\(libs\.plugins\.([\w.]+)\)", words)
        }
        used |= {
            ("libraries", name)
            for name in re.findall(r"\(libs\.(?!plugins|versions)([\w.]+)\)", words)
        }
    assert used == known


def test_projects_depend_on_each_other_as_in_maven() -> None:
    for name in sorted(set(modules()) - HOST_ALONE):
        gradle = set(re.findall(r'project\(":([a-z-]+)"\)', script(f"{name}/build.gradle.kts")))
        maven = {
            artifact.removeprefix("mtu-")
            for each in pom(ANDROID / name).iterfind("m:dependencies/m:dependency", SPACE)
            if (artifact := text(each, "artifactId")).startswith("mtu-")
            and each.findtext("m:scope", None, SPACE) != "test"
        }
        assert gradle == maven - HOST_ALONE, name


@pytest.mark.parametrize("file", sorted(ANDROID.rglob("*.gradle.kts")), ids=lambda f: f.parent.name)
def test_gradle_files_are_short_and_balanced(file: Path) -> None:
    words = file.read_text("utf-8")
    assert words.count("\n") <= MOST_LINES
    for opening, closing in ("{}", "()"):
        assert words.count(opening) == words.count(closing)


def test_no_wrapper_and_no_binary_is_kept() -> None:
    kept = {".kt", ".kts", ".java", ".xml", ".toml", ".pro", ".md", ".txt", ".py", ".cpp", ".h", ""}
    kept |= {".json", ".cmake", ".sh"}
    ignored = {"target", "build", "__pycache__", ".gradle"}
    for file in ANDROID.rglob("*"):
        if file.is_file() and not ignored & set(file.relative_to(ANDROID).parts):
            assert file.suffix in kept, file
