"""The Xcode project: every id, path, target and product resolves.

Not a proof that Xcode opens it.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtu_export.bench.devices.ios import faults
from tests.phones.pbxproj import parse

IOS = Path(__file__).parents[2] / "runtime" / "ios"
PROJECT = IOS / "Apps" / "MTUApps.xcodeproj" / "project.pbxproj"
APPS = {"Sample": "sample", "Bench": "bench"}
ID = re.compile(r"[0-9A-F]{24}")
# isa -> keys whose values are ids
REFERENCES = {
    "PBXBuildFile": {"productRef"},
    "PBXFileReference": set(),
    "PBXFileSystemSynchronizedRootGroup": set(),
    "PBXFrameworksBuildPhase": {"files"},
    "PBXGroup": {"children"},
    "PBXNativeTarget": {
        "buildConfigurationList", "buildPhases", "buildRules", "dependencies",
        "fileSystemSynchronizedGroups", "packageProductDependencies", "productReference",
    },
    "PBXProject": {
        "buildConfigurationList", "mainGroup", "packageReferences", "productRefGroup", "targets",
    },
    "PBXResourcesBuildPhase": {"files"},
    "PBXSourcesBuildPhase": {"files"},
    "XCBuildConfiguration": set(),
    "XCConfigurationList": {"buildConfigurations"},
    "XCLocalSwiftPackageReference": set(),
    "XCSwiftPackageProductDependency": set(),
}  # fmt: skip


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return parse(PROJECT.read_text("utf-8"))


def of(project: dict[str, Any], isa: str) -> list[dict[str, Any]]:
    return [each for each in project["objects"].values() if each["isa"] == isa]


def named(project: dict[str, Any], target: str) -> dict[str, Any]:
    (each,) = [each for each in of(project, "PBXNativeTarget") if each["name"] == target]
    return each


def referred(each: dict[str, Any]) -> Iterator[str]:
    for key in REFERENCES[each["isa"]] & set(each):
        value = each[key]
        yield from value if isinstance(value, list) else [value]


def settings(project: dict[str, Any], target: dict[str, Any]) -> list[dict[str, str]]:
    listed = project["objects"][target["buildConfigurationList"]]["buildConfigurations"]
    return [project["objects"][each]["buildSettings"] for each in listed]


def test_the_form_is_that_of_xcode_16(project: dict[str, Any]) -> None:
    assert project["objectVersion"] == "77"
    assert project["archiveVersion"] == "1"
    assert project["objects"][project["rootObject"]]["isa"] == "PBXProject"
    assert PROJECT.read_text("utf-8").startswith("// !$*UTF8*$!\n")


def test_every_id_is_an_object_and_every_object_is_used(project: dict[str, Any]) -> None:
    objects = project["objects"]
    assert all(ID.fullmatch(name) for name in objects)
    assert {each["isa"] for each in objects.values()} <= REFERENCES.keys()
    reached, todo = set(), [project["rootObject"]]
    while todo:
        name = todo.pop()
        assert name in objects, f"no object {name}"
        if name not in reached:
            reached.add(name)
            todo += referred(objects[name])
    assert reached == set(objects)


def test_nothing_else_looks_like_an_id(project: dict[str, Any]) -> None:
    """A key that REFERENCES does not list may not hold an id."""

    def ids(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from (f"{key}: {each}" for each in ids(inner))
        elif isinstance(value, list):
            for inner in value:
                yield from ids(inner)
        elif ID.fullmatch(value):
            yield value

    for each in project["objects"].values():
        rest = {key: value for key, value in each.items() if key not in REFERENCES[each["isa"]]}
        assert list(ids(rest)) == [], each


def test_the_comment_of_an_id_is_its_name(project: dict[str, Any]) -> None:
    for name, comment in re.findall(r"([0-9A-F]{24}) /\* (.*?) \*/", PROJECT.read_text("utf-8")):
        each = project["objects"][name]
        own = each.get("name") or each.get("path") or each.get("productName") or ""
        if own:
            assert own in comment, (name, comment)


def test_every_path_is_there(project: dict[str, Any]) -> None:
    folder = PROJECT.parents[1]

    def walk(name: str, parent: Path) -> None:
        each = project["objects"][name]
        if each.get("sourceTree") == "BUILT_PRODUCTS_DIR":
            return
        path = parent / each["path"] if "path" in each else parent
        assert path.exists(), path
        for child in each.get("children", []):
            walk(child, path)

    walk(project["objects"][project["rootObject"]]["mainGroup"], folder)
    (package,) = of(project, "XCLocalSwiftPackageReference")
    assert (folder / package["relativePath"] / "Package.swift").is_file()


def test_every_file_beside_the_project_is_in_it(project: dict[str, Any]) -> None:
    synchronised = {each["path"] for each in of(project, "PBXFileSystemSynchronizedRootGroup")}
    config = {each["path"] for each in of(project, "PBXFileReference")}
    for path in (IOS / "Apps").rglob("*"):
        relative = path.relative_to(IOS / "Apps")
        if path.is_file() and relative.parts[0] != "MTUApps.xcodeproj":
            is_config = relative.parts[0] == "Config" and relative.name in config
            assert relative.parts[0] in synchronised or is_config, relative


@pytest.mark.parametrize("app", APPS)
def test_a_target_builds_its_folder_with_the_package(project: dict[str, Any], app: str) -> None:
    target, objects = named(project, app), project["objects"]
    assert target["productType"] == "com.apple.product-type.application"
    groups = [objects[name]["path"] for name in target["fileSystemSynchronizedGroups"]]
    assert groups == [app]
    phases = {objects[name]["isa"]: objects[name] for name in target["buildPhases"]}
    assert {"PBXSourcesBuildPhase", "PBXFrameworksBuildPhase", "PBXResourcesBuildPhase"} == {
        *phases
    }
    linked = [
        objects[objects[name]["productRef"]]["productName"]
        for name in phases["PBXFrameworksBuildPhase"]["files"]
    ]
    depends = [objects[name]["productName"] for name in target["packageProductDependencies"]]
    assert linked == depends
    products = re.findall(
        r'\.library\(\s*name: "(\w+)"', (IOS / "Package.swift").read_text("utf-8")
    )
    assert set(linked) <= set(products)
    sources = "".join(path.read_text("utf-8") for path in (IOS / "Apps" / app).glob("*.swift"))
    assert set(re.findall(r"^\s*import (MTU\w+)$", sources, re.MULTILINE)) == set(linked)
    assert sources.count("@main") == 1


@pytest.mark.parametrize("app", APPS)
def test_the_settings_of_a_target(project: dict[str, Any], app: str) -> None:
    for each in settings(project, named(project, app)):
        folder = PROJECT.parents[1]
        information = plistlib.loads((folder / each["INFOPLIST_FILE"]).read_bytes())
        assert information["UIFileSharingEnabled"] is True
        assert information["LSSupportsOpeningDocumentsInPlace"] is True
        entitlements = plistlib.loads((folder / each["CODE_SIGN_ENTITLEMENTS"]).read_bytes())
        assert entitlements == {"com.apple.developer.kernel.increased-memory-limit": True}
        identifier = each["PRODUCT_BUNDLE_IDENTIFIER"]
        assert identifier == f"team$(DEVELOPMENT_TEAM).mtuexport.{APPS[app]}"


def test_the_settings_of_the_project(project: dict[str, Any]) -> None:
    root = project["objects"][project["rootObject"]]
    for each in settings(project, root):
        assert each["SWIFT_VERSION"] == "6.0"
        assert each["IPHONEOS_DEPLOYMENT_TARGET"] == "16.0"
        assert each["DEVELOPMENT_TEAM"] == ""


def test_the_driver_names_this_project_and_its_app(project: dict[str, Any]) -> None:
    assert IOS.parents[1] / faults.PROJECT == PROJECT.parent
    (settings_, _) = settings(project, named(project, "Bench"))
    assert settings_["PRODUCT_BUNDLE_IDENTIFIER"].endswith(faults.APP_SUFFIX)
    assert "scheme Bench" in faults.INSTALL


@pytest.mark.parametrize(
    "broken", ["{ a = ; }", "{ a = b }", "( a b )", "{ a = b; a = c; }", "{ } { }", "{ a = <; }"]
)
def test_the_reader_refuses(broken: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(broken)
